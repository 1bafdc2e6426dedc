"""Start from a pretrained model: hold what it can do, then teach it another task."""

# %% Scikit-learn's digits, as they are and with their pixels permuted.
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import flatcl

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
x = (x - x.mean()) / x.std()
y = torch.tensor(digits.target)
permuted = x[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]
train, test = slice(0, 1400), slice(1400, None)


def epochs(model, optimizer, inputs, number, landscape=None):
    for _ in range(number):
        for chosen in torch.randperm(1400).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[chosen]), y[chosen])
            if landscape:
                loss = loss + landscape.rehearsal()
            loss.backward()
            optimizer.step()
            if landscape:
                landscape.step()


@torch.no_grad()
def accuracy(model, inputs):
    return float((model(inputs[test]).argmax(1) == y[test]).float().mean())


# %% A model that somebody else has trained, without LDC.
pretrained = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
epochs(pretrained, torch.optim.SGD(pretrained.parameters(), lr=0.05), x, 10)
print(f"pretrained: {accuracy(pretrained, x):.1%}")

# %% Plain fine-tuning on the second task.
plain = copy.deepcopy(pretrained)
epochs(plain, torch.optim.SGD(plain.parameters(), lr=0.05), permuted, 10)

# %% The same with LDC: `fit` needs some inputs of the old task once, no targets and no training.
held = copy.deepcopy(pretrained)
optimizer = torch.optim.SGD(held.parameters(), lr=0.05)
landscape = flatcl.fit(held, [x[train][torch.randperm(1400)]], optimizer=optimizer)
landscape.begin_task()
epochs(held, optimizer, permuted, 10, landscape)
landscape.end_task([permuted[train][torch.randperm(1400)]])

# %% The old skill is kept, and its loss in nats was forecast without its data.
for name, model in (("plain", plain), ("with LDC", held)):
    print(f"{name:9s} old {accuracy(model, x):.1%}, new {accuracy(model, permuted):.1%}")
forecast = landscape.forecast()
with torch.no_grad():
    then, now = (m(x[test]).log_softmax(1) for m in (pretrained, held))
measured = float(nn.functional.kl_div(now, then, log_target=True, reduction="batchmean"))
print(f"old outputs: predicted rise {forecast.rises[0]:.3f} nats, measured {measured:.3f}")
print(f"trusted: {forecast.trusted}. {forecast.reason}".rstrip())

assert accuracy(held, x) > accuracy(plain, x) + 0.02
assert accuracy(held, permuted) > 0.85
assert 0.2 < forecast.rises[0] / measured < 5
