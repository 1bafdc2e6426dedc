"""LDC in a Lightning trainer, two tasks of scikit-learn's digits."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatcl import LDCOptions
from flatcl.errors import DataError, OptionError, StateError

pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.precision import MixedPrecision

    from flatcl.lightning import LDCCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def tasks() -> list[TensorDataset]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)[:900]
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)[:900]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    return [TensorDataset(x, y), TensorDataset(x[:, order], y)]


def trainer_in(folder: Path, callbacks: list[Any], epochs: int = 6, **options: Any) -> Any:
    return Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def fit(trainer: Any, model: Any, data: Any, **options: Any) -> None:
    """In the order of the data: what a resumed fit can go on with bit for bit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # of workers, logs and devices
        trainer.fit(model, DataLoader(data, batch_size=32), **options)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def first_task_kept(folder: Path, callbacks: list[Any], accumulate: int = 1) -> float:
    torch.manual_seed(0)
    model, both = Classifier(), tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, logs and devices
        for data in both:
            trainer = trainer_in(folder, callbacks, accumulate_grad_batches=accumulate)
            trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    x, y = both[0].tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_task_is_kept(tmp_path: Path, accumulate: int) -> None:
    callback = LDCCallback()
    held = first_task_kept(tmp_path, [callback], accumulate)
    assert held > first_task_kept(tmp_path, [], accumulate) + 0.1
    assert callback.landscape.tasks_ended == 2
    assert callback.landscape.task is None


def test_running_statistics_are_held(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, model, kept = LDCCallback(LDCOptions(hold_statistics=1)), Classifier(), []
    model.net.insert(1, nn.BatchNorm1d(60))
    for data in tasks():
        fit(trainer_in(tmp_path, [callback], epochs=2), model, data)
        kept.append([buffer.clone() for buffer in model.net[1].buffers()])
        assert model.net[1].training is model.training
    assert all(map(torch.equal, *kept))


def test_a_crossed_budget_ends_the_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, model = LDCCallback(LDCOptions(budget=1e-6, interval=5)), Classifier()
    steps = []
    for data in tasks():
        trainer = trainer_in(tmp_path, [callback], epochs=2)
        fit(trainer, model, data)
        steps.append(trainer.global_step)
    assert steps == [58, 5]  # nothing to hold in the first; the first pull of the second finds it
    assert callback.landscape.tasks_ended == 2


def test_the_source_that_needs_batch_sizes_is_refused() -> None:
    with pytest.raises(OptionError, match=r"source is 'sgd'.*source=\"probe\""):
        LDCCallback(LDCOptions(source="sgd"))


class Counting(Callback):  # type: ignore[misc]
    """Counts the steps that the optimiser makes; comes before LDC's callback."""

    def __init__(self, ldc: Any) -> None:
        self.ldc = ldc
        self.made = 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        def count(*args: object) -> None:
            self.made += 1

        trainer.optimizers[0].register_step_post_hook(count)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.counted = self.ldc.landscape.task.steps_made


def test_a_step_that_a_scaler_skips_is_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ldc, model = LDCCallback(), Classifier()
    for data in tasks():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # gradients overflow at first
        look = Counting(ldc)
        trainer = trainer_in(
            tmp_path, [look, ldc], 2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
        )
        fit(trainer, model, data)
        assert 0 < look.counted == look.made < trainer.global_step == 58


class Validated(Classifier):
    """Remembers the weights that its validation saw."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def validation_step(self, batch: Any, index: int) -> None:
        self.shown.append(weights_of(self))


class Wanted(Callback):  # type: ignore[misc]
    """Comes after LDC's callback: what it should show at each step, and what it should put back."""

    def __init__(self, ldc: Any) -> None:
        self.ldc = ldc
        self.own: list[Tensor] = []
        self.pulled: list[Tensor] = []
        self.after: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.own.append(weights_of(module))
        with self.ldc.landscape.evaluating():
            self.pulled.append(weights_of(module))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self.after.append(weights_of(module))


def test_validation_in_mid_task_sees_pulled_weights(tmp_path: Path) -> None:
    ends = []
    for validates in (True, False):
        torch.manual_seed(0)
        ldc, model, both = LDCCallback(), Validated(), tasks()
        fit(trainer_in(tmp_path, [ldc], epochs=1), model, both[0])
        wanted = Wanted(ldc)
        trainer = trainer_in(
            tmp_path, [ldc, wanted], epochs=2, val_check_interval=7, num_sanity_val_steps=1,
            limit_val_batches=1 if validates else 0,
        )  # fmt: skip
        fit(trainer, model, both[1], val_dataloaders=DataLoader(both[0], batch_size=900))
        ends.append(weights_of(model))
        if validates:
            seen = [7 * i + 29 * epoch - 1 for epoch in (0, 1) for i in (1, 2, 3, 4)]
            shown = model.shown[1:]  # after the sanity check, which comes before the task
            assert len(shown) == len(seen) == len(wanted.after)
            for i, saw, after in zip(seen, shown, wanted.after, strict=True):
                assert torch.equal(saw, wanted.pulled[i])
                assert not torch.equal(saw, wanted.own[i])
                assert torch.equal(after, wanted.own[i])
    assert torch.equal(*ends)  # training does not depend on it


class Failing(Callback):  # type: ignore[misc]
    """Fails at a step, or within a validation."""

    def __init__(self, hook: str) -> None:
        def fail(trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 10:
                raise KeyError("of the user's own code")

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_end"])
def test_a_fit_that_failed_blocks_nothing(tmp_path: Path, hook: str) -> None:
    torch.manual_seed(0)
    ldc, model, both = LDCCallback(), Validated(), tasks()
    fit(trainer_in(tmp_path, [ldc], epochs=1), model, both[0])
    trainer = trainer_in(
        tmp_path, [ldc, Wanted(ldc), Failing(hook)], val_check_interval=10, limit_val_batches=1
    )
    with pytest.raises(KeyError, match="own code"):
        fit(trainer, model, both[1], val_dataloaders=DataLoader(both[0], batch_size=900))
    assert torch.equal(weights_of(model), trainer.callbacks[1].own[-1])  # not the pulled ones
    fit(trainer_in(tmp_path, [ldc], epochs=1), model, both[1])
    assert ldc.landscape.tasks_ended == 2
    assert ldc.landscape.task is None


def straight(folder: Path, callback: Any, epochs: int = 2) -> Any:
    """Two tasks in one process; where each was after an epoch and after its end is kept."""
    torch.manual_seed(0)
    model = Classifier()
    for name, data in zip(("first", "second"), tasks(), strict=True):
        saver = ModelCheckpoint(folder / name, save_last=True, save_top_k=-1)
        trainer = trainer_in(folder, [callback, saver], epochs, enable_checkpointing=True)
        fit(trainer, model, data)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return model


def test_a_fit_that_resumes_in_another_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    torch.manual_seed(1)
    callback, model = LDCCallback(), Classifier()
    fit(
        trainer_in(tmp_path, [callback], 2), model, tasks()[1],
        ckpt_path=tmp_path / "second" / "epoch=0-step=29.ckpt",
    )  # fmt: skip
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_the_next_task_in_another_process_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)
    callback, model = LDCCallback(), Classifier()
    model.load_state_dict(saved["state_dict"])
    callback.load_state_dict(saved["callbacks"][callback.state_key])
    assert callback.state_dict() is saved["callbacks"][callback.state_key]  # until a fit begins
    fit(trainer_in(tmp_path, [callback], 2), model, tasks()[1])
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_a_task_whose_steps_were_all_made_is_ended_on_resuming(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    callback, model = LDCCallback(), Classifier()
    for name, data in zip(("first", "second"), tasks(), strict=True):
        last = tmp_path / name / "epoch=1-step=58.ckpt"  # saved before the task's end
        fit(trainer_in(tmp_path, [callback], 2), model, data, ckpt_path=last)
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_a_state_of_mid_task_that_is_not_resumed_is_given_up_with_a_warning(
    tmp_path: Path,
) -> None:
    straight(tmp_path, LDCCallback())
    saved = torch.load(tmp_path / "second" / "epoch=0-step=29.ckpt", weights_only=True)
    callback, model = LDCCallback(), Classifier()
    model.load_state_dict(saved["state_dict"])
    callback.load_state_dict(saved["callbacks"][callback.state_key])
    with pytest.warns(UserWarning, match="task 1 of the saved state had not ended.*given up"):
        fit(trainer_in(tmp_path, [callback], 1), model, tasks()[1])
    assert callback.landscape.tasks_ended == 2


def test_a_checkpoint_that_is_only_validated_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, model = LDCCallback(), Validated()
    saver = ModelCheckpoint(tmp_path / "one")
    trainer = trainer_in(tmp_path, [callback, saver], 1, enable_checkpointing=True)
    fit(trainer, model, tasks()[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.validate(
            model, DataLoader(tasks()[0], 900), ckpt_path=saver.best_model_path, verbose=False
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="lightning")
        fit(trainer_in(tmp_path, [callback], 1), model, tasks()[1])
    assert callback.landscape.tasks_ended == 2


def test_a_checkpoint_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, saver = Classifier(), ModelCheckpoint(tmp_path)
    fit(trainer_in(tmp_path, [saver], 1, enable_checkpointing=True), model, tasks()[0])
    with pytest.raises(StateError, match=r"no 'LDCCallback' among its callbacks.*load_state_dict"):
        fit(
            trainer_in(tmp_path, [LDCCallback()], 2), model, tasks()[0],
            ckpt_path=saver.best_model_path,
        )  # fmt: skip


def test_a_state_of_another_model_is_refused_and_kept(tmp_path: Path) -> None:
    straight(tmp_path, LDCCallback(), epochs=1)
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["callbacks"]
    callback, model = LDCCallback(), Classifier()
    model.net = nn.Sequential(nn.Linear(64, 10))
    callback.load_state_dict(saved[callback.state_key])
    for _ in range(2):
        with pytest.raises(StateError, match="a layer's view changed"):
            fit(trainer_in(tmp_path, [callback], 1), model, tasks()[0])


class Named(Classifier):
    """Batches are dictionaries with something that is no tensor."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["x"]), batch["y"])


class Paired(Classifier):
    def training_step(self, batch: Any, index: int) -> Tensor:
        (x, _), y = batch
        return nn.functional.cross_entropy(self(x), y)


class Renested(Dataset[Any]):
    def __init__(self, data: TensorDataset, kind: type[Classifier]) -> None:
        self.data, self.kind = data, kind

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        x, y = self.data[i]
        return {"x": x, "name": str(i), "y": y} if self.kind is Named else ((x, x), y)


def forward_of(model: Classifier) -> Any:
    return lambda batch: model(batch["x"] if isinstance(batch, dict) else batch[0][0])


@pytest.mark.parametrize("kind", [Named, Paired])
def test_nested_batches_end_as_flat_ones_do(tmp_path: Path, kind: type[Classifier]) -> None:
    ends = []
    for nested in (False, True):
        torch.manual_seed(0)
        model = kind() if nested else Classifier()
        # The second inputs of a pair have no Gaussian, so that there is no rehearsal.
        options = LDCOptions(pseudo_inputs=0 if kind is Paired else None)
        callback = LDCCallback(options, forward_of(model) if nested else None)
        for data in tasks():
            fit(
                trainer_in(tmp_path, [callback], 2), model, Renested(data, kind) if nested else data
            )
        assert callback.landscape.tasks_ended == 2
        ends.append(weights_of(model))
    assert torch.equal(*ends)


def test_nested_batches_go_on_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Named()
    callback = LDCCallback(forward=forward_of(model))
    first, second = (Renested(data, Named) for data in tasks())
    trainer = trainer_in(tmp_path, [callback], 1)
    fit(trainer, model, first)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    fit(trainer_in(tmp_path, [callback], 1), model, second)
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)
    other = Named()
    other.load_state_dict(saved["state_dict"])
    callback = LDCCallback(forward=forward_of(other))
    callback.load_state_dict(saved["callbacks"][callback.state_key])
    fit(trainer_in(tmp_path, [callback], 1), other, second)
    assert torch.equal(weights_of(other), weights_of(model))


class Wordy(Classifier):
    def training_step(self, batch: Any, index: int) -> Tensor:
        return self(torch.zeros(1, 64)).sum()


@pytest.mark.parametrize(
    ("kind", "data", "error", "told"),
    [
        (
            Named,
            Renested(tasks()[0], Named),
            OptionError,
            r"dict of \['x', 'name', 'y'\].*forward=",
        ),
        (Wordy, ["a", "b"], DataError, "a batch is a list without tensors"),
    ],
)
def test_batches_that_cannot_be_used_are_refused_at_the_first(
    tmp_path: Path, kind: type[Classifier], data: Any, error: type[Exception], told: str
) -> None:
    trainer = trainer_in(tmp_path, [LDCCallback()], 1)
    with pytest.raises(error, match=told):
        fit(trainer, kind(), data)
    assert trainer.global_step == 0
    free = LDCOptions(strength=0)
    fit(trainer_in(tmp_path, [LDCCallback(free)], 1), kind(), data)  # nothing is asked of them


class Halves(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.05) for layer in self.net[::2]]


def test_several_optimisers_and_loaders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"the module has 2 optimisers.*parameter groups"):
        fit(trainer_in(tmp_path, [LDCCallback()], 1), Halves(), tasks()[0])
    loaders = {name: DataLoader(data, 32) for name, data in zip("ab", tasks(), strict=True)}
    trainer = trainer_in(tmp_path, [LDCCallback()], 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        with pytest.raises(OptionError, match="a dict of training loaders"):
            trainer.fit(Classifier(), loaders)
