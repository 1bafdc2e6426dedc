"""Analysis of weight fluctuations: principal directions of a trajectory, spectrum, and memory."""

from flatcl.fluctuations.correlation import (
    autocorrelation,
    effective_samples,
    efold_time,
    fluctuation_dissipation,
    integrated_time,
    mean_squared_displacement,
    stationarity,
    variance_ratio_time,
)
from flatcl.fluctuations.pca import (
    PrincipalDirections,
    StreamingDirections,
    principal_directions,
)
from flatcl.fluctuations.spectrum import (
    PowerLaw,
    cosine_overlap,
    participation_ratio,
    power_law,
    variance_share,
)

__all__ = [
    "PowerLaw",
    "PrincipalDirections",
    "StreamingDirections",
    "autocorrelation",
    "cosine_overlap",
    "effective_samples",
    "efold_time",
    "fluctuation_dissipation",
    "integrated_time",
    "mean_squared_displacement",
    "participation_ratio",
    "power_law",
    "principal_directions",
    "stationarity",
    "variance_ratio_time",
    "variance_share",
]
