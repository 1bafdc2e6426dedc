"""LDC in Avalanche: replace `EWC(...)` by `LDC(...)`, and forget less."""

# %% A stream of three permuted tasks on scikit-learn's digits; any Avalanche benchmark serves.
import torch
from torch import nn

from flatcl.avalanche import LDC
from flatcl.data import load_images
from flatcl.evaluation import accuracy_row
from flatcl.streams import StreamOptions, fast, make_stream

from avalanche.logging import BaseLogger  # isort: skip
from avalanche.training import EWC  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip

benchmark = make_stream(load_images("digits"), StreamOptions(tasks=3), seed=0).benchmark


# %% The same script for both strategies: LDC ignores what EWC had to be told.
def last_accuracies(strategy_class: type, **own: float) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    strategy = fast(strategy_class)(  # `fast` feeds whole minibatches; without it, the same
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=5,
        evaluator=EvaluationPlugin(loggers=[BaseLogger()]),
        **own,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return accuracy_row(model, benchmark.test_stream, device="cpu")


# %% Mean accuracy over all tasks after the last. EWC's λ is one that was not tuned here; the
# README's table has it with its best, chosen by `flatcl compare`.
ewc, ldc = last_accuracies(EWC, ewc_lambda=10.0), last_accuracies(LDC)
for name, row in (("EWC", ewc), ("LDC", ldc)):
    print(f"{name}: {' '.join(f'{a:.1%}' for a in row)}, mean {sum(row) / len(row):.1%}")
assert sum(ldc) > sum(ewc)
