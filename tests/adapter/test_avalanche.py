"""LDC in Avalanche: drop-in for EWC, heads of every kind, and everything it must leave alone."""

from __future__ import annotations

import inspect
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from flatcl.avalanche import LDC, LDCPlugin, OldClassOffset, PseudoRehearsal
from flatcl.core.options import LDCOptions
from flatcl.errors import OptionError, StateError

from avalanche.benchmarks import (  # isort: skip
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils.classification_dataset import (  # isort: skip
    _make_taskaware_classification_dataset,
)
from avalanche.logging import BaseLogger  # isort: skip
from avalanche.models import IncrementalClassifier, MultiHeadClassifier  # isort: skip
from avalanche.models.dynamic_modules import MultiTaskModule  # isort: skip
from avalanche.training import EWC, LwF, Naive, Replay  # isort: skip
from avalanche.core import BasePlugin  # isort: skip
from avalanche.training.plugins import (  # isort: skip
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
)
from avalanche.training.templates import SupervisedTemplate  # isort: skip

CLASSES, INPUTS, SAMPLES = 2, 6, 64


def stream(tasks=3, *, labels=False, growing=False):
    """Gaussian clouds; each task has its own directions, or its own classes if ``growing``."""
    parts = {"train": [], "test": []}
    for task in range(tasks):
        g = torch.Generator().manual_seed(task)
        centres = 2.0 * torch.randn(CLASSES, INPUTS, generator=g)
        for part in parts.values():
            y = torch.arange(SAMPLES) % CLASSES
            x = centres[y] + torch.randn(SAMPLES, INPUTS, generator=g)
            y = y + CLASSES * task if growing else y
            label = task if labels else 0
            part.append(_make_taskaware_classification_dataset(Samples(x, y), task_labels=label))
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(**parts)))
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        # A set as Avalanche leaves it, which its own MultiHeadClassifier cannot index with.
        experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


class Samples(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y
        self.targets = [int(c) for c in y]

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])

    def __len__(self):
        return len(self.x)


def quiet():
    return EvaluationPlugin(loggers=[BaseLogger()])


def settings(model, optimizer=None, **options):
    return {
        "model": model,
        "optimizer": optimizer or torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 64,
        "evaluator": quiet(),
        **options,
    }


def mlp(outputs=CLASSES, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, 12), nn.ReLU(), nn.Linear(12, outputs))


class Growing(nn.Module):
    """A body, a head that grows, and a layer after the head in ``named_parameters()``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(INPUTS, 12)
        self.head = IncrementalClassifier(12, initial_out_features=2)
        self.after = nn.Linear(12, 12)

    def forward(self, x):
        return self.head(torch.relu(self.after(torch.relu(self.body(x)))))


class MultiHead(MultiTaskModule):
    """One head a task, registered before the body: heads are not last."""

    def __init__(self):
        super().__init__()
        self.head = MultiHeadClassifier(12, initial_out_features=2)
        self.body = nn.Linear(INPUTS, 12)

    def forward(self, x, task_labels):
        return self.head(torch.relu(self.body(x)), task_labels)


def _numpy_state():
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy state is what others use


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(strategy, benchmark, **kwargs):
    torch.manual_seed(5)  # Avalanche's loaders shuffle by the global state
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[], **kwargs)
    return strategy


def test_ldc_takes_what_ewc_takes_and_names_what_it_ignores():
    model = mlp()
    arguments = settings(model, device="cpu", plugins=None, eval_every=-1)
    EWC(ewc_lambda=1.0, mode="online", decay_factor=0.5, **arguments)
    with pytest.warns(UserWarning, match="ewc_lambda, mode, decay_factor of EWC ignored") as seen:
        LDC(ewc_lambda=1.0, mode="online", decay_factor=0.5, **arguments)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy = LDC(**arguments)
    assert strategy.ldc.options == LDCOptions()
    with pytest.raises(TypeError):
        LDC(ewc_lamda=1.0, **arguments)
    with pytest.raises(OptionError, match="strength is -1"):
        LDC(strength=-1, **arguments)
    with pytest.raises(OptionError, match="no option 'lambda_'"):
        LDCPlugin(lambda_=1)


def test_arguments_without_a_name_stand_where_ewc_has_them():
    """Avalanche takes them, deprecated, in the order of the names; so do its own examples."""
    model = mlp()
    optimizer, criterion = torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss()
    of_ewc = list(inspect.signature(EWC.__init__, follow_wrapped=True).parameters)
    of_ldc = list(inspect.signature(LDC.__init__, follow_wrapped=True).parameters)
    assert of_ldc[: len(of_ewc) - 1] == of_ewc[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = LDC(model, optimizer, criterion, 0.4, "separate", None, False, 32, 3)
    assert (strategy.train_mb_size, strategy.train_epochs) == (32, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_forgets_less_than_naive_and_ends_with_constant_bytes(optimizer):
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    }[optimizer]
    benchmark, losses = stream(), {}
    for kind in (Naive, LDC):
        model = mlp()
        strategy = kind(**settings(model, make(model.parameters())))
        held = []
        torch.manual_seed(5)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
            if kind is LDC:
                held.append(strategy.bytes_held())
        data = benchmark.test_stream[0].dataset
        x = torch.stack([data[i][0] for i in range(SAMPLES)])
        y = torch.tensor([int(data[i][1]) for i in range(SAMPLES)])
        losses[kind] = float(nn.functional.cross_entropy(model(x), y).detach())
    assert losses[LDC] < losses[Naive]
    assert len(set(held)) == 1
    assert held[0] > 0


@pytest.mark.parametrize("model_class", [Growing, MultiHead])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_growing_and_multiple_heads(model_class, optimizer):
    torch.manual_seed(0)
    model = model_class()
    benchmark = stream(labels=model_class is MultiHead, growing=model_class is Growing)
    opt = (
        torch.optim.SGD(model.parameters(), lr=0.1)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=1e-2)
    )
    first: list[torch.Tensor] = []

    class Kept(BasePlugin):
        """Keeps the first head as its own task leaves it."""

        def before_training_exp(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1 and model_class is MultiHead:
                first.append(model.head.classifiers["0"].classifier.weight.detach().clone())

    options = {"interval": 3, "pseudo_inputs": 0, "plugins": [Kept()]}
    strategy = train(LDC(**options, **settings(model, opt)), benchmark)
    held = strategy.ldc.landscape.constraints
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    covered = {n for unit in strategy.ldc.landscape._units for n in unit.names}
    assert covered == trainable
    assert float(held["body.weight"].stiffness.sum()) > 0
    if model_class is Growing:
        assert held["head.classifier.weight"].stiffness.shape[0] == 3 * CLASSES
    else:
        heads = [n for n in held if n.startswith("head.classifiers")]
        assert len(heads) == 3
        # A head that later tasks do not train stays where its task left it, but for the rounding
        # of the centre's mean.
        now = model.head.classifiers["0"].classifier.weight.detach()
        torch.testing.assert_close(now, first[0], rtol=1e-6, atol=1e-6)
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize("model_class", [Growing, MultiHead])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_heads_and_their_biases_are_pulled_in_the_optimisers_metric_after_growth(
    model_class, optimizer
):
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    torch.manual_seed(0)
    model = model_class()
    benchmark = stream(labels=model_class is MultiHead, growing=model_class is Growing)
    seen = []

    class Reader(BasePlugin):
        def after_training_iteration(self, strategy, **kwargs):
            task = strategy.ldc.landscape.task
            for unit in task.schedule.held:
                if unit.name.startswith("head"):
                    view = unit.gather(task.parameters)
                    found = strategy.ldc.landscape.metric.read(unit, task.parameters, [1.0])
                    if found is not None:
                        assert unit.bias is not None
                        seen.append((strategy.clock.train_exp_counter, len(view)))
                        shape = () if optimizer == "sgd" else view.shape
                        assert torch.as_tensor(found).shape == shape
                        assert torch.isfinite(torch.as_tensor(found)).all()

    opt = make(model.parameters(), lr=1e-2)
    options = {"interval": 3, "pseudo_inputs": 0}  # these reach the heads of other tasks too
    train(LDC(plugins=[Reader()], **options, **settings(model, opt)), benchmark)
    if model_class is Growing:
        assert set(seen) == {(1, 2 * CLASSES), (2, 3 * CLASSES)}
    else:
        assert not seen  # a head of another task has no gradient, and stays where it is


def test_a_description_needs_a_task_that_has_begun():
    strategy = LDC(**settings(mlp()))
    with pytest.raises(StateError, match=r"call describe\(\) after the first train"):
        strategy.describe()
    train(strategy, stream())
    described = strategy.describe()
    assert described.total == strategy.bytes_held()
    assert "kronecker [12, 7]" in str(described)


def test_strength_zero_equals_naive_bit_for_bit():
    benchmark = stream()
    models = [mlp(), mlp()]
    train(Naive(**settings(models[0])), benchmark)
    train(LDC(strength=0.0, **settings(models[1])), benchmark)
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_training_does_not_depend_on_evaluations_in_between():
    benchmark = stream()
    results = []
    for every in (-1, 1):
        model = mlp()
        strategy = LDC(interval=5, **settings(model, eval_every=every))
        torch.manual_seed(5)
        for experience in benchmark.train_stream:
            # Unshuffled: an evaluation's loader draws from the global random state, which would
            # change the order of the training batches of any strategy.
            streams = [benchmark.test_stream] if every > 0 else []
            strategy.train(experience, eval_streams=streams, shuffle=False)
        results.append(weights(model))
    assert torch.equal(*results)


def test_global_random_states_are_left_alone():
    benchmark = stream(1)
    model = mlp()
    strategy = LDC(**settings(model))
    plugin = strategy.ldc
    original = plugin.after_training_exp

    def watched(s, **kwargs):
        states = (torch.get_rng_state(), _numpy_state(), random.getstate())
        original(s, **kwargs)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (_numpy_state() == states[1]).all()
        assert random.getstate() == states[2]

    plugin.after_training_exp = watched
    train(strategy, benchmark)
    assert plugin.landscape.tasks_ended == 1


def test_caller_s_plugins_modes_gradients_and_frozen_parameters_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
    )
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    plugins = [EWCPlugin(ewc_lambda=0.0)]
    strategy = LDC(**settings(model, plugins=plugins))
    before = {}
    original = strategy.ldc.after_training_exp

    def watched(s, **kwargs):
        before["modes"] = [m.training for m in model.modules()]
        before["grads"] = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        original(s, **kwargs)
        held = s.clock.train_exp_counter > 0
        assert before["modes"] == [True, True, not held, True, True, True]
        assert all(m.training for m in model.modules())
        for p, g in zip(model.parameters(), before["grads"], strict=True):
            assert (p.grad is None and g is None) or torch.equal(p.grad, g)

    strategy.ldc.after_training_exp = watched
    train(strategy, stream(2))
    assert "modes" in before
    assert len(plugins) == 1
    assert torch.equal(model[0].weight, frozen)
    assert "0.weight" not in strategy.ldc.landscape.constraints


def test_batchnorm_buffers_change_only_when_the_centre_is_installed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    strategy = LDC(centre=False, **settings(model))
    naive = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    naive.load_state_dict(model.state_dict())
    benchmark = stream(1)
    train(strategy, benchmark)
    train(Naive(**settings(naive)), benchmark)
    for (name, ours), theirs in zip(model.named_buffers(), naive.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_one_plugin_serves_one_strategy():
    plugin = LDCPlugin()
    first, second = mlp(), mlp(seed=1)
    train(SupervisedTemplate(**settings(first, plugins=[plugin])), stream(1))
    with pytest.raises(StateError, match="one LDCPlugin"):
        train(SupervisedTemplate(**settings(second, plugins=[plugin])), stream(1))


def test_seeds_reproduce_bit_for_bit():
    results = []
    for _ in range(2):
        model = mlp()
        train(LDC(interval=5, **settings(model)), stream())
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("source", ["probe", "sgd"])
def test_early_stopping_and_composition_with_other_methods(source):
    benchmark = stream(2)
    for host in (LwF, Replay):
        model = mlp()
        arguments = settings(model, plugins=[LDCPlugin(source=source, interval=4)])
        own = {"alpha": 1.0, "temperature": 2.0} if host is LwF else {"mem_size": 20}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            train(host(**own, **arguments), benchmark)
        assert torch.isfinite(weights(model)).all()
    model = mlp()
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="train", metric_name="Loss_Stream")
    plugin = LDCPlugin(source=source, interval=4)
    strategy = SupervisedTemplate(**settings(model, plugins=[stop, plugin]))
    plugin.before_training_exp(_just_before_training(strategy, benchmark))
    assert plugin.landscape.task.steps is None  # may stop early: the length is not known


def _just_before_training(strategy, benchmark):
    strategy.experience = benchmark.train_stream[0]
    strategy.dataloader = [0] * 8
    return strategy


class Recorder(nn.Module):
    """Returns fixed logits that require a gradient."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return self.logits.expand(len(x), 6)


def accuracy(model, benchmark, task):
    x, y = zip(*[(x, y) for x, y, *_ in benchmark.test_stream[task].dataset], strict=True)
    with torch.no_grad():
        return float((model(torch.stack(x)).argmax(1) == torch.tensor(y)).double().mean())


def test_the_rehearsal_alone_remembers_classes_that_naive_forgets():
    benchmark = stream(2, growing=True)
    remembered = {}
    for name, plugins in (("naive", []), ("rehearsal", [PseudoRehearsal()])):
        model = mlp(2 * CLASSES)
        train(SupervisedTemplate(**settings(model, train_epochs=10, plugins=plugins)), benchmark)
        assert accuracy(model, benchmark, 1) > 0.9
        remembered[name] = accuracy(model, benchmark, 0)
    assert remembered["naive"] < 0.2
    assert remembered["rehearsal"] > 0.8


def test_the_rehearsal_composes_with_other_methods_and_holds_gaussians_alone():
    benchmark = stream(3)
    ends = {}
    for name, own in (("ewc", []), ("both", [PseudoRehearsal(pseudo_inputs=4, seed=3)])):
        model = mlp()
        plugins = [*own, EWCPlugin(1.0)]
        strategy = SupervisedTemplate(**settings(model, plugins=plugins))
        train(strategy, benchmark)
        ends[name] = weights(model)
        assert torch.isfinite(ends[name]).all()
        assert not model._forward_hooks
    assert not torch.equal(ends["ewc"], ends["both"])
    plugin = plugins[0]
    assert plugin.bytes_held() == plugin.landscape.inputs.bytes_held() == 4 * CLASSES * 9 * INPUTS
    assert plugin.landscape.constraints == {}
    with pytest.raises(OptionError, match="pseudo_inputs is -1"):
        PseudoRehearsal(pseudo_inputs=-1)


def test_pseudo_inputs_ride_along_to_the_heads_of_their_own_tasks():
    riders = []

    class Watched(MultiHead):
        def forward(self, x, task_labels):
            if self.training and len(x) > 8:
                riders.append(task_labels[8:].tolist())
            return super().forward(x, task_labels)

    strategy = train(LDC(**settings(Watched())), stream(3, labels=True))
    assert set(riders[0]) == {0}
    assert set(riders[-1]) <= {0, 1}
    assert {label for labels in riders for label in labels} == {0, 1}
    assert len(riders) == 2 * (1 + 2 * (SAMPLES // 8))  # a trial, then the steps of two epochs
    assert {label for _, label in strategy.ldc.landscape.inputs.groups} == {0, 1, 2}


def test_old_class_offset_lowers_absent_old_classes_in_training_only():
    benchmark = stream(2, growing=True)
    seen = []

    class Watch(OldClassOffset):
        def after_forward(self, strategy, **kwargs):
            before = strategy.mb_output.detach().clone()
            super().after_forward(strategy, **kwargs)
            seen.append((before - strategy.mb_output.detach())[0])

    model = Recorder()
    train(SupervisedTemplate(**settings(model, plugins=[Watch(2.5)])), benchmark)
    first, second = seen[0], seen[-1]
    assert torch.equal(first, torch.zeros(6))
    assert torch.allclose(second, torch.tensor([2.5, 2.5, 0.0, 0.0, 0.0, 0.0]))
    shared = stream(2)
    seen.clear()
    train(SupervisedTemplate(**settings(Recorder(), plugins=[Watch(2.5)])), shared)
    assert all(torch.equal(shift, torch.zeros(6)) for shift in seen)
    with pytest.raises(OptionError, match="offset is -1"):
        OldClassOffset(-1)


def test_callbacks_ldc_relies_on_are_those_that_avalanche_calls():
    supported = {
        n for n in dir(SupervisedTemplate.PLUGIN_CLASS) if n.startswith(("before", "after"))
    }
    own = {n for n in vars(LDCPlugin) if n.startswith(("before", "after"))}
    assert own == {
        "before_training_exp",
        "before_forward",
        "after_forward",
        "before_backward",
        "after_update",
        "after_training_exp",
        "before_eval",
        "after_eval",
    }
    assert own <= supported
