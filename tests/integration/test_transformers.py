"""LDC in a Hugging Face trainer, two tasks of scikit-learn's digits as pixel values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flatcl import LDCOptions
from flatcl.errors import OptionError, StateError

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the Trainer needs, is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from flatcl.transformers import LDCCallback


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(pixel_values)
        found = Output(logits=logits)
        if labels is not None:
            found["loss"] = nn.functional.cross_entropy(logits, labels)
        return found


class Output(dict[str, Tensor]):
    @property
    def logits(self) -> Tensor:
        return self["logits"]


def tasks() -> list[list[dict[str, Any]]]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)[:900]
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)[:900]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    return [
        [{"pixel_values": row, "labels": int(label)} for row, label in zip(inputs, y, strict=True)]
        for inputs in (x, x[:, order])
    ]


def trainer_of(
    model: nn.Module,
    data: Any,
    folder: Path,
    callbacks: list[Any],
    *,
    kind: Any = None,
    **options: Any,
) -> Any:
    """Clips gradients as every trainer does that is not told otherwise."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 32,
        "learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
    }  # fmt: skip
    sets = {"eval_dataset": options.pop("eval_dataset", None)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(**{**defaults, **options})
        return (kind or Trainer)(model, arguments, train_dataset=data, callbacks=callbacks, **sets)


def train(trainer: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch|transformers|accelerate")
        trainer.train(**options)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def first_task_kept(folder: Path, callbacks: list[Any]) -> float:
    torch.manual_seed(0)
    model, both = Classifier(), tasks()
    for data in both:
        train(trainer_of(model, data, folder, callbacks, num_train_epochs=6, max_grad_norm=0.0))
    x = torch.stack([one["pixel_values"] for one in both[0]])
    y = torch.tensor([one["labels"] for one in both[0]])
    with torch.no_grad():
        return float((model(x).logits.argmax(1) == y).float().mean())


def test_running_statistics_are_held(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, model, kept = LDCCallback(LDCOptions(hold_statistics=1)), Classifier(), []
    model.net.insert(1, nn.BatchNorm1d(60))
    for data in tasks():
        train(trainer_of(model, data, tmp_path, [callback]))
        kept.append([buffer.clone() for buffer in model.net[1].buffers()])
        assert model.net[1].training is model.training
    assert all(map(torch.equal, *kept))


def test_the_first_task_is_kept(tmp_path: Path) -> None:
    callback = LDCCallback()
    held = first_task_kept(tmp_path, [callback])
    assert held > first_task_kept(tmp_path, []) + 0.1
    assert callback.landscape.tasks_ended == 2
    assert callback.landscape.inputs.groups  # images are rehearsed


def test_a_crossed_budget_ends_the_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, model = LDCCallback(LDCOptions(budget=1e-6, interval=5)), Classifier()
    steps = []
    for data in tasks():
        trainer = trainer_of(model, data, tmp_path, [callback])
        train(trainer)
        steps.append(trainer.state.global_step)
    assert steps == [58, 5]  # nothing to hold in the first; the first pull of the second finds it
    assert callback.landscape.tasks_ended == 2


def test_the_source_that_needs_batch_sizes_is_refused() -> None:
    with pytest.raises(OptionError, match=r"source is 'sgd'.*source=\"probe\""):
        LDCCallback(LDCOptions(source="sgd"))


class Watched(Classifier):
    """Remembers the weights that evaluations see, once a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        if labels is not None and not torch.is_grad_enabled():
            self.shown.append(weights_of(self))
        return super().forward(pixel_values, labels)


class Wanted(TrainerCallback):  # type: ignore[misc]
    """Comes after LDC's callback: what it should show at each step, and what it should put back."""

    def __init__(self, ldc: Any) -> None:
        self.ldc = ldc
        self.own: list[Tensor] = []
        self.pulled: list[Tensor] = []
        self.after: list[Tensor] = []

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.own.append(weights_of(model))
        with self.ldc.landscape.evaluating():
            self.pulled.append(weights_of(model))

    def on_evaluate(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.after.append(weights_of(model))


def test_evaluation_in_mid_task_sees_pulled_weights(tmp_path: Path) -> None:
    ends = []
    for strategy in ("steps", "no"):
        torch.manual_seed(0)
        ldc, model, both = LDCCallback(), Watched(), tasks()
        train(trainer_of(model, both[0], tmp_path, [ldc], num_train_epochs=1))
        wanted = Wanted(ldc)
        trainer = trainer_of(
            model, both[1], tmp_path, [ldc, wanted], num_train_epochs=1, eval_strategy=strategy,
            eval_steps=7, per_device_eval_batch_size=900,
            eval_dataset={"first": both[0], "second": both[1]} if strategy == "steps" else None,
        )  # fmt: skip
        train(trainer)
        ends.append(weights_of(model))
        if strategy == "steps":
            seen = [step - 1 for step in (7, 7, 14, 14, 21, 21, 28, 28, 29, 29)]  # both sets
            assert len(model.shown) == len(seen) == len(wanted.after)
            for i, saw, after in zip(seen, model.shown, wanted.after, strict=True):
                assert torch.equal(saw, wanted.pulled[i])
                assert not torch.equal(saw, wanted.own[i])
                assert torch.equal(after, wanted.own[i])
    assert torch.equal(*ends)  # training does not depend on it


class Failing(TrainerCallback):  # type: ignore[misc]
    """Fails at a step, or within an evaluation."""

    def __init__(self, event: str) -> None:
        def fail(args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == 10:
                raise KeyError("of the user's own code")

        setattr(self, event, fail)


@pytest.mark.parametrize("event", ["on_step_end", "on_prediction_step"])
def test_a_training_that_failed_blocks_nothing(tmp_path: Path, event: str) -> None:
    torch.manual_seed(0)
    ldc, model, both = LDCCallback(), Classifier(), tasks()
    train(trainer_of(model, both[0], tmp_path, [ldc], num_train_epochs=1))
    failing, look = Failing(event), Failing("on_train_begin")
    trainer = trainer_of(
        model, both[1], tmp_path, [ldc, failing], eval_dataset=both[0],
        eval_strategy="steps", eval_steps=10, per_device_eval_batch_size=900,
    )  # fmt: skip
    with pytest.raises(KeyError, match="own code"):
        train(trainer)
    with torch.no_grad():
        for parameter in model.parameters():  # as if weights were loaded meanwhile
            parameter.mul_(0.5)
    wanted = weights_of(model)
    begun: list[Tensor] = []
    look.on_train_begin = lambda *args, model, **kwargs: begun.append(weights_of(model))
    trainer.remove_callback(failing)
    trainer.add_callback(look)
    train(trainer)
    assert torch.equal(begun[0], wanted)
    assert ldc.landscape.tasks_ended == 2
    assert ldc.landscape.task is None


def straight(folder: Path, callback: Any) -> Any:
    """Two tasks in one process; checkpoints of both, and states after each."""
    torch.manual_seed(0)
    model = Classifier()
    for name, data in zip(("first", "second"), tasks(), strict=True):
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 20}
        trainer = trainer_of(model, data, folder / name, [callback], **saving)
        train(trainer)
        torch.save(callback.state_dict(), folder / f"{name}.pt")
        torch.save(model.state_dict(), folder / f"{name}-model.pt")
    return model


def test_a_training_that_resumes_in_another_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    callback, model = LDCCallback(), Classifier()
    callback.load_state_dict(torch.load(tmp_path / "first.pt", weights_only=True))  # older
    trainer = trainer_of(model, tasks()[1], tmp_path / "second", [callback])
    train(trainer, resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-40"))
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_the_next_task_in_another_process_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    callback, model = LDCCallback(), Classifier()
    model.load_state_dict(torch.load(tmp_path / "first-model.pt", weights_only=True))
    callback.load_state_dict(torch.load(tmp_path / "first.pt", weights_only=True))
    train(trainer_of(model, tasks()[1], tmp_path / "other", [callback]))
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_a_task_whose_steps_were_all_made_is_ended_on_resuming(tmp_path: Path) -> None:
    end = straight(tmp_path, LDCCallback())
    callback, model = LDCCallback(), Classifier()
    trainer = trainer_of(model, tasks()[1], tmp_path / "second", [callback])
    train(trainer, resume_from_checkpoint=True)  # the last, saved before the task's end
    assert callback.landscape.tasks_ended == 2
    assert torch.equal(weights_of(model), weights_of(end))


def test_a_checkpoint_without_a_whole_landscape_is_refused(tmp_path: Path) -> None:
    straight(tmp_path, LDCCallback())
    held = tmp_path / "second" / "checkpoint-40" / "landscape.pt"
    trainer = trainer_of(Classifier(), tasks()[1], tmp_path / "second", [LDCCallback()])
    held.write_bytes(held.read_bytes()[:1000])
    with pytest.raises(StateError, match=r"checkpoint-40.landscape.pt is damaged"):
        train(trainer, resume_from_checkpoint=str(held.parent))
    held.unlink()
    with pytest.raises(StateError, match=r"there is no .*landscape.pt, .*load_state_dict"):
        train(trainer, resume_from_checkpoint=str(held.parent))


def test_a_checkpoint_of_another_folder_is_not_resumed_with_what_is_held_now(
    tmp_path: Path,
) -> None:
    callback = LDCCallback()
    model = straight(tmp_path, callback)
    trainer = trainer_of(model, tasks()[1], tmp_path / "other", [callback])
    elsewhere = str(tmp_path / "second" / "checkpoint-40")
    with pytest.raises(StateError, match=r"there is no .*other.checkpoint-40.landscape.pt"):
        train(trainer, resume_from_checkpoint=elsewhere)
    callback.load_state_dict(torch.load(f"{elsewhere}/landscape.pt", weights_only=True))
    train(trainer, resume_from_checkpoint=elsewhere)
    assert callback.landscape.tasks_ended == 2


class Seeing(Trainer):  # type: ignore[misc]
    """Remembers the batches of the step being made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[Any] = []

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.batches.append(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def clipped(found: Tensor) -> Tensor:
    return found * min(1.0, 1.0 / float(found.norm()))  # the default max_grad_norm


@pytest.mark.parametrize("accumulate", [1, 2])
def test_task_and_rehearsal_are_clipped_together(tmp_path: Path, accumulate: int) -> None:
    torch.manual_seed(0)
    ldc, model, both = LDCCallback(), Classifier(), tasks()
    train(trainer_of(model, both[0], tmp_path, [ldc]))
    trainer = trainer_of(
        model, both[1], tmp_path, [ldc], kind=Seeing, num_train_epochs=1,
        gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    together, alone = [], []

    def look(optimizer: Any, *args: Any) -> None:
        taken = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        losses = [model(**batch)["loss"] for batch in trainer.batches]
        trainer.batches.clear()
        task = torch.stack([gradient(loss, model) for loss in losses]).mean(0)
        rehearsal = gradient(ldc.landscape.rehearsal(), model)
        wanted = clipped(task + rehearsal)
        together.append(float((taken - wanted).norm()))
        alone.append(float((clipped(task) + rehearsal - wanted).norm()))

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(look)
    train(trainer)
    assert len(together) == -(-29 // accumulate)
    assert max(together) < 1e-5  # float32
    assert max(alone) > 1e-2  # clipped alone, the task's gradient is another


class Scaled(TrainerCallback):  # type: ignore[misc]
    """Has the rehearsal's gradient taken under two scalers of a loss, at weights that moved."""

    def __init__(self, ldc: Any) -> None:
        self.ldc = ldc
        self.taken: list[Tensor] = []

    def on_train_begin(self, *args: Any, model: Any, optimizer: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            model.net[0].weight.add_(0.01)
        for scale in (1.0, 1024.0):
            optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            self.ldc.on_step_begin(*args, model=model, optimizer=optimizer, **kwargs)
            self.ldc.on_step_begin(*args, model=model, optimizer=optimizer, **kwargs)  # once a step
            self.taken.append(model.net[0].weight.grad.clone())
            model.zero_grad()
            self.ldc._rehearsed = False  # as after a step, at the same pseudo-inputs
        raise KeyError("seen enough")


def test_the_rehearsal_has_the_scale_of_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ldc, model, both = LDCCallback(), Classifier(), tasks()
    train(trainer_of(model, both[0], tmp_path, [ldc]))
    scaled = Scaled(ldc)
    with pytest.raises(KeyError, match="seen enough"):
        train(trainer_of(model, both[1], tmp_path, [ldc, scaled]))
    one, many = (float(taken.norm()) for taken in scaled.taken)
    assert one > 0
    assert many / one == pytest.approx(1024.0, rel=1e-6)


class Counting(TrainerCallback):  # type: ignore[misc]
    """Counts the steps that the optimiser makes; comes before LDC's callback."""

    def __init__(self, ldc: Any) -> None:
        self.ldc = ldc
        self.made = 0

    def on_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self.made += not optimizer.step_was_skipped

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.counted = self.ldc.landscape.task.steps_made


def test_a_step_that_a_scaler_skips_is_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ldc, model, both = LDCCallback(), Classifier(), tasks()
    for data in both:
        look = Counting(ldc)
        trainer = trainer_of(model, data, tmp_path, [look, ldc], max_grad_norm=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**70)  # the first norms overflow
        trainer.accelerator.scaler = scaler
        train(trainer)
        assert 0 < look.counted == look.made < trainer.state.global_step == 58


class WithTargets(Trainer):  # type: ignore[misc]
    """Computes the loss itself, from a column that the model does not take."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        targets = inputs.pop("targets")
        return nn.functional.cross_entropy(model(**inputs).logits, targets)


class WithoutKeywords(Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        logits = model(inputs["pixel_values"]).logits
        return nn.functional.cross_entropy(logits, inputs["targets"])


def with_targets() -> list[list[dict[str, Any]]]:
    return [
        [{"pixel_values": one["pixel_values"], "targets": one["labels"]} for one in data]
        for data in tasks()
    ]


def test_batches_need_no_labels(tmp_path: Path) -> None:
    ends = []
    for kind, both in ((None, tasks()), (WithTargets, with_targets())):
        torch.manual_seed(0)
        callback, model = LDCCallback(), Classifier()
        for data in both:
            options: dict[str, Any] = {"num_train_epochs": 1, "remove_unused_columns": False}
            train(trainer_of(model, data, tmp_path, [callback], kind=kind, **options))
        assert callback.landscape.tasks_ended == 2
        assert callback.landscape.inputs.groups
        ends.append(weights_of(model))
    assert torch.equal(*ends)


def test_a_model_that_is_not_called_by_keyword_is_refused_at_the_first_step(
    tmp_path: Path,
) -> None:
    trainer = trainer_of(
        Classifier(), with_targets()[0], tmp_path, [LDCCallback()], kind=WithoutKeywords,
        remove_unused_columns=False,
    )  # fmt: skip
    with pytest.raises(OptionError, match=r"called with the keywords \[\].*label_names"):
        train(trainer)
    assert trainer.state.global_step == 0


def test_a_label_that_the_model_takes_is_no_input(tmp_path: Path) -> None:
    class Tagged(Classifier):
        def forward(self, pixel_values: Tensor, tags: Tensor | None = None) -> Any:  # type: ignore[override]
            return super().forward(pixel_values, tags)

    callback = LDCCallback()
    data = [{"pixel_values": one["pixel_values"], "tags": one["labels"]} for one in tasks()[0]]
    options: dict[str, Any] = {"num_train_epochs": 1, "label_names": ["tags"]}
    train(trainer_of(Tagged(), data, tmp_path, [callback], **options))
    assert callback.state_dict()["names"] == ["pixel_values"]
    with pytest.raises(OptionError, match=r"keywords \['pixel_values', 'tags'\].*label_names"):
        train(
            trainer_of(
                Tagged(), data, tmp_path, [LDCCallback()], label_names=["pixel_values", "tags"]
            )
        )
