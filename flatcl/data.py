"""Labelled images from scikit-learn, numpy archives, or torchvision, checked as they come in."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flatcl.errors import DataError
from flatcl.seeds import derive_seed
from flatcl.stamps import Stamp, file_of, stamp_of

Array = npt.NDArray[np.generic]

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_TORCHVISION = {"mnist": "MNIST", "fashion": "FashionMNIST", "cifar100": "CIFAR100"}
# What numpy and zipfile raise on damaged archives, feigned versions, methods and keys included.
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
_SHAPES = "(N, H, W), (N, H, W, 3) or (N, D)"


@dataclass(frozen=True)
class Images:
    """A labelled data set in its two official parts, classes numbered from 0.

    Attributes:
        name: where it came from.
        x_train: images [N, C, H, W] or rows [N, D], uint8 or float32, as stored (not scaled).
        y_train: classes [N], int64, 0 … n_classes − 1.
        x_test: as ``x_train``.
        y_test: as ``y_train``; every class of it is in ``y_train``.
        n_classes: the number of classes in ``y_train``.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    n_classes: int


def load_images(source: str) -> Images:
    """Return a data set by name, or from an npz archive.

    ``"digits"`` ships with scikit-learn (8×8 scans, a fixed stratified fifth held out as the
    test part). ``"mnist"``, ``"fashion"`` and ``"cifar100"`` are ``NAME.npz`` in one of the
    folders of the environment variable ``FLATCL_DATA``, else torchvision's download.

    Args:
        source: one of the four names, or the path of an npz file with ``x_train``, ``y_train``,
            ``x_test``, ``y_test``; x is (N, H, W), (N, H, W, 3) or (N, D), uint8 or float, and
            y holds integers.

    Returns:
        The images as stored; classes are renumbered 0 … n − 1 in ascending order.

    Raises:
        DataError: the source is unknown, missing, unreadable, or its arrays cannot be used; the
            message says which and what to do.
    """
    if source == "digits":
        return _digits()
    file = file_of(source)
    if source in _TORCHVISION:
        return _from_arrays(source, _download(source) if file is None else _read_npz(file))
    if file is None:
        if Path(source).suffix == ".npz":
            raise DataError(f"no file {source!r}: give the path of an existing .npz file")
        known = ", ".join(["digits", *_TORCHVISION])
        raise DataError(f"unknown data set {source!r}: use {known}, or the path of an .npz file")
    return _from_arrays(str(file), _read_npz(file))


def kept_images(source: str) -> Images:
    """Return what ``load_images`` does; the last data set is kept until its file changes.

    Args:
        source: as of ``load_images``.

    Returns:
        The images, shared by all callers: not to be written to.
    """
    return _kept(source, stamp_of(source))


@lru_cache(maxsize=1)
def _kept(source: str, stamp: Stamp | None) -> Images:
    return load_images(source)


def stratified_split(labels: Tensor, size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the positions kept and the positions cut, each ascending.

    Every class gives in proportion to its frequency (largest remainders), at least one position
    and never its last one.

    Args:
        labels: classes [N], integers.
        size: number of positions to cut, at least one a class.
        seed: of the choice within each class.

    Returns:
        Positions kept [N − size] and positions cut [size], int64.

    Raises:
        DataError: ``size`` leaves a class without a position on one of the two sides.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    room = counts - 1
    if int(room.min()) < 1:
        rare = int(classes[room.argmin()])
        raise DataError(f"class {rare} has one image only, and a split needs two: add or remove it")
    if not len(classes) <= size <= int(room.sum()):
        raise DataError(
            f"cannot cut {size} of {len(labels)} images, as each of the {len(classes)} classes "
            f"needs one on both sides: cut (val_size) {len(classes)} to {int(room.sum())}"
        )
    exact = counts.double() * size / len(labels)
    share = torch.minimum(exact.floor().long().clamp(min=1), room)
    while int(share.sum()) != size:
        step = 1 if int(share.sum()) < size else -1
        movable = share < room if step == 1 else share > 1
        gap = (exact - share) * step
        share[int(torch.where(movable, gap, -torch.inf).argmax())] += step
    generator = torch.Generator().manual_seed(seed)
    cut = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes, share.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        cut[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~cut).nonzero().squeeze(1), cut.nonzero().squeeze(1)


def _digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(np.asarray(bunch.images, dtype=np.uint8)).unsqueeze(1)  # 0 … 16
    y = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    kept, cut = stratified_split(y, len(y) // 5, seed=derive_seed("digits", "test"))
    return Images("digits", x[kept], y[kept], x[cut], y[cut], 10)


def _read_npz(path: Path) -> dict[str, Array]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))  # numpy leaves it open when it fails
            archive = np.load(file, allow_pickle=False)
        except _DAMAGE as error:
            raise DataError(
                f"{path} is not a readable npz archive ({_line(error)}): "
                f"write it with numpy.savez_compressed"
            ) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path} holds a single array: write {', '.join(_KEYS)} into one file "
                f"with numpy.savez_compressed"
            )
        stack.enter_context(archive)
        missing = [key for key in _KEYS if key not in archive.files]
        if missing:
            raise DataError(
                f"{path} lacks {', '.join(missing)} (it has "
                f"{', '.join(archive.files) or 'nothing'}): save the four arrays {', '.join(_KEYS)}"
            )
        return {key: _read_array(archive, key, path) for key in _KEYS}


def _read_array(archive: Mapping[str, Array], key: str, path: Path) -> Array:
    try:
        array = archive[key]
    except _DAMAGE as error:
        if isinstance(error, ValueError) and "pickle" in str(error).lower():
            raise DataError(
                f"{key} in {path} holds pickled objects, which are never loaded: "
                f"save it as a numeric array (uint8, float or integer)"
            ) from error
        raise DataError(f"{key} in {path} is damaged ({_line(error)}): save it again") from error
    if not isinstance(array, np.ndarray):  # numpy hands bytes back that are no array
        raise DataError(f"{key} in {path} is no array: save it with numpy.savez_compressed")
    return array


def _download(name: str) -> dict[str, Array]:
    remedy = f"put {name}.npz into a folder and set FLATCL_DATA to it"
    try:
        from flatcl.host import ensure_avalanche

        ensure_avalanche()  # it also mends a torchvision without compiled operators
        import torchvision

        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flatcl"
        maker = getattr(torchvision.datasets, _TORCHVISION[name])
        parts = [maker(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise DataError(f"downloading {name} failed ({_line(error)}): {remedy}") from error
    train, test = ((np.asarray(part.data), np.asarray(part.targets)) for part in parts)
    return {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]}


def _from_arrays(name: str, arrays: Mapping[str, Array]) -> Images:
    x_train, x_test = (_inputs(arrays[key], key, name) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"x_train has items of shape {tuple(x_train.shape[1:])} and x_test of "
            f"{tuple(x_test.shape[1:])} in {name}: both parts need the same shape"
        )
    y_train = _labels(arrays["y_train"], "y_train", name, len(x_train))
    y_test = _labels(arrays["y_test"], "y_test", name, len(x_test))
    classes = np.unique(y_train)
    if len(classes) < 2:
        raise DataError(
            f"y_train in {name} has one class only, {classes[0]}: at least 2 are needed"
        )
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        listed = ", ".join(map(str, unknown[:5]))
        raise DataError(
            f"y_test in {name} has classes that y_train lacks ({listed}): "
            f"remove those images or add training images"
        )
    return Images(
        name,
        x_train,
        torch.from_numpy(np.searchsorted(classes, y_train).astype(np.int64)),
        x_test,
        torch.from_numpy(np.searchsorted(classes, y_test).astype(np.int64)),
        len(classes),
    )


def _inputs(array: Array, key: str, name: str) -> Tensor:
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{key} in {name} has dtype {array.dtype}: save it as uint8 or float")
    shape = array.shape
    if len(shape) not in {2, 3, 4} or (len(shape) == 4 and shape[3] != 3):
        raise DataError(f"{key} in {name} has shape {shape}: give it as {_SHAPES}, colours last")
    if array.size == 0:
        raise DataError(f"{key} in {name} is empty, of shape {shape}: give at least one image")
    if array.dtype != np.uint8:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # overflow: reported just below
            array = array.astype(np.float32)
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise DataError(
                f"{key} in {name} has {bad} values that are NaN, infinite or too large for "
                f"float32: remove or replace them"
            )
    x = torch.from_numpy(np.array(array, order="C", copy=True))  # native, writable memory
    if x.ndim == 3:
        return x.unsqueeze(1)
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


def _labels(array: Array, key: str, name: str, length: int) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu":
        raise DataError(f"{key} in {name} has dtype {array.dtype}: save the classes as integers")
    if array.shape != (length,):
        raise DataError(
            f"{key} in {name} has shape {array.shape} for {length} images: "
            f"give one class an image, shape ({length},)"
        )
    return cast("npt.NDArray[np.int64]", array.astype(np.int64))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
