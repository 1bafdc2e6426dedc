"""One run of ``flatcl generalize``: a network trained with one knob turned, and its gap."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flatcl.duality import Decomposition, Gap, generalization_gap
from flatcl.errors import NonFiniteError
from flatcl.fluctuations.ranking import rank_correlation
from flatcl.generalize_settings import VERSION, Setting
from flatcl.generalize_training import Sets, fit_network, load_sets
from flatcl.io import finite
from flatcl.seeds import derive_seed

SHARP = 10  # directions of the largest curvature that stand for the sharp ones
NUMBERS = (
    "train_loss", "test_loss", "gap", "matched_gap", "second_gap", "random_gap", "sharpness",
    "size", "product", "correlation", "correlation_null", "sharpness_top", "size_top", "ratio",
    "ratio_top", "ratio_null", "share_top", "share_of_means", "correlation_spread",
    "rank_correlation_curvature", "first_order", "second_order", "expansion_error",
    "identity_error", "without_dual", "flat", "weight_norm", "trace", "margin",
)  # fmt: skip
"""What is told of a run, None where it is no number."""

PROFILE = (
    "rank", "curvature", "sharpness", "size", "correlation", "null_correlation", "ratio",
    "null_ratio", "contribution",
)  # fmt: skip
"""And of its directions, a number a bin."""

_BINS = 30  # of ranks, evenly in their logarithm: a profile's points


def measure(setting: Setting) -> dict[str, Any]:
    """Return the record of one run: numbers, and profiles over the directions.

    Args:
        setting: of the run.

    Returns:
        What JSON holds; ``status`` is "done" or "diverged".
    """
    begun = time.perf_counter()
    record: dict[str, Any] = {"version": VERSION, "setting": asdict(setting)}
    sets = load_sets(setting)
    try:
        fitted = fit_network(setting, sets)
    except NonFiniteError as error:
        return {**record, "status": "diverged", "error": str(error)}
    trained = time.perf_counter()
    layer = str(2 * (len(setting.hidden) - 1))
    seed = derive_seed(setting.seed, "null")
    found = generalization_gap(
        fitted.network,
        layer,
        (sets.x, sets.y),
        (sets.z, sets.t),
        generator=torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        right = float((fitted.network(sets.z).argmax(1) == sets.t).float().mean())
    record |= {
        "status": "done",
        "epochs": fitted.epochs,
        "fitted_loss": fitted.loss,
        "reached": fitted.reached,
        "accuracy": right,
        "numbers": numbers_of(found) | measures_of(fitted.network, found, sets),
        "profile": profile_of(found),
        "seconds": {"train": trained - begun, "measure": time.perf_counter() - trained},
    }
    return finite(record)  # type: ignore[return-value]  # a dict stays one


def numbers_of(found: Gap) -> dict[str, float]:
    """Return the numbers of a decomposition.

    Args:
        found: the gap.

    Returns:
        By name; losses and gaps in nats, sharpness in nats/w, size in w.
    """
    nearest = found.matched["nearest"]
    d = nearest.decomposition
    top = slice(0, SHARP)
    relative = d.sharpness[: len(found.curvature) - found.flat]
    relative = relative / d.size[: len(relative)]
    ranks = rank_correlation(relative, found.curvature[: len(relative)], least=2)
    return {
        "train_loss": found.train_loss,
        "test_loss": found.test_loss,
        "gap": found.gap,
        "matched_gap": nearest.gap,
        "second_gap": found.matched["second"].gap,
        "random_gap": found.matched["random"].gap,
        "sharpness": _total(d.sharpness),
        "size": _total(d.size),
        "product": float((d.sharpness * d.size).sum()),
        "correlation": d.overall_correlation,
        "correlation_null": float(d.null_correlation.nanmean()),
        "sharpness_top": _total(d.sharpness[top]),
        "size_top": _total(d.size[top]),
        "ratio": d.overall_ratio,
        "ratio_top": float(d.ratio[top].mean()),
        "ratio_null": float(d.null_ratio[top].mean()),
        "share_top": float(d.contribution[top].sum()) / d.total if d.total else math.nan,
        "share_of_means": d.of_means / d.total if d.total else math.nan,
        "correlation_spread": _spread(d.correlation[: len(relative)]),
        "rank_correlation_curvature": math.nan if ranks is None else ranks,
        "first_order": nearest.first_order,
        "second_order": nearest.second_order,
        "expansion_error": nearest.expansion_error,
        "identity_error": nearest.error,
        "without_dual": nearest.without + nearest.tiny,
        "flat": found.flat,
    }


def measures_of(network: nn.Sequential, found: Gap, sets: Sets) -> dict[str, float]:
    """Return standard measures of a network, to hold the duality's against.

    Args:
        network: trained.
        found: its gap, for the curvature.
        sets: its images.

    Returns:
        ``weight_norm`` |w| of all layers, w; ``trace`` of the layer's Hessian, nats/w²;
        ``margin``, the median over training images of the logit of the class less the largest
        other, over the product of the layers' Frobenius norms.
    """
    norms = [float(p.detach().norm()) for p in network.parameters()]
    with torch.no_grad():
        logits = network(sets.x)
    own = logits.gather(1, sets.y[:, None])
    others = logits.scatter(1, sets.y[:, None], -math.inf).amax(1, keepdim=True)
    return {
        "weight_norm": math.hypot(*norms),
        "trace": float(found.curvature.sum()),
        "margin": float((own - others).median()) / math.prod(norms),
    }


def profile_of(found: Gap) -> dict[str, list[float]]:
    """Return the factors over the directions, pooled over ranks.

    Args:
        found: the gap.

    Returns:
        ``rank`` (from 1, geometric mean of a bin), ``curvature``, ``sharpness``, ``size``,
        ``correlation``, ``null_correlation``, ``ratio``, ``null_ratio`` and ``contribution`` (a
        sum), a number a bin; the last bin holds all flat directions.
    """
    d: Decomposition = found.matched["nearest"].decomposition
    n = len(found.curvature)
    steep = max(1, n - found.flat)
    edges = sorted({round(steep ** (i / _BINS)) for i in range(_BINS + 1)} | {0, steep, n})
    columns = {
        "rank": torch.arange(1, n + 1).double().log(),
        "curvature": found.curvature,
        "sharpness": d.sharpness,
        "size": d.size,
        "correlation": d.correlation,
        "null_correlation": d.null_correlation,
        "ratio": d.ratio,
        "null_ratio": d.null_ratio,
    }
    bins = [slice(low, high) for low, high in pairwise(edges)]
    profile = {
        name: [float(values[part].nanmean()) for part in bins] for name, values in columns.items()
    }
    profile["rank"] = [math.exp(value) for value in profile["rank"]]
    profile["contribution"] = [float(d.contribution[part].sum()) for part in bins]
    return profile


def _total(values: Tensor) -> float:
    return float(values.square().sum().sqrt())


def _spread(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else math.nan
