"""What ``analysis.json`` says: the numbers beside the panel, the configuration, the versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from flatcl.analysis_options import AnalyzeOptions
from flatcl.fluctuations.along import Part
from flatcl.fluctuations.correlation import whole_stationarity
from flatcl.fluctuations.noise import over_noise
from flatcl.fluctuations.panel import curved
from flatcl.fluctuations.powerfit import PowerFit, power_fit
from flatcl.fluctuations.relation import VarianceFlatness
from flatcl.fluctuations.spectrum import participation_ratio, power_law, variance_share
from flatcl.fluctuations.study import Study
from flatcl.io import finite
from flatcl.trajectory import Trained
from flatcl.versions import commit, versions

_PAPER_FIRST, _PAPER_LAST = 20, 1000  # ranks of the power law, Feng & Tu's from 20 on
_SHARE = 35
_WALK = 0.7  # overlap with a random walk's cosine that flags a direction

Facts = dict[str, "float | int | str | bool | None"]


def spectrum_facts(
    variances: Tensor, total: float, *, cosine: Tensor, cos_mean: float, cos_drift: float
) -> Facts:
    """Return what a trajectory's spectrum and leading directions say.

    Args:
        variances: σ² [k], by falling size, w².
        total: the trajectory's whole variance, w².
        cosine: [20], likeness of the first scores to a random walk's.
        cos_mean: |cos| of the first direction with the mean weights.
        cos_drift: and with the linear drift.

    Returns:
        Name → number, as in ``analysis.json``.
    """
    last = min(_PAPER_LAST, len(variances))
    many = last >= _SHARE  # fewer, of a small layer, give neither a law nor the paper's share
    law = power_law(variances, first=_PAPER_FIRST, last=last) if many else None
    share = variance_share(variances, first=2, last=_SHARE, total=total) if many else None
    return {
        "gamma": None if law is None else law.gamma,
        "gamma_first_rank": None if law is None else law.first,
        "gamma_last_rank": None if law is None else law.last,
        "variance_fraction_pc1": float(variances[0]) / total,
        "variance_fraction_pc2_35": share,
        "participation_ratio": participation_ratio(variances),
        "cos_p1_mean_weights": cos_mean,
        "cos_p1_drift": cos_drift,
        "walk_like_of_20": int((cosine > _WALK).sum()),
    }


def facts_of(
    study: Study, run: Part, trained: Trained, *, epoch_steps: int, options: AnalyzeOptions
) -> Facts:
    """Return the numbers beside the panel: of the spectrum, the noise, and the run.

    Args:
        study: with its parts made.
        run: losses around the window, and its fluctuation–dissipation ratio.
        trained: the network.
        epoch_steps: M.
        options: of the analysis.

    Returns:
        Name → number; lengths in w, times in steps, losses in nats.
    """
    pca = study.principal()
    noise = _noise_law(pca["curvature"], study.noise(), options.seed)
    facts: Facts = {
        "psi_first_rank": options.spacing + 1,
        "psi_last_rank": options.spacing * len(pca["width"]) + 1,
        **spectrum_facts(
            pca["spectrum"],
            float(pca["total"]),
            cosine=pca["cosine"],
            cos_mean=float(pca["cos_mean"][0]),
            cos_drift=float(pca["cos_drift"][0]),
        ),
        "noise_curvature_exponent_pca": None if noise is None else noise.exponent,
        "stationarity": whole_stationarity(study.snapshots),
        "fluctuation_dissipation": float(run["fluctuation_dissipation"]),
        "n_snapshots": len(study.snapshots),
        "epoch_steps": epoch_steps,
        "h_crossover": 3.0 / (options.lr * epoch_steps),
        "epochs": trained.epochs,
        "stop_rule_met": trained.reached,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "loss_at_mean_weights": float(run["loss_at_mean"][0]),
        "loss_at_last_block": float(run["loss_at_last_block"][0]),
        "flatness_loss": float(pca["loss"][0]),
        "flatness_loss_error": float(pca["loss"][1]),
        "flatness_samples": len(study.surface),
        "flatness_censored": int(pca["width"].isnan().sum()),
        "flatness_monotone": bool(pca["monotone"].all()),
    }
    if options.panel:
        part = study.hessian()
        fit = _noise_law(part["curvature"], part["noise"], options.seed)
        facts["noise_curvature_exponent"] = None if fit is None else fit.exponent
        facts["noise_curvature_low"] = None if fit is None else fit.low
        facts["noise_curvature_high"] = None if fit is None else fit.high
        facts["noise_curvature_flat"] = int((~curved(part["curvature"])).sum())
        facts["stationarity_hessian"] = float(part["stationarity"].nanmedian())
        facts["over_noise"] = over_noise(part["variances"], study.noise_alone())
        if study.twin is not None:
            facts["over_noise_replacement"] = over_noise(
                study.twin_hessian()["variances"], study.noise_alone(sampling="replacement")
            )
        facts["walk_like_of_20_null"] = int((study.walk()["cosine"] > _WALK).sum())
        facts["hessian_top"] = float(part["eigenvalues"][0])
        facts["hessian_negative"] = float(part["eigenvalues"].clamp_max(0).abs().max())
    return facts


def _noise_law(curvatures: Tensor, noise: Tensor, seed: int) -> PowerFit | None:
    steep = curved(curvatures)  # of a dead unit's weights both are rounding
    return power_fit(curvatures[steep], noise[steep], seed=seed)


def summary_of(relation: VarianceFlatness, options: AnalyzeOptions) -> dict[str, Any]:
    """Return the content of ``analysis.json``.

    Args:
        relation: the panel, with its facts.
        options: of the analysis.

    Returns:
        JSON-ready; what is not a number is None.
    """
    content = relation.to_dict()

    def psi(name: str) -> float | None:
        row = relation.rows.get(name)
        return None if row is None else row.psi

    main = relation.rows["pca"]
    facts = relation.facts
    first = "noise_curvature_exponent"
    return {
        "psi": main.psi,
        "psi_ci95": None if main.psi_ci95 is None else list(main.psi_ci95),
        "psi_fit_range": [facts["psi_first_rank"], facts["psi_last_rank"]],
        "psi_hessian": psi("hessian"),
        "psi_random_walk": psi("walk"),
        "psi_langevin": psi("langevin"),
        **{name: finite(value) for name, value in facts.items()},
        first: facts.get(first, facts["noise_curvature_exponent_pca"]),
        "verdict": relation.verdict(),
        "relation": content,
        "config": json.loads(json.dumps(asdict(options))),
        "versions": dict(versions()),
        "commit": commit(),
    }


def points_of(arrays: dict[str, Part]) -> dict[str, dict[str, Any]]:
    """Return every part's numbers along its directions, without the directions themselves.

    Args:
        arrays: the analysis's parts.

    Returns:
        JSON-ready: part → name → list; what is not a number is None.
    """
    return {
        part: {
            name: finite(t.tolist())
            for name, t in content.items()
            if not name.endswith(("directions", "scores"))  # of the size of weights, of snapshots
        }
        for part, content in arrays.items()
    }
