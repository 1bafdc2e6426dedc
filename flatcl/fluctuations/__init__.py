"""Analysis of weight fluctuations: principal directions of a trajectory and their spectrum."""

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
    "cosine_overlap",
    "participation_ratio",
    "power_law",
    "principal_directions",
    "variance_share",
]
