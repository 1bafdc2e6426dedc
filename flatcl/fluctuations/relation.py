"""The variance–flatness relation σ² ∝ F^(−ψ) and the controls beside it.

ψ alone proves nothing: principal directions of a finite window blend curvatures, and noise that
grows with curvature makes a random walk's variance grow with it too. A result therefore always
carries its controls, and its verdict is drawn from them. Sources: Feng & Tu, PNAS 118 (2021), for
ψ; for the objections Antognini & Sohl-Dickstein, NeurIPS 2018; Kühn & Rosenow, arXiv:2306.05300.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flatcl.errors import DataError
from flatcl.fluctuations.panel import SETTINGS, Row
from flatcl.fluctuations.powerfit import PowerFit
from flatcl.io import finite, write_json
from flatcl.tables import markdown_table

VERSION = 1
_EQUILIBRIUM = -2.0
_NEAR = 0.25  # of the control's exponent to theory's, beyond its interval
_STATIONARY = 1.25  # σ²(T) over σ²(T/2): 1 if stationary, 2 for a walk
_RATIOS = {
    "stationarity": "of all weights together",
    "stationarity_hessian": "in the median of the Hessian's eigenvectors",
}


@dataclass(frozen=True)
class VarianceFlatness:
    """The relation with all its controls.

    Attributes:
        rows: settings of the panel, by name.
        facts: numbers beside them: of the spectrum, of the noise, of the run; None where unknown.
    """

    rows: dict[str, Row]
    facts: dict[str, float | int | str | bool | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the table and the verdict."""
        return f"{self.table()}\n\n{self.verdict()}"

    def table(self) -> str:
        """Return the panel as one Markdown table.

        Returns:
            Lines without a newline at the end.
        """
        header = ["setting", "ψ (σ² ∝ F^−ψ) [95 %]", "2k (σ² ∝ h^k)", "rank corr. σ², F"]
        header += ["permuted p", "directions", "censored", "decades of F"]
        lines = []
        for name, row in self.rows.items():
            fit, other = row.flatness, row.curvature
            lines.append([
                SETTINGS[name],
                "too few" if fit is None else fit.text(-1.0),
                "–" if other is None else f"{2 * other.exponent:.2f}",
                "–" if fit is None else f"{fit.spearman:.2f}",
                "–" if fit is None else f"{fit.p_value:.4f}",
                f"{0 if fit is None else fit.n} of {row.directions}",
                str(row.censored),
                "–" if fit is None else f"{fit.decades:.1f}",
            ])  # fmt: skip
        return markdown_table(header, lines)

    def verdict(self) -> str:
        """Return what the panel supports, in words.

        Returns:
            A few sentences; each rests on rows of the table.
        """
        said = [_sign(self.rows.get("pca"))]
        said.append(_against_walk(self.rows.get("pca"), self.rows.get("walk")))
        said.append(_stationary(self.rows.get("hessian_predicted")))
        said.append(_control(self.rows.get("langevin"), self.rows.get("langevin_pca")))
        said.append(_held(self.facts.get("over_noise"), self.facts.get("over_noise_replacement")))
        said += [_moving(self.facts.get(name), of) for name, of in _RATIOS.items()]
        said.append(_flat(self.rows.get("hessian")))
        return " ".join(sentence for sentence in said if sentence)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Return the path after writing the result as JSON.

        Args:
            path: the file.

        Returns:
            The path.
        """
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, object]:
        """Return the result as numbers, strings, lists and dicts.

        Returns:
            What ``from_dict`` takes.
        """
        rows = [finite(asdict(row)) for row in self.rows.values()]
        return {"version": VERSION, "rows": rows, "facts": finite(dict(self.facts))}

    @classmethod
    def from_dict(cls, content: object) -> VarianceFlatness:
        """Return a result from what ``to_dict`` made.

        Args:
            content: the dict.

        Returns:
            The result.

        Raises:
            DataError: it is no such dict, or of another version.
        """
        if not isinstance(content, Mapping):
            raise DataError(f"no variance–flatness result but a {type(content).__name__}")
        try:
            if content["version"] != VERSION:
                raise DataError(
                    f"the result has version {content['version']!r}, this flatcl reads {VERSION}"
                )
            rows = [
                Row(
                    r["name"], _fit(r["flatness"]), _fit(r["curvature"]), r["censored"],
                    r["directions"], r.get("flat", 0),
                )
                for r in content["rows"]
            ]  # fmt: skip
            unknown = [row.name for row in rows if row.name not in SETTINGS]
            if unknown:
                raise DataError(f"the result has unknown settings {', '.join(map(str, unknown))}")
            return cls({row.name: row for row in rows}, dict(content["facts"]))
        except DataError:
            raise
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise DataError(
                f"no variance–flatness result ({error}): save one with save()"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VarianceFlatness:
        """Return the result that a file holds.

        Args:
            path: written by ``save``.

        Returns:
            The result.

        Raises:
            DataError: the file cannot be read, or holds no result.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{os.fspath(path)!r} holds no result ({error}): save() one") from error
        return cls.from_dict(content)


def _fit(content: Mapping[str, float | None] | None) -> PowerFit | None:
    if content is None:
        return None
    whole = {name: math.inf if value is None else value for name, value in content.items()}
    n = int(whole.pop("n"))
    return PowerFit(n=n, **whole)


def _sign(row: Row | None) -> str:
    if row is None or row.psi is None or row.psi_ci95 is None:
        return "Too few directions for an exponent."
    low, high = row.psi_ci95
    text = f"ψ = {row.psi:.2f} [{low:.2f}, {high:.2f}] in principal directions"
    if low > 0:
        return f"{text}: an inverse relation, larger variance where the valley is narrower."
    if high < 0:
        return f"{text}: the sign of equilibrium, larger variance where the valley is wider."
    return f"{text}: no relation beyond its error."


def _against_walk(row: Row | None, walk: Row | None) -> str:
    if row is None or walk is None or row.psi_ci95 is None or walk.psi_ci95 is None:
        return ""
    (low, high), (least, most) = row.psi_ci95, walk.psi_ci95
    text = f"Noise at frozen weights, with no landscape to hold it, gives ψ = {walk.psi:.2f}"
    if most < low:
        return f"{text}: less, so that the relation is not the noise's alone."
    if least > high:
        return f"{text}: more, so that the landscape weakens the relation instead of making it."
    if least > 0:
        return f"{text}: this ψ is no evidence of a force, noise in a finite window suffices."
    return f"{text}: not told apart from it."


def _stationary(row: Row | None) -> str:
    if row is None:
        return ""
    if row.flatness is None or row.psi_ci95 is None:
        width = f", {row.censored} of them without a width" if row.censored else ""
        return (
            f"Of the Hessian directions measured {row.directions} relax within the window "
            f"(predicted τ < T/20){width}: too few to test the stationary relation."
        )
    low, high = row.psi_ci95
    text = (
        f"In the {row.flatness.n} Hessian directions that relax within the window ψ = "
        f"{row.psi:.2f} [{low:.2f}, {high:.2f}]"
    )
    if low > 0:
        return f"{text}: an inverse relation of the stationary state."
    if high < 0:
        return f"{text}: the sign of equilibrium."
    return f"{text}: none beyond its error."


def _held(ratio: object, replacement: object) -> str:
    if not isinstance(ratio, float) or not math.isfinite(ratio):
        return ""
    text = (
        f"In the ten sharpest Hessian directions σ² is {ratio:.2g} of what this noise gives "
        "without a force"
    )
    if isinstance(replacement, float) and math.isfinite(replacement):
        text += f", and with replacement {replacement:.2g}"
    return f"{text}; below 1 the landscape holds them."


def _moving(ratio: object, of: str) -> str:
    if not isinstance(ratio, float) or not ratio > _STATIONARY:
        return ""
    return (
        f"The window is not stationary: σ²(T)/σ²(T/2) is {ratio:.2f} {of} (1 if stationary, 2 for "
        "a walk)."
    )


def _flat(row: Row | None) -> str:
    if row is None or not row.flat:
        return ""
    return (
        f"{row.flat} of {row.directions} Hessian directions have no curvature beyond rounding, as "
        "those of dead units, and are left out of fits against it."
    )


def _control(langevin: Row | None, blended: Row | None) -> str:
    if langevin is None or langevin.psi_ci95 is None or langevin.curvature is None:
        return ""
    low, high = langevin.psi_ci95
    k = langevin.curvature
    text = f"The Langevin control gives ψ = {langevin.psi:.2f} where theory has −2"
    if not _equilibrium(low, high):
        if _equilibrium(2 * k.low, 2 * k.high):
            text += (
                f", and 2k = {2 * k.exponent:.2f} against the curvature: the variances are right, "
                "but F is not ∝ h^(−1/2), as the valleys are no parabolas out to their e-fold"
            )
        else:
            text += ", so that the measurement itself is in doubt"
    if blended is not None and blended.psi is not None:
        text += f" ({blended.psi:.2f} in its principal directions)"
    return f"{text}."


def _equilibrium(low: float, high: float) -> bool:
    return low - _NEAR <= _EQUILIBRIUM <= high + _NEAR
