"""Runs by earlier code that count: a run made again by the present code came out the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from flatcl.io import write_json

_FILE = "carried.json"


@dataclass(frozen=True)
class Repeat:
    """A run that two versions of the code made alike, bit for bit.

    Attributes:
        protocol: its name.
        method: its name.
        seed: the repeat that both made, in the regime without tuning or of a search.
        earlier: hash of the code before.
        present: hash of the code after.
        tasks: how many of the stream's first both made; None for all.
    """

    protocol: str
    method: str
    seed: int
    earlier: str
    present: str
    tasks: int | None = None


class Carried:
    """Which earlier code is as good as later code, method by method and protocol by protocol.

    Args:
        repeats: runs that came out the same.
    """

    def __init__(self, repeats: Iterable[Repeat]) -> None:
        self.repeats = list(dict.fromkeys(repeats))

    @classmethod
    def read(cls, folder: Path) -> Carried:
        """Return what was found before.

        Args:
            folder: of the lab's results.

        Returns:
            The repeats of its file, none without one.
        """
        path = folder / _FILE
        if not path.is_file():
            return cls(())
        return cls(Repeat(**one) for one in json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Keep what was found.

        Args:
            folder: of the lab's results.
        """
        content = [asdict(one) for one in self.repeats]
        whole = [{k: v for k, v in one.items() if v is not None} for one in content]
        write_json(folder / _FILE, whole)

    def codes(self, protocol: str, method: str, present: str) -> list[str]:
        """Return the earlier code whose runs count, through any number of changes.

        Args:
            protocol: its name.
            method: its name.
            present: hash of the present code.

        Returns:
            Hashes, the latest first.
        """
        found = [present]
        for later in found:  # which grows meanwhile
            for one in self.repeats:
                of_it = (one.protocol, one.method, one.present) == (protocol, method, later)
                if of_it and one.earlier not in found:
                    found.append(one.earlier)
        return found[1:]
