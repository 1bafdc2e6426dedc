"""The lab's protocols: small TOML files, read and checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from flatcl.errors import OptionError
from flatcl.protocol import CompareOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "protocols"
Kind = Literal["task", "domain", "class", "permuted", "rotated"]
MethodSet = Literal["variants", "estimators", "full", "main", "core", "feng-tu"]
Part = Literal["short", "long"]
RESTRICTED: dict[str, str] = {"main": "the main methods", "core": "the core methods"}
SHORT_SEEDS = 10  # of a protocol that is short enough for them


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol of the comparison.

    Attributes:
        name: of its file.
        title: one line.
        kind: of stream; a class-incremental one has one head and is told nothing.
        follows: the published protocol.
        departs: in what it is not that, but for what the fields below say.
        seeds: repeats that are reported.
        tune_tasks: tasks that settings are chosen on, the first; None for all.
        settings_of: a protocol near it whose tuned settings it takes, to spare the searches; None
            if it has its own.
        methods: "full", all but the variants of methods; "estimators", with those of EWC's Fisher
            information; "variants", with Avalanche's own versions too; "main", without what is
            seldom used; "core", which a long protocol is restricted to; or "feng-tu", the paper's
            own.
        options: stream, network and training.
    """

    name: str
    title: str
    kind: Kind
    follows: str
    departs: str = ""
    seeds: int
    tune_tasks: int | None = None
    settings_of: str | None = None
    methods: MethodSet = "full"
    options: CompareOptions

    @property
    def tuned_elsewhere(self) -> bool:
        """Whether settings are chosen on another stream: its first tasks, or a protocol near it."""
        return self.tune_tasks is not None or self.settings_of is not None

    @property
    def part(self) -> Part:
        """Of the lab: long protocols compare the core methods alone, on five seeds."""
        return "long" if self.methods == "core" else "short"

    @property
    def departures(self) -> str:
        """In what it is not the published protocol, with what its fields restrict."""
        restricted = [self.departs] if self.departs else []
        if self.methods in RESTRICTED:
            restricted.append(RESTRICTED[self.methods])
        if self.seeds < SHORT_SEEDS:
            restricted.append(f"{self.seeds} seeds in place of {SHORT_SEEDS}")
        if self.tune_tasks is not None:
            restricted.append(f"tuned on its first {self.tune_tasks} tasks")
        if self.settings_of is not None:
            restricted.append(f"settings as chosen on {self.settings_of}")
        return "; ".join(restricted)

    def tuning_options(self, *, whole: bool = False) -> CompareOptions:
        """Return the options of a search: another order of classes, and maybe fewer tasks.

        Args:
            whole: all the tasks that are reported.

        Returns:
            The options.
        """
        drawn = "drawn" if self.options.scenario.startswith("split") else "natural"
        first = None if whole else self.tune_tasks
        first = first or self.options.first_tasks
        return replace(self.options, class_order=drawn, first_tasks=first)


@lru_cache
def protocols() -> dict[str, Protocol]:
    """Return all protocols.

    Returns:
        By name, in the order of the files' names.

    Raises:
        OptionError: as of ``read``, or one takes the settings of a protocol that has none.
    """
    found = {path.stem: read(path) for path in sorted(FOLDER.glob("*.toml"))}
    for name, one in found.items():
        if one.settings_of is not None and not (
            one.settings_of in found
            and found[one.settings_of].settings_of is None
            and found[one.settings_of].methods == one.methods
        ):
            raise OptionError(
                f"{name}.toml: settings_of is {one.settings_of!r}; name a protocol of as many "
                "methods that has searches of its own"
            )
    return found


def read(path: Path) -> Protocol:
    """Return the protocol of a file.

    Args:
        path: of the TOML file; its name is the protocol's.

    Returns:
        The protocol.

    Raises:
        OptionError: a field is missing, unknown or cannot be used; the message names the file.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no UTF-8
        raise OptionError(f"{path.name}: {error}") from error
    known = {field.name for field in fields(Protocol)} - {"name"}
    strange = sorted(set(content) - known)
    if strange:
        raise OptionError(f"{path.name}: there is no {strange[0]!r}; known: {sorted(known)}")
    try:
        of_run = content.pop("options")
        if "hidden" in of_run:
            of_run["hidden"] = tuple(of_run["hidden"])
        found = Protocol(name=path.stem, options=CompareOptions(**of_run), **content)
    except (KeyError, TypeError, OptionError) as error:
        raise OptionError(f"{path.name}: {error}") from error
    for name, choices in (("kind", get_args(Kind)), ("methods", get_args(MethodSet))):
        if getattr(found, name) not in choices:
            raise OptionError(f"{path.name}: {name} is {getattr(found, name)!r}; use {choices}")
    for name in ("seeds", "tune_tasks"):
        value = getattr(found, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{path.name}: {name} is {value!r}; give a whole number, 1 or more")
    return found
