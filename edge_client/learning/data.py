"""A node's data: one data set, loaded by name, and the share of it that one client holds.

Law of :func:`part`: over the K clients of a run the test shares are disjoint and cover the test set, so the sum of the
clients' correct counts over the sum of their counts is the accuracy on the whole test set.

Source: ``digits`` is the test part of the UCI optical recognition of handwritten digits set (Alpaydin, Kaynak 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0), 1,797 images of 8 x 8, as scikit-learn embeds it; ``digits.npz`` holds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_client.learning.datafiles import read_idx, read_npz
from protocol.errors import DataError

DIGITS_FILE: Final = Path(__file__).with_name("digits.npz")
Inputs = NDArray[np.float32]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]

FORMS = (
    "digits; idx:DIR (the four MNIST-style files); npz:FILE (arrays x, y and optionally x_test, y_test, groups, "
    "labels); package.module:function (returning a DataSet or train_x, train_y, test_x, test_y)"
)
"""The data specs that :func:`load` knows, for error texts and help."""

_SPLIT_SEED = 20_220_427
"""Seed of the 80/20 split of data that comes without a test set: part of the format, never to be changed."""

_CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA: the lengths of an axis that is taken for the channels of a uint8 image."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test rows of one classification task.

    Attributes:
        name: What to call it in reports.
        train_x: f32[n, *shape], finite.
        train_y: i64[n], in [0, classes).
        test_x: f32[m, *shape], finite.
        test_y: i64[m], in [0, classes).
        classes: The number of classes, at least 2.
        groups: i64[n], which natural group (user, device, site) each training row belongs to; None where unknown.
        labels: What each class is called, in order; empty where they are only numbers.
        scale: Inputs are (raw - shift) / scale, where raw is what a sensor or an image file gives.
        shift: See ``scale``.
        raw_range: The smallest and the largest raw value that can occur; None where unknown.

    Raises:
        DataError: An array is empty, not finite, of another type, shape or length, or has a label out of range; or the
            labels or the raw values' description cannot be meant.
    """

    name: str
    train_x: Inputs
    train_y: Labels
    test_x: Inputs
    test_y: Labels
    classes: int
    groups: Labels | None = None
    labels: tuple[str, ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    raw_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise DataError(f"{self.name}: a classification task needs at least 2 classes, not {self.classes}")
        if self.labels and len(self.labels) != self.classes:
            raise DataError(f"{self.name}: {len(self.labels)} labels for {self.classes} classes; give one to each")
        if not (isfinite(self.scale) and self.scale > 0 and isfinite(self.shift)):
            raise DataError(f"{self.name}: scale {self.scale} must be positive, shift {self.shift} finite")
        if self.raw_range is not None and not self.raw_range[0] < self.raw_range[1]:
            raise DataError(f"{self.name}: the range of raw values {self.raw_range} is empty; give (lowest, highest)")
        for part_name, x, y in (("training", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            where, found = f"{self.name}, {part_name} set", f"{x.dtype}{x.shape} and {y.dtype}{y.shape}"
            if x.dtype != np.float32 or x.ndim < 2 or y.dtype != np.int64 or y.ndim != 1:
                raise DataError(f"{where}: must be float32[n, ...] and int64[n], not {found}")
            if x.size == 0 or len(x) != len(y):
                raise DataError(f"{where}: must be one or more inputs with a label each, not {found}")
            if not np.isfinite(x).all():
                raise DataError(f"{where}: the inputs hold NaN or infinity (or overflow float32); clean them first")
            if y.min() < 0 or y.max() >= self.classes:
                raise DataError(f"{where}: labels run from {y.min()} to {y.max()}, outside 0..{self.classes - 1}")
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(f"{self.name}: train {self.train_x.shape} and test {self.test_x.shape} differ in shape")
        if self.groups is not None and (self.groups.dtype != np.int64 or self.groups.shape != self.train_y.shape):
            raise DataError(f"{self.name}: groups must be int64 with one number for each of {len(self.train_y)} rows")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch axis."""
        return self.train_x.shape[1:]

    @property
    def label_names(self) -> tuple[str, ...]:
        """What to call each class: its label, or its number."""
        return self.labels or tuple(map(str, range(self.classes)))

    def raw(self, x: Inputs) -> Inputs:
        """The raw values of inputs, f32 of the same shape, up to float rounding."""
        return x * np.float32(self.scale) + np.float32(self.shift)


@dataclass(frozen=True, eq=False)
class Share:
    """What one client holds; its arrays are the client's own copies and may be written.

    Attributes:
        x: f32[n_k, *shape], n_k > 0.
        y: i64[n_k].
        test_x: f32[m_k, *shape]; m_k is 0 where there are more clients than test rows.
        test_y: i64[m_k].
    """

    x: Inputs
    y: Labels
    test_x: Inputs
    test_y: Labels


def part(data: DataSet, indices: Indices, position: int, clients: int) -> Share:
    """The share of the client at ``position`` of ``clients``.

    Args:
        data: The whole data set.
        indices: i64[n_k], its training rows, from :func:`edge_client.learning.partition.partition`.
        position: k, the client's place in [0, clients).
        clients: K. Test rows k, k + K, k + 2K, ... are this client's.

    Raises:
        DataError: There are no training rows, a row does not exist, or the position is out of range.
    """
    if not 0 <= position < clients:
        raise DataError(f"client position {position} is outside 0..{clients - 1}")
    if indices.size == 0:
        raise DataError(f"no usable data: no training rows of {data.name} for client {position}; use fewer clients")
    if indices.min() < 0 or indices.max() >= len(data.train_y):
        raise DataError(f"the share asks for rows beyond the {len(data.train_y)} of {data.name}: made for other data?")
    return Share(
        x=data.train_x[indices],
        y=data.train_y[indices],
        test_x=data.test_x[position::clients].copy(),
        test_y=data.test_y[position::clients].copy(),
    )


@lru_cache(maxsize=2)
def load(spec: str) -> DataSet:
    """The data set that ``spec`` names (see :data:`FORMS`); deterministic, and read only once per process.

    All callers of one process get the same object, so arrays that this module made are read-only: :func:`part` copies.
    uint8 inputs are divided by 255 and, as images, brought to [n, channels, height, width] from there or from channels
    last or without a channel axis; floating inputs are taken as they are. The import path runs the code that it names:
    it belongs in settings that the node's owner writes.

    Raises:
        DataError: The spec is unknown, or what it names is missing, malformed or no classification data.
    """
    if spec == "digits":
        return _digits()
    kind, _, argument = spec.partition(":")
    if not argument:
        raise DataError(f"unknown data {spec!r}; known forms: {FORMS}")
    if kind == "idx":
        return _assemble(spec, read_idx(Path(argument).expanduser()))
    if kind == "npz":
        return _assemble(spec, read_npz(Path(argument).expanduser()))
    try:
        function = import_function(spec)
    except ImportError as error:
        raise DataError(f"data {spec!r}: {error}; known forms: {FORMS}") from error
    match function():
        case DataSet() as data:
            return data
        case (train_x, train_y, test_x, test_y):
            return _assemble(spec, {"x": train_x, "y": train_y, "x_test": test_x, "y_test": test_y})
        case other:
            raise DataError(f"data {spec!r} returned {type(other).__name__}; known forms: {FORMS}")


def import_function(path: str) -> Callable[..., object]:
    """The function at the import path ``package.module:function``.

    Raises:
        ImportError: The path has another form, the module cannot be imported, or it has no such function. The text says
            which; callers turn it into their own error.
    """
    module_name, _, name = path.partition(":")
    if not all(word.isidentifier() for word in (*module_name.split("."), name)):
        raise ImportError(f"{path!r} does not have the form package.module:function")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ImportError(f"cannot import {module_name} ({error}); its folder must be on PYTHONPATH") from error
    function: object = getattr(module, name, None)
    if callable(function):
        return function
    raise ImportError(f"module {module_name} has no function {name}")


def _digits() -> DataSet:
    with np.load(DIGITS_FILE) as file:
        data = _assemble("digits", {"x": file["x"].reshape(-1, 1, 8, 8) / 16, "y": file["y"]})
    return replace(data, scale=16.0, raw_range=(0.0, 16.0))


def _assemble(name: str, values: Mapping[str, object]) -> DataSet:
    """A DataSet of read-only arrays from raw ones, with a test set split off where none is given."""
    try:
        arrays = {key: np.asarray(value) for key, value in values.items()}
    except ValueError as error:
        raise DataError(f"{name}: not rectangular arrays of numbers ({error})") from error
    x, y = _inputs(name, arrays["x"]), _labels(name, arrays["y"])
    groups = np.unique(arrays["groups"], return_inverse=True)[1].astype(np.int64) if "groups" in arrays else None
    if "x_test" in arrays:
        test_x, test_y = _inputs(name, arrays["x_test"]), _labels(name, arrays["y_test"])
    else:
        if len(x) != len(y) or (groups is not None and groups.shape != y.shape):
            raise DataError(f"{name}: inputs, labels and groups must have the same length")
        train, test = _split(y)
        x, y, test_x, test_y = x[train], y[train], x[test], y[test]
        groups = None if groups is None else groups[train]
    for array in (x, y, test_x, test_y, groups):
        if array is not None:
            array.flags.writeable = False
    labels = _names(name, arrays["labels"]) if "labels" in arrays else ()
    classes = len(labels) or int(max(y.max(initial=0), test_y.max(initial=0))) + 1
    data = DataSet(name, x, y, test_x, test_y, classes, groups, labels)
    pixels = all(arrays[key].dtype == np.uint8 for key in ("x", "x_test") if key in arrays)
    return replace(data, scale=255.0, raw_range=(0.0, 255.0)) if pixels else data


def _inputs(name: str, x: NDArray[Any]) -> Inputs:
    """f32[n, *shape], a new array, scaled and with channels first as :func:`load` says."""
    if x.ndim < 2 or (x.dtype.kind != "f" and x.dtype != np.uint8):
        raise DataError(f"{name}: inputs must be rows of uint8 or floating point, not {x.dtype} of shape {x.shape}")
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which DataSet refuses
            return x.astype(np.float32, order="C")
    if x.ndim == 3:
        x = x[:, np.newaxis]
    elif x.ndim == 4 and x.shape[-1] in _CHANNELS:
        x = np.moveaxis(x, -1, 1)
    elif x.ndim == 4 and x.shape[1] not in _CHANNELS:
        raise DataError(f"{name}: no axis of the uint8 images {x.shape} can be the channels (1, 3 or 4, last or first)")
    scaled = x.astype(np.float32, order="C")
    scaled /= 255
    return scaled


def _labels(name: str, y: NDArray[Any]) -> Labels:
    """i64[n], a new array."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"{name}: labels must be one integer per row, not {y.dtype} of shape {y.shape}")
    return y.astype(np.int64)


def _names(name: str, labels: NDArray[Any]) -> tuple[str, ...]:
    if labels.dtype.kind != "U" or labels.ndim != 1:
        raise DataError(f"{name}: labels must be one string per class, not {labels.dtype} of shape {labels.shape}")
    return tuple(map(str, labels))


def _split(labels: Labels) -> tuple[Indices, Indices]:
    """Sorted training and test rows: of every class a fifth, to the nearest row, goes to the test set."""
    rng = np.random.default_rng(_SPLIT_SEED)
    in_test = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        in_test[rows[: (len(rows) + 2) // 5]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)
