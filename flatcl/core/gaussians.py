"""Gaussians of the inputs that earlier tasks had: what pseudo-inputs are drawn from.

Inputs are put into groups by the class that the network gives them, and by their task label where
they have one. A group keeps the number of its inputs, their mean and the leading principal
directions of their covariance: Σ ≈ BᵀB, B [r, d]. No group is made of fewer than 16 inputs, one
that comes several times counted each time: a class of fewer goes with others of its task label, and
where these are too few as well, nothing is kept of them here and the constraint alone holds them.
When a group meets new inputs its moments are joined exactly and cut to r directions again, so that
memory depends on the number of groups alone, and this is limited by the network's size.

Source: pseudo-rehearsal, Robins, Connection Science 7 (1995) 123–146, which draws inputs blindly;
that their first two moments are drawn from is flatcl's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flatcl.core.sample import LEAST_INPUTS, OTHERS, Key, Sample
from flatcl.core.saved import State, entry
from flatcl.errors import StateError

RANK = 8  # principal directions a group; 3 … 48 come out alike
# Of all groups together, in floats a weight of the network. Beyond it there are only groups of all
# the others of a task label, and of these no more than this.
_FLOATS_A_WEIGHT = 1.0
_LEAST_GROUPS = 16  # whatever the network's size
_FEW = f"a group is made of {LEAST_INPUTS} inputs of a task label at least; give end_task more"


@dataclass
class InputGroup:
    """Moments of one group of inputs.

    Attributes:
        count: inputs seen.
        mean: [d].
        directions: B [r, d], covariance ≈ BᵀB, by falling variance.
        rest: the batch's other parts for one input of the group, each [1, …].
    """

    count: int
    mean: Tensor
    directions: Tensor
    rest: list[Tensor] = field(default_factory=list)

    def joined(self, inputs: Tensor) -> InputGroup:
        """Return the moments of these inputs and further ones together.

        Args:
            inputs: [n, d], n ≥ 1.

        Returns:
            A new group; exact but for the covariance outside its ``RANK`` leading directions.
        """
        new, mean = len(inputs), inputs.mean(0)
        count = self.count + new
        # Σ (x − μ)(x − μ)ᵀ of both parts, and the scatter of the two means.
        shift = (mean - self.mean) * (self.count * new / count) ** 0.5
        rows = torch.cat([inputs - mean, self.directions * self.count**0.5, shift[None]])
        joined = torch.lerp(self.mean, mean, new / count)
        return InputGroup(count, joined, _leading(rows) / count**0.5, self.rest)


def _leading(rows: Tensor) -> Tensor:
    """Return B [≤ RANK, d] of largest trace with BᵀB ≈ rowsᵀ rows, by the rows' Gram matrix."""
    gram = rows.double() @ rows.double().T
    _, vectors = torch.linalg.eigh(gram)
    leading: Tensor = vectors[:, -RANK:].flip(1).T.to(rows) @ rows
    return leading


class InputGaussians:
    """Gaussians of all earlier inputs, by group.

    Attributes:
        shape: of one input.
        dtype: of the inputs, and of those drawn.
        groups: by predicted class (−1 for all that have too few inputs) and task label (0 where
            there is none).
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.groups: dict[Key, InputGroup] = {}
        self._told = False

    @torch.no_grad()
    def take_in(self, sample: Sample, weights: int) -> None:
        """Take in the moments of a task's inputs, and say in a warning, once, if not of all.

        Args:
            sample: of the task.
            weights: of the network; more of them allow for more groups.
        """
        inputs = sample.parts[0]
        if self.groups and tuple(inputs.shape[1:]) != self.shape:
            warnings.warn(
                f"inputs have shape {tuple(inputs.shape[1:])}, those of the earlier tasks had "
                f"{self.shape}: this task will not be rehearsed, its constraint alone holds it",
                stacklevel=2,
            )
            return
        self.shape, self.dtype = tuple(inputs.shape[1:]), inputs.dtype
        rows = sample.rows()
        limit = max(_LEAST_GROUPS, int(_FLOATS_A_WEIGHT * weights / ((RANK + 1) * rows.shape[1])))
        members: dict[Key, list[Tensor]] = {}
        for own, places in sample.groups.items():
            key = own
            full = len(self.groups.keys() | members.keys()) >= limit
            if key not in self.groups and (full or len(places) < LEAST_INPUTS):
                key = (OTHERS, own[1])
            members.setdefault(key, []).append(places)
        for key in sorted(members, key=lambda k: k[0] == OTHERS):  # these look for a group to join
            places = torch.cat(members[key])
            home = self._home(key, len(places), limit)
            if home is not None:
                self._join(home, places, rows, sample.parts[1:])

    def _home(self, key: Key, number: int, limit: int) -> Key | None:
        """Return the group that a number of inputs joins or makes, None if there can be none."""
        others = sum(of_class == OTHERS for of_class, _ in self.groups)
        many = others >= limit and key[0] == OTHERS
        if key in self.groups or not (many or number < LEAST_INPUTS):
            return key
        of_label = [k for k in self.groups if k[1] == key[1]]
        if of_label:
            return min(of_label, key=lambda k: (self.groups[k].count, k))
        full = f"a network of this size keeps {limit} groups of further task labels at most"
        self._tell(number, key[1], full if many else _FEW)
        return None

    def _tell(self, number: int, label: int, why: str) -> None:
        """Say, once, that inputs are in no group."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"{number} inputs with task label {label} (the last part of a batch of three or "
                "more, else 0) will not be rehearsed, their task's constraint alone holds them: "
                f"{why}. It is said once",
                stacklevel=3,
            )

    def _join(self, key: Key, places: Tensor, rows: Tensor, others: Sequence[Tensor]) -> None:
        group = self.groups.get(key)
        if group is None:
            nothing = rows.new_zeros((0, rows.shape[1]))
            rest = [part[places[:1]].clone() for part in others]
            group = InputGroup(0, nothing.sum(0), nothing, rest)
        self.groups[key] = group.joined(rows[places])

    def draw(self, number: int, generator: torch.Generator) -> list[Tensor]:
        """Return a batch of pseudo-inputs, groups in proportion to their counts.

        Args:
            number: n ≥ 1.
            generator: on the CPU.

        Returns:
            [n, …] in the inputs' shape, then the other parts, on the groups' device.
        """
        groups = list(self.groups.values())
        counts = torch.tensor([group.count for group in groups], dtype=torch.float64)
        chosen = torch.multinomial(counts, number, replacement=True, generator=generator)
        means = groups[0].mean
        noise = torch.randn(number, RANK, generator=generator).to(means)
        found = means.new_empty((number, len(means)))
        rest = [part.expand(number, *part.shape[1:]).clone() for part in groups[0].rest]
        for i, group in enumerate(groups):
            places = (chosen == i).nonzero()[:, 0].to(means.device)
            B = group.directions
            found[places] = group.mean + noise[places, : len(B)] @ B
            for whole, part in zip(rest, group.rest, strict=True):
                whole[places] = part
        return [found.reshape(number, *self.shape).to(self.dtype), *rest]

    def tensors(self) -> list[Tensor]:
        """Return the moments, to be sent between processes in place.

        Returns:
            Means and directions, group by group.
        """
        return [t for group in self.groups.values() for t in (group.mean, group.directions)]

    def to(
        self, device: torch.device, cast: Mapping[torch.dtype, torch.dtype] | None = None
    ) -> InputGaussians:
        """Return the Gaussians on a device, in a collection of their own.

        Args:
            device: where the moments shall be.
            cast: dtypes by that which takes their place; inputs of others keep theirs.

        Returns:
            The same; what is taken in there is not taken in here.
        """
        found = copy.copy(self)
        found.dtype = (cast or {}).get(self.dtype, self.dtype)
        found.groups = {
            key: replace(
                group,
                mean=group.mean.to(device),
                directions=group.directions.to(device),
                rest=[part.to(device) for part in group.rest],
            )
            for key, group in self.groups.items()
        }
        return found

    def bytes_held(self) -> int:
        """Return the bytes of all moments.

        Returns:
            Bytes.
        """
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def state_dict(self) -> State:
        """Return it as plain state.

        Returns:
            Shape and groups; groups are never written to.
        """
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "groups": [
                {
                    "key": list(key),
                    "count": group.count,
                    "mean": group.mean,
                    "directions": group.directions,
                    "rest": group.rest,
                }
                for key, group in self.groups.items()
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, device: torch.device) -> InputGaussians:
        """Return what ``state_dict`` encoded.

        Args:
            state: its result; None, of an earlier flatcl, for no group.
            device: of the model.

        Returns:
            The Gaussians.

        Raises:
            StateError: something is missing or of a shape that does not fit.
        """
        found = cls()
        if state is None:
            return found
        what = "Gaussians of inputs"
        found.shape = tuple(int(n) for n in entry(state, "shape", what))
        found.dtype = getattr(torch, str(entry(state, "dtype", what)))
        for saved in entry(state, "groups", what):
            of_class, label = entry(saved, "key", what)
            mean, directions = (entry(saved, k, what).to(device) for k in ("mean", "directions"))
            if directions.shape[1:] != mean.shape or directions.shape[0] > RANK:
                raise StateError(
                    f"the saved {what} have directions {tuple(directions.shape)} about a mean "
                    f"{tuple(mean.shape)}: save them anew"
                )
            rest = [part.to(device) for part in entry(saved, "rest", what)]
            group = InputGroup(int(entry(saved, "count", what)), mean, directions, rest)
            if group.count < LEAST_INPUTS:  # an earlier flatcl made such
                found._tell(group.count, int(label), _FEW)
                continue
            found.groups[int(of_class), int(label)] = group
        return found
