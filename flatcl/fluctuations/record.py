"""Records of a training on disk: weights, increments or gradients, a row [P] each snapshot.

A record is a folder. ``record.json`` says what a row is; ``weights.bin`` and its like hold nothing
but rows in native byte order, so that a record cut off at any byte can be read up to its last whole
snapshot.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatcl.errors import DataError, OptionError, StateError
from flatcl.fluctuations.watch import DTYPES, QUANTITIES, Quantity, Selection, SketchRecorder, Watch
from flatcl.io import write_json

__all__ = ["Quantity", "Record", "Recorder", "Selection", "SketchRecorder", "open_record"]

_SCHEMA = 1
_HEADER = "record.json"
_FIELDS = ("names", "shapes", "quantities", "every", "epoch_steps")
_BUFFER = 1 << 20  # bytes gathered before a write
_FLUSH = (100, 2.0)  # snapshots, seconds: what a killed process loses at most


class Recorder(Watch):
    """Records a training on disk, whatever the model, the optimiser and the loop.

    ``weights`` are those after the step, ``increments`` the weights' change since the call of
    ``step`` before (of that single step whatever the stride), ``gradients`` the ``.grad`` that the
    step was made with, 0 where a parameter has none. Use it as a context manager, or close it.
    ``snapshots`` counts what is recorded, ``steps`` what the optimiser made, both across resumes.

    Args:
        model: any module; it is read, never written.
        path: the record's folder.
        parameters: patterns over names ("2.weight", "layer*.weight") or modules of the model;
            of what they match, the trainable parameters are recorded.
        quantities: which of the three.
        every: steps between snapshots; steps ``every``, 2 ``every``, … are recorded.
        epoch_steps: steps of an epoch, if known; a stride that shares a divisor with it warns.
        facts: what else to note in the record (learning rate, batch size): JSON values.
        resume: go on after the last whole snapshot of the record in ``path``, if there is one;
            its facts stay. Restore the model first.

    Raises:
        OptionError: an option is out of its range, nothing matches, or ``path`` is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        parameters: Selection = "*",
        quantities: Sequence[Quantity] = ("weights",),
        every: int = 1,
        epoch_steps: int | None = None,
        facts: Mapping[str, object] | None = None,
        resume: bool = False,
    ) -> None:
        super().__init__(model, parameters, quantities, every, epoch_steps)
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"{self.path} is a file; a record is a folder: choose another path")
        files = [self.path / f"{quantity}.bin" for quantity in QUANTITIES]
        # Empty files without a header are what a process leaves that died before its first step.
        if (self.path / _HEADER).exists() or any(f.exists() and f.stat().st_size for f in files):
            if not resume:
                raise OptionError(
                    f"{self.path} holds a record: remove it, use another folder, or resume=True"
                )
            self._cut()
        else:
            self._begin(dict(facts or {}))
        self._files = {
            q: open(self.path / f"{q}.bin", "ab", buffering=_BUFFER)  # noqa: SIM115 - see close
            for q in self.quantities
        }
        self._flushed = (self.snapshots, time.monotonic())

    def _begin(self, facts: dict[str, object]) -> None:
        header = {"schema": _SCHEMA, "dtype": DTYPES[self.dtype], "facts": facts}
        header |= {field: getattr(self, field) for field in _FIELDS}
        self.path.mkdir(parents=True, exist_ok=True)
        for quantity in self.quantities:
            (self.path / f"{quantity}.bin").touch()
        try:
            write_json(self.path / _HEADER, header)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"facts cannot be written as JSON ({error}): keep to numbers, strings, lists, dicts"
            ) from error

    def _cut(self) -> None:
        # Rows beyond the last whole snapshot would shift all that come after.
        old = open_record(self.path)
        for field in ("dtype", *_FIELDS):
            was, now = getattr(old, field), getattr(self, field)
            if was != now:
                raise OptionError(
                    f"the record in {self.path} has {field} {was}, not {now}: use another folder"
                )
        for quantity in self.quantities:
            os.truncate(self.path / f"{quantity}.bin", old.count * old.width * old.dtype.itemsize)
        self.snapshots, self.steps = old.count, old.count * self.every

    def _keep(self, rows: Mapping[Quantity, Tensor]) -> None:
        if next(iter(self._files.values())).closed:
            raise StateError(f"the recorder of {self.path} is closed: make a new one to go on")
        for quantity, row in rows.items():
            self._files[quantity].write(row.cpu().numpy().data)
        count, now = self.snapshots + 1, time.monotonic()
        if count - self._flushed[0] >= _FLUSH[0] or now - self._flushed[1] >= _FLUSH[1]:
            for file in self._files.values():
                file.flush()
            self._flushed = (count, now)

    def close(self) -> None:
        """Write what is still buffered through to the disk; a closed recorder takes no step."""
        for file in self._files.values():
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Record:
    """A record on disk, as far as it was whole when it was opened.

    Attributes:
        path: its folder.
        names: of the parameters, in the order of a row.
        shapes: of the parameters.
        dtype: float32 or float64.
        quantities: what was recorded.
        every: steps between snapshots.
        epoch_steps: steps of an epoch, if it was told.
        facts: as noted by the recorder.
        count: T, whole snapshots common to all the quantities.
    """

    path: Path
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    quantities: tuple[Quantity, ...]
    every: int
    epoch_steps: int | None
    facts: Mapping[str, object]
    count: int

    @property
    def width(self) -> int:
        """P, the numbers in a row."""
        return sum(math.prod(shape) for shape in self.shapes)

    def weights(self) -> Tensor:
        """Return the weights after each recorded step, memory-mapped.

        Returns:
            [T, P], w; read from disk as it is used. Clone what you want to change.
        """
        return self._rows("weights")

    def increments(self) -> Tensor:
        """Return the weights' change in each recorded step, memory-mapped.

        Returns:
            [T, P], w.
        """
        return self._rows("increments")

    def gradients(self) -> Tensor:
        """Return the minibatch gradient of each recorded step, memory-mapped.

        Returns:
            [T, P], nats/w.
        """
        return self._rows("gradients")

    def block(self, name: str, quantity: Quantity = "weights") -> Tensor:
        """Return the columns of one parameter, memory-mapped.

        Args:
            name: the parameter's.
            quantity: which of the recorded.

        Returns:
            [T, numel], row-major in the parameter's entries.

        Raises:
            OptionError: the record does not hold the parameter.
        """
        if name not in self.names:
            raise OptionError(f"the record has no {name!r}; it has {', '.join(self.names)}")
        sizes = [math.prod(shape) for shape in self.shapes]
        return torch.split(self._rows(quantity), sizes, dim=1)[self.names.index(name)]

    def chunks(self, quantity: Quantity, rows: int) -> Iterator[Tensor]:
        """Return the snapshots in blocks, for what takes a stream.

        Args:
            quantity: which of the recorded.
            rows: snapshots a block; the last may have fewer.

        Returns:
            Tensors [≤ rows, P], in order.

        Raises:
            OptionError: rows < 1.
        """
        if rows < 1:
            raise OptionError(f"rows is {rows}; a block has 1 snapshot or more")
        return iter(torch.split(self._rows(quantity), rows))

    def _rows(self, quantity: Quantity) -> Tensor:
        if quantity not in self.quantities:
            raise DataError(f"{self.path} holds {self.quantities}, not {quantity}: record that too")
        if self.count == 0:
            raise DataError(f"{self.path} holds no whole snapshot: train longer or lower `every`")
        file, shape = self.path / f"{quantity}.bin", (self.count, self.width)
        try:  # copy on write, so that no caller's slip can harm the file
            rows = np.memmap(file, DTYPES[self.dtype], "c", shape=shape)
        except OSError:  # more than all memory: the system maps that much for reading alone
            rows = np.memmap(file, DTYPES[self.dtype], "r", shape=shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writ")
            return torch.from_numpy(rows)


def open_record(path: str | os.PathLike[str]) -> Record:
    """Return a record up to its last whole snapshot, even while it is being written.

    Args:
        path: its folder.

    Returns:
        The record; its rows are read when they are asked for.

    Raises:
        DataError: there is no record, or its description or a file of rows is missing or damaged.
    """
    folder = Path(path)
    header = folder / _HEADER
    if not header.is_file():
        raise DataError(f"there is no {header}: pass the folder that a Recorder was given")
    try:
        content = json.loads(header.read_text(encoding="utf-8"))
        record = _described(folder, content) if content["schema"] == _SCHEMA else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{header} is damaged ({error!r}): restore it, or record anew") from error
    if record is None:
        raise DataError(
            f"{header} has schema {content['schema']!r}, not {_SCHEMA}: use the flatcl that made it"
        )
    files = [folder / f"{quantity}.bin" for quantity in record.quantities]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)}: restore it, or record anew")
    row = record.width * record.dtype.itemsize
    return replace(record, count=min(file.stat().st_size for file in files) // row)


def _described(folder: Path, content: Mapping[str, Any]) -> Record:
    record = Record(
        folder,
        tuple(str(name) for name in content["names"]),
        tuple(tuple(int(n) for n in shape) for shape in content["shapes"]),
        {name: dtype for dtype, name in DTYPES.items()}[content["dtype"]],
        tuple(q for q in QUANTITIES if q in content["quantities"]),
        int(content["every"]),
        content["epoch_steps"],
        dict(content["facts"]),
        count=0,
    )
    if len(record.names) != len(record.shapes) or record.width < 1 or not record.quantities:
        raise ValueError(f"{record.names} of shapes {record.shapes}, {record.quantities}")
    if record.every < 1 or any(n < 0 for shape in record.shapes for n in shape):
        raise ValueError(f"every {record.every} steps, shapes {record.shapes}")
    return record
