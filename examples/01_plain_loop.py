"""LDC in a plain PyTorch loop: two tasks on scikit-learn's digits, with and without it."""

# %% Two tasks: the digits as they are, then with their pixels permuted.
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatcl import Landscape, LDCOptions

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
x = (x - x.mean()) / x.std()
y = torch.tensor(digits.target)
permutation = torch.randperm(64, generator=torch.Generator().manual_seed(1))
train, test = slice(0, 1400), slice(1400, None)
tasks = [x, x[:, permutation]]


# %% One training loop; what LDC needs is what has `landscape` in it. Strength 0 is plain SGD.
def train_both(use_ldc: bool) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = LDCOptions() if use_ldc else LDCOptions(strength=0.0)
    landscape = Landscape(model, optimizer, options=options)
    for inputs in tasks:
        data = TensorDataset(inputs[train], y[train])
        shuffled = DataLoader(data, batch_size=32, shuffle=True)
        landscape.begin_task()
        for _ in range(10):
            for xb, yb in shuffled:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(xb), yb) + landscape.rehearsal()
                loss.backward()
                optimizer.step()
                landscape.step()
        landscape.end_task(shuffled)
    with torch.no_grad():
        return [float((model(t[test]).argmax(1) == y[test]).float().mean()) for t in tasks]


# %% The first task is remembered, the second learned.
plain, held = train_both(use_ldc=False), train_both(use_ldc=True)
for name, accuracy in (("plain SGD", plain), ("with LDC", held)):
    print(f"{name:10s} first task {accuracy[0]:.1%}, second task {accuracy[1]:.1%}")
assert held[0] > plain[0]
assert held[1] > 0.8
