"""Figures of the fluctuation analysis: one function each, onto given axes or new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from flatcl.errors import OptionError

# Okabe and Ito's colours, told apart by colour-blind readers; marks differ too.
_INK = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "os^vDPX"
_SIZE = 14.0

Pairs = Mapping[str, tuple[Tensor, Tensor]]


def plot_spectrum(variances: Tensor, ax: Axes | None = None, *, first: int = 20) -> Axes:
    """Return axes with the variances by rank, and the slopes of a random walk beside them.

    Args:
        variances: σ_i² [k], by falling size, w².
        ax: where to draw; new axes if None.
        first: rank at which the guide of slope −2 begins, Feng & Tu's first of the power law.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    values = _numbers(variances)
    ranks = np.arange(1, len(values) + 1)
    ax.loglog(ranks, values, ".", color=_INK[0], markersize=3, label="measured")
    if len(values) > first:
        guide = ranks[first - 1 :]
        height = values[first - 1] * (guide / first) ** -2.0
        ax.loglog(guide, height, "--", color=_INK[6], lw=1, label="$i^{-2}$, a random walk's")
    ax.set(xlabel="rank $i$", ylabel="variance $σ_i^2$ (w²)", title="Spectrum")
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_trajectory(
    scores: Tensor, ax: Axes | None = None, *, planes: tuple[int, int] = (0, 1)
) -> Axes:
    """Return axes with the trajectory in the plane of two principal directions.

    Args:
        scores: θ_i(t) [T, k], w.
        ax: where to draw; new axes if None.
        planes: the two directions, from 0.

    Returns:
        The axes.

    Raises:
        OptionError: there is no such direction.
    """
    if max(planes) >= scores.shape[1]:
        raise OptionError(f"planes are {planes}; there are {scores.shape[1]} directions")
    ax = _axes(ax)
    x, y = _numbers(scores[:, planes[0]]), _numbers(scores[:, planes[1]])
    time = np.arange(len(x))
    drawn = ax.scatter(x, y, c=time, cmap="viridis", s=2, linewidths=0)
    bar = ax.figure.colorbar(drawn, ax=ax)
    bar.set_label("step")
    ax.ticklabel_format(style="sci", scilimits=(-2, 3), useMathText=True)
    first, second = planes[0] + 1, planes[1] + 1
    ax.set(xlabel=f"$θ_{{{first}}}$ (w)", ylabel=f"$θ_{{{second}}}$ (w)", title="Trajectory")
    return ax


def plot_profiles(
    offsets: Tensor,
    losses: Tensor,
    ax: Axes | None = None,
    *,
    loss: float | None = None,
    labels: Sequence[str] = (),
) -> Axes:
    """Return axes with loss profiles, each over its own displacement.

    Args:
        offsets: [k, n], displacements, w.
        losses: [k, n], nats.
        ax: where to draw; new axes if None.
        loss: L₀, whose e-fold is drawn as a line; nats.
        labels: one a profile.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    for i, (x, y) in enumerate(zip(offsets, losses, strict=True)):
        ax.plot(
            _numbers(x),
            _numbers(y),
            color=_INK[i % len(_INK)],
            lw=1.5,
            label=labels[i] if i < len(labels) else None,
        )
    if loss is not None:
        ax.axhline(np.e * loss, color="0.5", ls=":", lw=1, label="$e·L_0$")
    # Both sides, over the decades between the narrowest and the widest valley.
    narrow = max(1e-12, float(offsets.abs().amax(1).min())) if len(offsets) else 1.0
    ax.set_xscale("symlog", linthresh=narrow, linscale=1.0)
    ax.tick_params(axis="x", labelsize=7)
    ax.set(xlabel="displacement $δθ$ (w)", ylabel="loss (nats)", yscale="log")
    ax.set_title("Loss profiles")
    if labels or loss is not None:
        ax.legend(frameon=False, fontsize=7)
    return ax


def plot_relation(pairs: Pairs, ax: Axes | None = None) -> Axes:
    """Return axes with σ² against F, one mark a setting.

    Args:
        pairs: setting → (F [k], σ² [k]), w and w²; censored widths are NaN and left out.
        ax: where to draw; new axes if None.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    _scatter(ax, pairs)
    ax.set(xlabel="flatness $F$ (w)", ylabel="variance $σ^2$ (w²)", title="Variance and flatness")
    return ax


def plot_stiffness(pairs: Pairs, ax: Axes | None = None) -> Axes:
    """Return axes with measured flatness against LDC's stiffness, and a quadratic's slope.

    Args:
        pairs: layer → (k [n], F [n]), nats/w² and w; censored widths are NaN and left out.
        ax: where to draw; new axes if None.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    _scatter(ax, pairs)
    k = np.concatenate([_numbers(x) for x, _ in pairs.values()])
    F = np.concatenate([_numbers(y) for _, y in pairs.values()])
    good = np.isfinite(F) & (F > 0) & (k > 0)
    if good.any():
        grid = np.geomspace(k[good].min(), k[good].max(), 2)
        middle = np.exp(np.median(np.log(F[good] * k[good] ** 0.5)))
        ax.plot(grid, middle * grid**-0.5, "--", color="0.3", lw=1, label="$F ∝ k^{-1/2}$")
    ax.set(xlabel="stiffness $k$ (nats/w²)", ylabel="flatness $F$ (w)")
    ax.set_title("Stiffness and flatness")
    ax.legend(frameon=False, fontsize=7)
    return ax


def plot_noise(pairs: Pairs, ax: Axes | None = None) -> Axes:
    """Return axes with the minibatch gradient's variance against curvature.

    Args:
        pairs: setting → (h [k], C [k]), nats/w² and nats²/w².
        ax: where to draw; new axes if None.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    _scatter(ax, pairs)
    ax.set(
        xlabel="curvature $h$ (nats/w²)",
        ylabel="gradient noise $C_{ii}$ (nats²/w²)",
        title="Noise and curvature",
    )
    return ax


def plot_times(pairs: Pairs, ax: Axes | None = None, *, lr: float, window: int) -> Axes:
    """Return axes with measured correlation times against curvature, and what theory predicts.

    Args:
        pairs: setting → (h [k], τ [k]), nats/w² and steps.
        ax: where to draw; new axes if None.
        lr: η, for the line 1/(ηh).
        window: T, for the line T/20.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    _scatter(ax, pairs)
    h = np.concatenate([_numbers(x) for x, _ in pairs.values()])
    h = h[np.isfinite(h) & (h > 0)]
    if len(h):
        grid = np.geomspace(h.min(), h.max(), 50)
        ax.plot(grid, 1.0 / (lr * grid), "--", color="0.3", lw=1, label="1/(ηh)")
    ax.axhline(window / 20, color="0.5", ls=":", lw=1, label="T/20")
    ax.set_ylim(1, 100 * window)
    ax.set(xlabel="curvature $h$ (nats/w²)", ylabel="e-fold time $τ$ (steps)")
    ax.set_title("Memory")
    ax.legend(frameon=False, fontsize=7)
    return ax


def plot_annealing(
    loss: Tensor, temperature: Tensor, width: Tensor, ax: Axes | None = None
) -> Axes:
    """Return axes with temperature and flatness as the training loss falls.

    Args:
        loss: [n], nats.
        temperature: T_i [n, k], nats; medians over directions are drawn, and their quartiles.
        width: F_i [n, k], w; NaN where censored.
        ax: where to draw; new axes if None.

    Returns:
        The axes of the temperature; those of the flatness are its twin.
    """
    ax = _axes(ax)
    x = _numbers(loss)
    twin = ax.twinx()
    for axes, values, ink, mark in (
        (ax, _numbers(temperature), _INK[1], "o"),
        (twin, _numbers(width), _INK[0], "s"),
    ):
        low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=1)
        axes.plot(x, middle, color=ink, marker=mark, lw=1.5)
        axes.fill_between(x, low, high, color=ink, alpha=0.2, linewidth=0)
        axes.set_yscale("log")
        _few_labels(axes.yaxis)
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set_xlabel("training loss (nats), falling")
    ax.set_ylabel("temperature $T_i$ (nats), circles", color=_INK[1])
    twin.set_ylabel("flatness $F_i$ (w), squares", color=_INK[0])
    ax.set_title("Through training")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return Figure(figsize=(4.5, 3.4), layout="constrained").subplots()


def _numbers(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().double().cpu().numpy()
    return found


def _scatter(ax: Axes, pairs: Pairs) -> None:
    for i, (name, (x, y)) in enumerate(pairs.items()):
        a, b = _numbers(x), _numbers(y)
        good = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
        ink, mark = _INK[i % len(_INK)], _MARKS[i % len(_MARKS)]
        if good.any():
            ax.scatter(a[good], b[good], s=_SIZE, color=ink, marker=mark, alpha=0.6, linewidths=0)
        ax.plot([], [], mark, color=ink, label=name)
    if not ax.collections:  # nothing at all would leave limits that a logarithm has not
        ax.set(xlim=(0.1, 10.0), ylim=(0.1, 10.0))
    ax.set(xscale="log", yscale="log")
    _few_labels(ax.xaxis)
    _few_labels(ax.yaxis)
    ax.legend(frameon=False, fontsize=7)


def _few_labels(axis: Axis) -> None:
    # Labels of minor ticks would overlap; over less than two decades, 1, 2 and 5 have one.
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=15))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
