"""What is done to a frame or a file by somebody who knows how such files are made."""

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

LONGEST: Final = 1 << 16
"""Bytes of a mutation."""

_NUMBERS: Final = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    (1 << 63) - 1,
)
_WORDS: Final = (
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0.5", b'""', b"[]", b"{}", b",", b":", b'"', b"\n"),
    *(
        b"[" * 3000,
        b'{"a":' * 1500,
        b"9" * 5000,
        b"\\ud800",
        b"\\u0000",
        b"\xff\xfe",
        b"\x00",
        b"\x1b[2J",
        b"= [",
        b"'''",
    ),
)
_LEAVES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, -0.0, 1e308, 1e400),
    *("", "a", "\x1b[2J", "\ud800", "x" * 5000, "00" * 32, "é", [], {}, [[]], [None], {"": None}, [0] * 500),
)


def mutated(seeds: Sequence[bytes], rng: Random) -> bytes:
    """One of the seeds, and one to four things done to it; those that are JSON are mutated as values, too."""
    data = rng.choice(seeds)
    if rng.random() < 0.5 and (value := _parsed(data)) is not None:
        for _ in range(rng.randint(1, 3)):
            value = _other(value, rng)
        data = json.dumps(value).encode()
        if rng.random() < 0.7:
            return data[:LONGEST]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_CHANGES)(changed, seeds, rng)
    return bytes(changed[:LONGEST])


def _parsed(data: bytes) -> Any:
    """The value of a seed that is a JSON object or list, or None."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _other(value: Any, rng: Random) -> Any:
    """A value in which something is another."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(_LEAVES)
    if isinstance(value, dict):
        key, kind = rng.choice(list(value)), rng.random()
        if kind < 0.1:
            return {name: one for name, one in value.items() if name != key}
        other = key if kind > 0.2 else str(rng.choice(_LEAVES))[:50]
        return {**value, other: _other(value[key], rng)}
    place, kind = rng.randrange(len(value)), rng.random()
    if kind < 0.2:
        return value[:place] + (value[place + 1 :] if kind < 0.1 else value)
    return [*value[:place], _other(value[place], rng), *value[place + 1 :]]


# --- bytes -------------------------------------------------------------------------------------------

_Change = Callable[[bytearray, Sequence[bytes], Random], None]


def _at(data: bytearray, rng: Random) -> int:
    """A place: anywhere, but often near the beginning, where heads are."""
    return rng.randrange(min(len(data), 64) if rng.random() < 0.3 else len(data)) if data else 0


def _flip(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    if data:
        data[_at(data, rng)] = rng.randrange(256)


def _number(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    size, at = rng.choice((1, 2, 4, 8)), _at(data, rng)
    value = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64)
    data[at : at + size] = struct.pack(rng.choice(("<Q", ">Q")), value)[
        slice(size) if rng.random() < 0.5 else slice(-size, None)
    ]


def _cut(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    del data[at : rng.choice((at + 1, at + rng.randint(1, 16), len(data)))]


def _insert(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    data[at:at] = rng.choice(_WORDS) if rng.random() < 0.6 else rng.randbytes(rng.randint(1, 16))


def _repeat(data: bytearray, _: Sequence[bytes], rng: Random) -> None:
    at = _at(data, rng)
    data[at:at] = bytes(data[at : at + rng.randint(1, 64)]) * rng.choice((1, 2, 8, 200))
    del data[LONGEST:]


def _splice(data: bytearray, seeds: Sequence[bytes], rng: Random) -> None:
    other, at = rng.choice(seeds), _at(data, rng)
    start = at if rng.random() < 0.5 else rng.randrange(len(other) + 1)
    data[at : at + rng.randint(0, 256)] = other[start : start + rng.randint(0, 256)]


_CHANGES: Final[tuple[_Change, ...]] = (_flip, _flip, _byte, _number, _number, _cut, _insert, _repeat, _splice)
