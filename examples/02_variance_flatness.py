# %% [markdown]
# How large are the fluctuations of SGD where the valley is narrow? Record the weights of a layer
# while it trains on, measure variance and flatness along its principal directions, and see what
# the null controls make of the relation.

# %%
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from flatcl.fluctuation_plots import plot_relation, plot_spectrum
from flatcl.fluctuations import LossSurface, Recorder, Study, VarianceFlatness, open_record

torch.manual_seed(0)
torch.set_num_threads(1)
LR, BATCH, STEPS = 0.1, 50, 2000
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float64)[:1000]
x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)[:1000]
layers = [nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10)]
model = nn.Sequential(*layers).double()
optimizer = torch.optim.SGD(model.parameters(), lr=LR)


def train(steps, after_step=lambda: None):
    order = torch.randperm(len(x))
    for step in range(steps):
        i = step * BATCH % len(x)
        if i == 0:
            order = torch.randperm(len(x))
        chosen = order[i : i + BATCH]
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        after_step()


# %% Train, then record one layer's weights at every step.
train(4000)
folder = Path(tempfile.mkdtemp())
total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
with Recorder(model, folder / "run", parameters="2.weight", epoch_steps=len(x) // BATCH) as record:

    def watch():
        record.step()
        for name, p in model.named_parameters():
            total[name] += p.detach() / STEPS

    train(STEPS, watch)

# %% The loss around the window's mean weights, and everything that is measured there.
model.load_state_dict(total)
surface = LossSurface(model, x, y, parameters="2.weight")
study = Study(
    open_record(folder / "run").weights(), surface, surface, LR, BATCH, directions=40, spacing=4
)
found = VarianceFlatness({row.name: row for row in study.rows()})
print(found)
found.save(folder / "relation.json")

# %% The figure: the same relation with and without a landscape to hold the weights.
figure = Figure(figsize=(9, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
pca, walk = study.principal(), study.walk()
plot_spectrum(pca["spectrum"], left)
shown = {"SGD": pca, "null: the same noise, no force": walk, "Hessian": study.hessian()}
plot_relation({name: (part["width"], part["variances"]) for name, part in shown.items()}, right)
figure.savefig(folder / "variance_flatness.png", dpi=120)
print(folder / "variance_flatness.png")

assert found.rows["pca"].psi > 0  # narrow directions fluctuate more …
assert found.rows["walk"].psi > 0  # … and so they do without any force
assert abs(found.rows["langevin"].psi + 2) < 0.5  # equilibrium has the other sign
assert VarianceFlatness.load(folder / "relation.json").rows == found.rows
