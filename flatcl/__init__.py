"""flatcl: networks that keep learning without forgetting (landscape-dependent constraints).

Names are loaded on first use, so that ``import flatcl`` costs nothing and needs neither
torch nor Avalanche.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from flatcl.errors import (
    DataError,
    FlatclError,
    HostError,
    NonFiniteError,
    OptionError,
    StateError,
)

if TYPE_CHECKING:
    from flatcl.analysis import analyze as analyze
    from flatcl.analysis_options import AnalyzeOptions as AnalyzeOptions
    from flatcl.core.engine import Landscape as Landscape
    from flatcl.core.fit import fit as fit
    from flatcl.core.forecast import Forecast as Forecast
    from flatcl.core.options import LDCOptions as LDCOptions
    from flatcl.experiments import CompareOptions as CompareOptions
    from flatcl.experiments import compare as compare

__version__ = "0.1.0"

_LAZY = {
    "Landscape": "flatcl.core.engine",
    "fit": "flatcl.core.fit",
    "Forecast": "flatcl.core.forecast",
    "LDCOptions": "flatcl.core.options",
    "CompareOptions": "flatcl.experiments",
    "compare": "flatcl.experiments",
    "AnalyzeOptions": "flatcl.analysis_options",
    "analyze": "flatcl.analysis",
}

__all__ = [
    "AnalyzeOptions",
    "CompareOptions",
    "DataError",
    "FlatclError",
    "Forecast",
    "HostError",
    "LDCOptions",
    "Landscape",
    "NonFiniteError",
    "OptionError",
    "StateError",
    "__version__",
    "analyze",
    "compare",
    "fit",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'flatcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
