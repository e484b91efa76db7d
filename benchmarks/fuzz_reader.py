"""What a reader is to the search for hostile bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
_SLACK: Final = 1 << 18


@dataclass(frozen=True)
class Reader:
    """Something that reads bytes of others.

    Attributes:
        name: What it reads.
        seeds: Bytes of the kind that it is for.
        read: Reads bytes.
        mend: Makes what does not depend on luck right again, a signature for one; applied to half of all mutations.
        times: How many times its bytes it may take.
        slack: Bytes that it may take whatever it is given.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    mend: Callable[[bytes], bytes] | None = None
    times: int = 20
    slack: int = _SLACK


def from_file(path: Path, read: Callable[[], object], mode: int = 0o600) -> Callable[[bytes], object]:
    """A reader of bytes from one of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode)

    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return written
