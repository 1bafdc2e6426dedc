"""The options of LDC: one default that is meant to need no choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from flatcl.core.choice import BasisOption, checked
from flatcl.errors import OptionError

Source = Literal["probe", "fisher", "sgd"]
Directions = Literal["fluctuation", "fisher", "random"]
OnBudget = Literal["stop", "strengthen"]
STIFFNESSES = ("variance", "equal", "isotropic", "shuffled", "flipped")

SHARING = 0.5  # measured: benchmarks/DEFAULTS.md
_LARGEST = 1e20  # in the pull, a strength is multiplied by what may be large too, in float32
_PSEUDO_INPUTS = 8  # benchmarks/FRONT.md has 16 and 32


@dataclass(frozen=True, kw_only=True)
class LDCOptions:
    """How LDC measures stiffness and holds it. The defaults were chosen once, by measurement.

    Attributes:
        strength: γ, weight of one old task's constraint against the new task's loss (no unit:
            both are in nats); t old tasks together weigh γ √t, see ``strength_over``. It means the
            same for every batch size, learning rate and optimiser. 0 switches everything off.
        pseudo_inputs: draws a step from Gaussians of the earlier tasks' inputs, at which
            ``Landscape.rehearsal`` compares the network with what it was when the task began; see
            ``flatcl.core.rehearsal``. None is 8, or 0 where strength is 0.
            0 for none; none either where inputs are no tensor of real numbers, or with
            ``source="sgd"``, which reads no inputs.
        interval: steps from one pull to the next, at most; fewer at learning rates at which one
            pull would take back too many directions, see ``flatcl.core.pull``.
        source: "probe" measures stiffness at a task's end by random output directions over some
            of the task's inputs; "fisher" does so by the loss's own gradients, with labels drawn
            from the network's predictions (softmax, or a sigmoid for one output), which is the
            Fisher matrix and the Gauss–Newton Hessian; "sgd" reads it from the training gradients
            of the task's last 20 %, at no extra pass.
        damping: δ, share of the mean over output directions that is added to the stiffness of
            each input direction; it guards the inputs of units that are silent in this task.
            None takes the source's own default, 0 for "sgd" and 0.6 for the others.
        width: α, size of the weight perturbation at which the probe measures, as a share of the
            distance the layer travelled in the task ("finite width"). 0 probes at a point.
        centre: end each task at the mean of the weights over its last 10 %, sampled right after
            pulls. None means: whenever strength > 0. True with strength 0 is the centre alone.
        stiffness: what becomes of each task's measured stiffness, for ablations; see
            ``flatcl.core.variants``. "variance" takes it as it is; "equal", "isotropic",
            "shuffled", "flipped" or "power:P", P > 0, change it in one respect.
        directions: whose eigenbasis stiffness is measured in. "fluctuation" is the source's own;
            "fisher" is that of source "fisher", for stiffness from the probe; "random" puts the
            measured spectrum into a random Kronecker basis, for ablations.
        probe_inputs: training inputs that each of the two probe passes visits.
        probe_batch: inputs a probe gradient; every batch has its own weight perturbation.
        basis: how matrix layers are held. "auto": in a Kronecker eigenbasis, sides above 2048
            truncated to their ``rank`` leading directions and one stiffness for all others, so
            that memory stays in proportion to the weights; "kronecker": complete on every side;
            "low-rank": every side above ``rank`` truncated; "diagonal": weight by weight. Or a
            mapping from patterns of weights' names (as in ``fnmatch``) to one of these: the first
            that fits counts, "auto" where none does.
        rank: leading directions that a truncated side keeps.
        seed: of the probe's random directions and perturbations.
        hold_statistics: share of the earlier tasks in the statistics that BatchNorm normalises by,
            from the second task on; see ``flatcl.core.statistics``. With 0, as where strength and
            pseudo-inputs are 0, they follow the running task; with 1 none moves any more, which
            holds the earlier tasks best and needs small steps.
        witnesses: pseudo-inputs kept for ``forecast`` alone, of all tasks together (one of each at
            least): with them the rise of a task's loss is predicted by asking the network, see
            ``flatcl.core.witnesses``; with 0, by the constraint's quadratic. 512 serve five tasks.
        budget: what one task may add to the loss of each earlier one on average, nats; the merged
            constraint's energy over their number is held against it, right after each pull. None
            for no limit.
        on_budget: once the budget is crossed, "stop" sets ``Landscape.over_budget``, which a
            training loop should obey (Avalanche's does); "strengthen" raises γ for the rest of the
            task until the energy falls below again, within a few pulls.

    Raises:
        OptionError: a value is out of its range.
    """

    strength: float = 3.5
    pseudo_inputs: int | None = None
    interval: int = 20
    source: Source = "probe"
    damping: float | None = None
    width: float = 1.0
    centre: bool | None = None
    stiffness: str = "variance"
    directions: Directions = "fluctuation"
    probe_inputs: int = 1000
    probe_batch: int = 10
    basis: BasisOption = "auto"
    rank: int = 256
    seed: int = 0
    hold_statistics: float = 0.9
    witnesses: int = 0
    budget: float | None = None
    on_budget: OnBudget = "stop"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            try:
                repr(value)  # as the messages below have it
            except ValueError as error:
                raise OptionError(f"{name} holds a whole number too long to print") from error
        for name in ("strength", "width", "damping", "budget"):
            value = getattr(self, name)
            if value is None and name in {"damping", "budget"}:
                continue
            if not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
                raise OptionError(f"{name} is {value!r}; it must be a number, 0 to {_LARGEST:g}")
        for name in ("interval", "probe_inputs", "probe_batch", "rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        for name in ("pseudo_inputs", "witnesses"):
            n = getattr(self, name)
            if name == "pseudo_inputs" and n is None:
                continue
            if not isinstance(n, int) or isinstance(n, bool) or n < 0:
                raise OptionError(f"{name} is {n!r}; it must be a whole number, 0 or more")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise OptionError(f"seed is {self.seed!r}; it must be a whole number")
        if self.centre is not None and not isinstance(self.centre, bool):
            raise OptionError(f"centre is {self.centre!r}; it must be True, False or None")
        share = self.hold_statistics
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise OptionError(f"hold_statistics is {share!r}; it must be a number, 0 to 1")
        for name, known in (
            ("source", get_args(Source)),
            ("directions", get_args(Directions)),
            ("on_budget", get_args(OnBudget)),
        ):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} is {getattr(self, name)!r}; choose one of {known}")
        if self.directions == "fisher" and self.source == "sgd":
            raise OptionError(
                'directions="fisher" is of a pass over inputs, and source="sgd" makes none: take '
                'source="probe"'
            )
        if self.stiffness not in STIFFNESSES and not 0.0 < self.power < math.inf:
            raise OptionError(
                f"stiffness is {self.stiffness!r}; choose one of {STIFFNESSES}, or 'power:P' with "
                "P > 0"
            )
        object.__setattr__(self, "basis", checked(self.basis))
        if self.budget == 0:
            raise OptionError("budget is 0; give a positive number of nats, or None for no limit")

    def strength_over(self, tasks: int) -> float:
        """Return the weight of each task in a constraint that holds several, γ t^−SHARING.

        A quadratic forecast falls short far from its anchor, and γ above the exact weight 1 is a
        margin for that. The more is held, the shorter the way of a new task, the better the
        forecast and the smaller the margin it needs: between γ for each task (a sum, exponent 0),
        which leaves long streams no room to learn, and γ for all of them (a mean, exponent 1).

        Args:
            tasks: t ≥ 0, tasks that have ended.

        Returns:
            γ t^−SHARING; γ before the first task has ended.
        """
        return float(self.strength * max(1, tasks) ** -SHARING)

    @property
    def use_pseudo_inputs(self) -> int:
        """The number of pseudo-inputs in force."""
        if self.source == "sgd":
            return 0
        if self.pseudo_inputs is not None:
            return self.pseudo_inputs
        return _PSEUDO_INPUTS if self.strength > 0 else 0

    @property
    def records(self) -> bool:
        """Whether anything is kept of a task that has ended."""
        return self.strength > 0 or self.use_pseudo_inputs > 0 or self.witnesses > 0

    @property
    def power(self) -> float:
        """The exponent P of stiffness "power:P"; 1 for every other, NaN where P is no number."""
        name, _, exponent = str(self.stiffness).partition(":")
        if name != "power":
            return 1.0 if self.stiffness in STIFFNESSES else math.nan
        try:
            return float(exponent)
        except ValueError:
            return math.nan

    @property
    def varied(self) -> bool:
        """Whether a task is measured in its own basis, and changed before it is merged."""
        plain = self.stiffness == "variance" or self.stiffness.startswith("power:")
        # Fisher directions of a probe's stiffness have traces in another unit: they cannot be
        # weighed against the earlier tasks' before the stiffness is there.
        own = {"fluctuation", "fisher"} if self.source == "fisher" else {"fluctuation"}
        return not (plain and self.power == 1.0 and self.directions in own)

    @property
    def use_centre(self) -> bool:
        """Whether a task ends at the centre of its fluctuation."""
        return self.strength > 0 if self.centre is None else self.centre

    @property
    def use_hold_statistics(self) -> float:
        """The share of the earlier tasks in force from the second task on."""
        held = self.strength > 0 or self.use_pseudo_inputs > 0
        return float(self.hold_statistics) if held else 0.0

    @property
    def use_damping(self) -> float:
        """The damping δ in force, the source's own default if none was given."""
        if self.damping is not None:
            return float(self.damping)
        return 0.0 if self.source == "sgd" else 0.6
