"""``protocol.wire``: what all messages have in common, their head and their fields, and how they are described."""

import struct
from collections.abc import Callable
from dataclasses import fields

import pytest

from protocol import VERSION, wire
from protocol.errors import MalformedMessage, VersionRefused
from protocol.parameters import SEED_BYTES
from protocol.wire import (
    AGGREGATE,
    ATTENDANCE,
    ATTENDANCE_BYTES,
    CONTRIBUTION,
    Attendance,
    decode_aggregate,
    decode_attendance,
    decode_contribution,
    describe,
    kind_of,
)
from tests.factories import RUN, SEALED, attend, attendance, contribution
from tests.protocol.frames import (
    AGGREGATES,
    ATTENDANCES,
    COHORT,
    CONTRIBUTIONS,
    KITS,
    PARAMETERS,
    ROSTER,
    SEEDS,
    aggregate,
    announced_by,
)


def test_the_fields_stand_where_the_tables_of_the_readme_say() -> None:
    made = attendance(KITS[1], votes=7)
    frame = attend(KITS[1], votes=7)
    assert frame[:24] == b"PRSL\x02\x01\0\0" + made.run
    assert struct.unpack("<6I", frame[24:48]) == (made.round, made.attempt, made.node, made.samples, 7, 7)
    assert (frame[48:80], frame[80:96], frame[96:128]) == (made.plan, made.key, made.model)
    assert (frame[128:160], frame[160:176], len(frame)) == (made.support, made.nonce, 176 + 64)
    sent, frame = contribution(KITS[1], COHORT, PARAMETERS), CONTRIBUTIONS[0]
    assert frame[:24] == b"PRSL\x02\x02\0\0" + sent.run
    assert struct.unpack("<6I", frame[24:48]) == (sent.round, 1, sent.node, 7, 0, len(SEALED))
    assert (frame[48:80], frame[80:96]) == (sent.plan, sent.key)
    assert (frame[96:128], frame[128:160], frame[160:224]) == (sent.cohort, sent.support, sent.seeds[0])
    assert frame[-64 - len(SEALED) : -64] == SEALED
    summed, frame = aggregate(SEEDS), AGGREGATES[0]
    assert frame[:24] == b"PRSL\x02\x03\0\0" + summed.run
    assert struct.unpack("<7I", frame[24:52]) == (summed.round, 1, 3, 7, 0, len(SEALED), 1)
    assert (frame[52:84], frame[84:100]) == (summed.plan, summed.key)
    assert (frame[100:132], frame[132:164]) == (summed.cohort, summed.support)
    assert frame[-3 * SEED_BYTES - len(SEALED) :] == b"".join(SEEDS[0]) + SEALED


DECODERS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (ATTENDANCES[0], lambda data: decode_attendance(data, ROSTER)),
    (CONTRIBUTIONS[0], lambda data: decode_contribution(data, announced_by(1), PARAMETERS, ROSTER)),
    (AGGREGATES[0], lambda data: decode_aggregate(data, PARAMETERS)),
    (AGGREGATES[0], describe),
]


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_another_magic_version_kind_or_reserved_field_is_refused(
    frame: bytes, decode: Callable[[bytes], object]
) -> None:
    for prefix in (
        b"PRSM\x02\x01\0\0",
        b"PRSL\x02\x00\0\0",
        b"PRSL\x02\x04\0\0",
        b"PRSL\x02\x01\1\0",
        b"PRSL\x02\x01\0\1",
    ):
        with pytest.raises(MalformedMessage, match="not a PruneSeal message"):
            decode(prefix + frame[8:])
    for version in (0, 1, 3, 255):
        with pytest.raises(VersionRefused, match=f"version {version}, and this program speaks version 2: install the"):
            decode(b"PRSL" + bytes([version]) + frame[5:])


@pytest.mark.parametrize("kind", [0, 1, 4, 255])
def test_another_version_is_named_before_its_kind_is_judged(kind: int) -> None:
    with pytest.raises(VersionRefused) as caught:
        kind_of(b"PRSL\x03" + bytes([kind]) + b"\1\0")
    assert caught.value.theirs == 3


@pytest.mark.parametrize(("frame", "decode"), DECODERS[:3])
def test_a_message_of_another_kind_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for kind in {ATTENDANCE, CONTRIBUTION, AGGREGATE} - {frame[5]}:
        with pytest.raises(MalformedMessage, match="another kind was expected"):
            decode(frame[:5] + bytes([kind]) + frame[6:])


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_a_message_that_ends_within_its_head_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for length in range(8):
        with pytest.raises(MalformedMessage, match=f"{length} bytes are not a message"):
            decode(frame[:length])
    with pytest.raises(MalformedMessage, match="ends within its head"):
        decode(frame[:100])


def test_a_message_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wire.LARGEST == 1 << 30
    monkeypatch.setattr(wire, "LARGEST", len(CONTRIBUTIONS[0]))
    assert kind_of(CONTRIBUTIONS[0]) == CONTRIBUTION
    with pytest.raises(MalformedMessage, match="bytes are not a message"):
        kind_of(CONTRIBUTIONS[0] + b"\0")


def test_anybody_can_describe_a_message() -> None:
    shown = describe(ATTENDANCES[0])
    assert shown["kind"] == "attendance"
    assert shown["bytes"] == ATTENDANCE_BYTES
    assert {key: shown[key] for key in ("version", "round", "node", "samples", "values")} == {
        "version": VERSION,
        "round": 1,
        "node": 1,
        "samples": 101,
        "values": 7,
    }
    assert (shown["run"], shown["nonce"]) == (RUN.hex(), "01000000" * 4)
    assert set(shown) == {f.name for f in fields(Attendance)} | {"kind", "version", "bytes"}


@pytest.mark.parametrize(
    ("frame", "kind", "made"),
    [
        (CONTRIBUTIONS[0], "contribution", contribution(KITS[1], COHORT, PARAMETERS)),
        (AGGREGATES[0], "aggregate", aggregate(SEEDS)),
    ],
)
def test_a_description_names_each_field_by_its_own_name(frame: bytes, kind: str, made: object) -> None:
    shown = describe(frame)
    assert (shown["kind"], shown["bytes"], shown["sealed_bytes"]) == (kind, len(frame), len(SEALED))
    named = {name: getattr(made, name) for name in shown if hasattr(made, name)}
    assert {name: shown[name] for name in named} == {
        name: value.hex() if isinstance(value, bytes) else value for name, value in named.items()
    }
    assert len(named) >= 10
    assert shown.get("by_seeds", 1) == 1
