"""What a record alone tells, without the network: spectrum, drift, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flatcl.analysis_kept import claim_record
from flatcl.analysis_summary import spectrum_facts
from flatcl.errors import DataError
from flatcl.fluctuations.along import displacements
from flatcl.fluctuations.correlation import efold_time, whole_stationarity
from flatcl.fluctuations.drift import alignment, linear_drift
from flatcl.fluctuations.pca import principal_directions
from flatcl.fluctuations.record import open_record
from flatcl.fluctuations.spectrum import cosine_overlap
from flatcl.io import finite, write_json
from flatcl.tables import markdown_table
from flatcl.versions import commit, versions

_DIRECTIONS, _SHARE, _LEADING = 200, 35, 20
_LEAST = 50


def analyze_record(path: str | Path, out: Path) -> tuple[dict[str, Any], str]:
    """Return the numbers of a record and a table of them; ``analysis.json`` is written too.

    Args:
        path: of the record.
        out: folder to write to.

    Returns:
        JSON-ready numbers, None where they need the network; and the table.

    Raises:
        DataError: the record has too few snapshots or weights.
    """
    record = open_record(path)
    claim_record(out, path)
    quantity = record.quantities[0]
    snapshots = {"weights": record.weights, "increments": record.increments}.get(
        quantity, record.gradients
    )()
    T, P = snapshots.shape
    if min(T - 1, P) < _LEAST:
        raise DataError(f"{T} snapshots of {P} weights: an analysis needs more than {_LEAST} each")
    found = principal_directions(snapshots, min(_DIRECTIONS, T - 1, P))
    variances = found.variances
    if len(variances) <= _SHARE:
        raise DataError(f"the record has only {len(variances)} directions of any variance")
    leading = found.directions[:_LEADING].double()
    theta = displacements(snapshots, leading)
    numbers: dict[str, Any] = {
        "psi": None,
        "psi_ci95": None,
        "quantity": quantity,
        "n_snapshots": T,
        "n_weights": P,
        **spectrum_facts(
            variances,
            found.total,
            cosine=cosine_overlap(theta),
            cos_mean=float(alignment(leading[:1], found.mean.double())[0]),
            cos_drift=float(alignment(leading[:1], linear_drift(snapshots))[0]),
        ),
        "stationarity": whole_stationarity(snapshots),
        "efold_time_median": float(torch.median(efold_time(theta))) * record.every,
        "facts": dict(record.facts),
        "versions": dict(versions()),
        "commit": commit(),
    }
    numbers = {name: finite(value) for name, value in numbers.items()}
    write_json(out / "analysis.json", numbers)
    rows = [
        [name, f"{value:.4g}" if isinstance(value, float) else str(value)]
        for name, value in numbers.items()
        if isinstance(value, int | float | str)
    ]
    return numbers, markdown_table(["quantity", "value"], rows)
