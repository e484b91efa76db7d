"""Arrays from an ``.npz`` file that `numpy.savez` wrote, and that somebody may have changed since.

NumPy's own reader makes an array as large as its header says before it looks for the data; here a header is held
against the bytes that are there, so that reading takes twice the file and no more.
"""

import re
from io import BytesIO
from math import prod
from typing import Any, Final
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

_HEAD: Final = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>\|[biu]1|<[iuf][248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18},? ?){0,4})\), \} *\n",
    re.DOTALL,
)
"""What stands before the numbers of an array in row-major order."""


def read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays by name.

    Args:
        data: The file.

    Raises:
        ValueError: It is none that `numpy.savez` wrote, or is damaged.
    """
    try:
        with ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > len(data):
                raise ValueError("its members are not as numpy.savez stores them")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except (BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"it is no archive: {error}") from error


def _array(raw: bytes) -> NDArray[Any]:
    """The array that one member holds."""
    head = _HEAD.match(raw)
    if head is None or int.from_bytes(raw[8:10], "little") != head.end() - 10:
        raise ValueError("an array in it has another head than numpy.savez writes")
    dtype = np.dtype(head["dtype"].decode())
    shape = tuple(int(side) for side in head["shape"].split(b",") if side.strip())
    data = memoryview(raw)[head.end() :]
    if prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array in it is not as long as its head says")
    return np.frombuffer(data, dtype).reshape(shape).copy()
