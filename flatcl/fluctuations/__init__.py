"""Analysis of weight fluctuations: record, directions, memory, flatness, noise, and the relation.

Where to start: ``Recorder`` while training, ``LossSurface`` around the window's mean weights, and
``Study`` for the whole measurement with its null controls.
"""

from flatcl.fluctuations.along import along, displacements
from flatcl.fluctuations.annealing import Stage, annealing
from flatcl.fluctuations.bases import (
    Directions,
    hessian,
    hessian_directions,
    kronecker_directions,
    random_directions,
)
from flatcl.fluctuations.correlation import (
    autocorrelation,
    effective_samples,
    efold_time,
    fluctuation_dissipation,
    integrated_time,
    mean_squared_displacement,
    stationarity,
    variance_ratio_time,
    whole_stationarity,
)
from flatcl.fluctuations.drift import alignment, linear_drift, without_drift
from flatcl.fluctuations.flatness import Flatness, curvature, flatness, profile
from flatcl.fluctuations.loss import cross_entropy
from flatcl.fluctuations.noise import (
    effective_temperature,
    frozen_walk,
    gradient_noise,
    langevin,
    noise_alone,
    over_noise,
    temperature_profile,
)
from flatcl.fluctuations.panel import Row, relation
from flatcl.fluctuations.pca import (
    PrincipalDirections,
    StreamingDirections,
    principal_directions,
)
from flatcl.fluctuations.powerfit import PowerFit, power_fit
from flatcl.fluctuations.record import Record, Recorder, open_record
from flatcl.fluctuations.relation import VarianceFlatness
from flatcl.fluctuations.spectrum import (
    PowerLaw,
    cosine_overlap,
    participation_ratio,
    power_law,
    variance_share,
)
from flatcl.fluctuations.study import Study
from flatcl.fluctuations.surface import LossSurface
from flatcl.fluctuations.watch import SketchRecorder

__all__ = [
    "Directions",
    "Flatness",
    "LossSurface",
    "PowerFit",
    "PowerLaw",
    "PrincipalDirections",
    "Record",
    "Recorder",
    "Row",
    "SketchRecorder",
    "Stage",
    "StreamingDirections",
    "Study",
    "VarianceFlatness",
    "alignment",
    "along",
    "annealing",
    "autocorrelation",
    "cosine_overlap",
    "cross_entropy",
    "curvature",
    "displacements",
    "effective_samples",
    "effective_temperature",
    "efold_time",
    "flatness",
    "fluctuation_dissipation",
    "frozen_walk",
    "gradient_noise",
    "hessian",
    "hessian_directions",
    "integrated_time",
    "kronecker_directions",
    "langevin",
    "linear_drift",
    "mean_squared_displacement",
    "noise_alone",
    "open_record",
    "over_noise",
    "participation_ratio",
    "power_fit",
    "power_law",
    "principal_directions",
    "profile",
    "random_directions",
    "relation",
    "stationarity",
    "temperature_profile",
    "variance_ratio_time",
    "variance_share",
    "whole_stationarity",
    "without_drift",
]
