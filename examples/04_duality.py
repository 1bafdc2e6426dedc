# %% [markdown]
# Where does a network's generalisation gap come from? Every test image is, for a layer, an exact
# move of its weights away from the nearest training image. Split the gap along the directions of
# the layer's Hessian into how sharp the loss is there and how far the weights are moved.

# %%
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from flatcl.duality import DualLayer, dual_moves, generalization_gap, nearest_pairs

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
x, y = torch.tensor(digits.data).double() / 16, torch.tensor(digits.target)
train, test = (x[:1000], y[:1000]), (x[1000:], y[1000:])
layers = [nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10)]
model = nn.Sequential(*layers).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(100):
    for chosen in torch.randperm(1000).split(25):
        optimizer.zero_grad()
        cross_entropy(model(train[0][chosen]), train[1][chosen]).backward()
        optimizer.step()

# %% One layer, one pair: the test image's loss is the training image's, at moved weights.
layer = DualLayer(model, "2")
pairs = nearest_pairs(*test, *train)
a, b = layer.activity(train[0][pairs.train]), layer.activity(test[0])
moves = dual_moves(layer.weight, a, b)
shifted = layer.losses(train[0][pairs.train], test[1], moves.shift)
assert torch.allclose(shifted, layer.losses(*test), atol=1e-10)
size = moves.norms().mean() / layer.weight.norm()
print(f"{len(moves)} dual moves, on average {size:.1%} of the weights' norm")

# %% The gap, with random and second-nearest partners beside the nearest.
gap = generalization_gap(model, "2", train, test)
print(gap)
nearest = gap.matched["nearest"].decomposition
assert abs(float(nearest.contribution.sum()) - nearest.total) < 1e-10  # an identity, no evidence

# %% The figure: sharpness and size by falling curvature, and what is a direction's own.
figure = Figure(figsize=(9, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
ranks = torch.arange(1, len(gap.curvature) + 1)
left.loglog(ranks, nearest.sharpness, ".", label="sharpness $σ_{g,n}$ (nats/w)")
left.loglog(ranks, nearest.size, ".", label="size $σ_{w,n}$ (w)")
left.legend(frameon=False)
right.semilogx(ranks, nearest.ratio, ".", label="$r_n$")
right.axhline(nearest.overall_ratio, color="#777777", ls="--", label="all directions together")
right.axhline(1.0, color="#000000", lw=0.8, label="null: s dealt anew")
right.legend(frameon=False)
for ax in (left, right):
    ax.set_xlabel("direction, by falling curvature")
path = Path(tempfile.mkdtemp()) / "duality.png"
figure.savefig(path, dpi=120)
print(path)
