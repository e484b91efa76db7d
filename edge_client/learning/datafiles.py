"""Files of arrays that a data set is made of: the idx layout of the MNIST files (LeCun, Cortes, Burges), and npz."""

import gzip
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import DataError

_ARRAYS = ("x", "y", "x_test", "y_test", "groups", "labels")


def read_idx(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """The arrays x, y, x_test and y_test of a folder with the four MNIST-style files.

    Raises:
        DataError: A file is missing, or is no such file.
    """
    files = {
        "x": ("train-images-idx3-ubyte", 3),
        "y": ("train-labels-idx1-ubyte", 1),
        "x_test": ("t10k-images-idx3-ubyte", 3),
        "y_test": ("t10k-labels-idx1-ubyte", 1),
    }
    return {key: _read(folder, name, axes) for key, (name, axes) in files.items()}


def _read(folder: Path, name: str, axes: int) -> NDArray[np.uint8]:
    """An idx file, plain or as .gz: bytes 0, 0, 8 (the type u8), axes; one big-endian u32 per axis; then the values."""
    plain, packed = folder / name, folder / f"{name}.gz"
    file = plain if plain.is_file() else packed
    if not file.is_file():
        raise DataError(f"missing file: neither {plain} nor {packed.name} beside it exists")
    try:
        raw = gzip.decompress(file.read_bytes()) if file == packed else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({error}); fetch it again") from error
    head = struct.Struct(f">4B{axes}I")
    if len(raw) < head.size or raw[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{file} is no idx file of bytes with {axes} axes: it starts with [{raw[:4].hex(' ')}]")
    shape = head.unpack_from(raw)[4:]
    if len(raw) != head.size + prod(shape):
        raise DataError(f"{file} says that it holds {shape} bytes, but {len(raw) - head.size} follow; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=head.size).reshape(shape)


def read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays x and y, and those of x_test, y_test, groups and labels that there are.

    Raises:
        DataError: The file is missing or no such file, or an array is missing.
    """
    if not file.is_file():
        raise DataError(f"missing file: {file} does not exist")
    try:
        zipfile.ZipFile(file).close()  # or numpy would take the file for another of its formats
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _ARRAYS if key in archive.files}
            found = ", ".join(archive.files)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "write plain number arrays with numpy.savez (object arrays are refused: reading one can run code)"
        raise DataError(f"{file} cannot be read ({error}); {remedy}") from error
    if not {"x", "y"} <= arrays.keys():
        raise DataError(f"{file} must hold the arrays x and y; it holds: {found}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{file} holds only one of x_test and y_test; give both, or neither for an 80/20 split")
    return arrays
