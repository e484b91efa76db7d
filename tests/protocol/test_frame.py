"""``protocol.frame``: what all messages have in common, their head and their fields, and how they are described."""

import struct
from collections.abc import Callable
from dataclasses import astuple, fields

import pytest

from protocol import VERSION, frame
from protocol.attendance import ATTENDANCE_BYTES, SHARE_BYTES, Attendance, decode_attendance
from protocol.describe import describe
from protocol.errors import MalformedMessage, VersionRefused
from protocol.figures import FIGURES
from protocol.frame import AGGREGATE, ATTENDANCE, CONSENT, CONTRIBUTION, RELEASE, kind_of
from protocol.openings import encode_memory
from protocol.parameters import SEED_BYTES
from protocol.release import decode_consent, decode_release
from protocol.wire import decode_aggregate, decode_contribution
from tests.factories import RUN, SEALED, attend, attendance, contribution, secrets
from tests.protocol.frames import (
    AGGREGATES,
    ATTENDANCES,
    COHORT,
    CONSENTS,
    CONTRIBUTIONS,
    DIVIDED,
    KITS,
    MEMORY,
    PARAMETERS,
    RELEASES,
    ROSTER,
    SEEDS,
    aggregate,
    announced_by,
    consent,
    release,
)


def test_the_fields_stand_where_the_tables_of_the_readme_say() -> None:
    made, memory = attendance(KITS[1], votes=7, spoiled=1 << 63, memory=MEMORY), encode_memory(MEMORY)
    frame = attend(KITS[1], votes=7, spoiled=1 << 63, memory=MEMORY)
    assert frame[:24] == b"PRSL\x02\x01\0\0" + made.run
    assert struct.unpack("<6I", frame[24:48]) == (made.round, made.attempt, made.node, made.samples, 7, 7)
    assert (frame[48:80], frame[80:96], frame[96:128]) == (made.plan, made.key, made.model)
    assert (frame[128:160], frame[160:192]) == (made.support, made.invited)
    assert (frame[192:224], frame[224:256], frame[256:288]) == (made.exchange, made.seed, made.dealt)
    assert frame[288:344] == struct.pack("<7q", *astuple(made.figures))
    assert (frame[344:356], frame[356:-64]) == (struct.pack("<QI", 1 << 63, len(memory)), memory)
    assert (len(frame), len(ATTENDANCES[0])) == (356 + len(memory) + 64, ATTENDANCE_BYTES) == (len(frame), 420)
    sent, frame = contribution(KITS[1], COHORT, PARAMETERS), CONTRIBUTIONS[0]
    assert frame[:24] == b"PRSL\x02\x02\0\0" + sent.run
    assert struct.unpack("<5I", frame[24:44]) == (sent.round, 1, sent.node, 7, 0)
    assert (frame[44:76], frame[76:92]) == (sent.plan, sent.key)
    assert (frame[92:124], frame[124:156]) == (sent.cohort, sent.support)
    assert (frame[156:157], CONTRIBUTIONS[1][156:157], frame[157:221]) == (b"\x0f", b"\x05", sent.seeds[0])
    assert len(frame) == 221 + -(-sent.first.size * PARAMETERS.width_up // 8) + 64
    summed, frame = aggregate(SEEDS), AGGREGATES[0]
    assert frame[:24] == b"PRSL\x02\x03\0\0" + summed.run
    assert struct.unpack("<9I2Q", frame[24:76]) == (summed.round, 1, 3, 4, 0, 7, 0, len(frame) - 220, 1, 306, 501)
    assert (frame[76:108], frame[108:124]) == (summed.plan, summed.key)
    assert (frame[124:156], frame[156:188], frame[188:220]) == (summed.cohort, summed.support, summed.voucher)
    assert struct.unpack("<I", AGGREGATES[3][40:44]) == (1,)
    assert len(frame) == 220 + -(-summed.first.size * PARAMETERS.width_down // 8) + 3 * SEED_BYTES + len(SEALED)
    assert frame[-3 * SEED_BYTES - len(SEALED) :] == b"".join(SEEDS[0]) + SEALED
    asked, frame = release(), RELEASES[0]
    assert frame[:24] == b"PRSL\x02\x04\0\0" + asked.run
    assert (frame[24:36], frame[36:68]) == (struct.pack("<3I", asked.round, 1, 4), asked.cohort)
    assert frame[68:] == struct.pack("<6I", 1, 1, 3, 1, 2, 0xFFFF_FFFF)
    assert RELEASES[3][68:] == struct.pack("<8I", 1, 2, 2, 1, 3, 2, 2, 0xFFFF_FFFF)
    answered, frame = consent(1), CONSENTS[0]
    assert frame[:24] == b"PRSL\x02\x05\0\0" + answered.run
    assert struct.unpack("<5I", frame[24:44]) == (answered.round, 1, 1, 4, 1)
    assert (frame[44:76], frame[76:80]) == (answered.cohort, struct.pack("<I", len(SEALED)))
    assert frame[80:-64] == b"".join([*answered.vouchers, *answered.shares, SEALED])
    assert CONSENTS[3][80:144] == bytes(range(0x60, 0xA0))
    announced = DIVIDED.encode()
    assert announced == struct.pack("<7I", 2, 2, 1, 3, 2, 2, 0xFFFF_FFFF) + b"".join(DIVIDED.encoded)
    assert COHORT.encode() == bytes(4) + b"".join(DIVIDED.encoded)
    assert SHARE_BYTES == 112


DECODERS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (ATTENDANCES[0], lambda data: decode_attendance(data, ROSTER)),
    (CONTRIBUTIONS[0], lambda data: decode_contribution(data, announced_by(1), 4, PARAMETERS, ROSTER)),
    (AGGREGATES[0], lambda data: decode_aggregate(data, PARAMETERS)),
    (RELEASES[0], decode_release),
    (CONSENTS[0], lambda data: decode_consent(data, ROSTER)),
    (AGGREGATES[0], describe),
]


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_another_magic_version_kind_or_reserved_field_is_refused(
    frame: bytes, decode: Callable[[bytes], object]
) -> None:
    for prefix in (
        b"PRSM\x02\x01\0\0",
        b"PRSL\x02\x00\0\0",
        b"PRSL\x02\x06\0\0",
        b"PRSL\x02\x01\1\0",
        b"PRSL\x02\x01\0\1",
    ):
        with pytest.raises(MalformedMessage, match="not a PruneSeal message"):
            decode(prefix + frame[8:])
    for version in (0, 1, 3, 255):
        with pytest.raises(VersionRefused, match=f"version {version}, and this program speaks version 2: install the"):
            decode(b"PRSL" + bytes([version]) + frame[5:])


@pytest.mark.parametrize("kind", [0, 1, 6, 255])
def test_another_version_is_named_before_its_kind_is_judged(kind: int) -> None:
    with pytest.raises(VersionRefused) as caught:
        kind_of(b"PRSL\x03" + bytes([kind]) + b"\1\0")
    assert caught.value.theirs == 3


@pytest.mark.parametrize(("frame", "decode"), DECODERS[:-1])
def test_a_message_of_another_kind_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for kind in {ATTENDANCE, CONTRIBUTION, AGGREGATE, RELEASE, CONSENT} - {frame[5]}:
        with pytest.raises(MalformedMessage, match="another kind was expected"):
            decode(frame[:5] + bytes([kind]) + frame[6:])


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_a_message_that_ends_within_its_head_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for length in range(8):
        with pytest.raises(MalformedMessage, match=f"{length} bytes are not a message"):
            decode(frame[:length])
    with pytest.raises(MalformedMessage, match="ends within its head"):
        decode(frame[:71])


def test_a_message_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert frame.LARGEST == 1 << 30
    monkeypatch.setattr(frame, "LARGEST", len(CONTRIBUTIONS[0]))
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
    assert (shown["run"], shown["exchange"]) == (RUN.hex(), secrets(1).public.hex())
    assert set(shown) == {f.name for f in fields(Attendance)} - {"memory", "figures"} | {
        *FIGURES,
        "kind",
        "version",
        "bytes",
        "memory_bytes",
    }
    assert (shown["memory_bytes"], describe(ATTENDANCES[3])["memory_bytes"]) == (0, len(encode_memory(MEMORY)))


@pytest.mark.parametrize(
    ("frame", "kind", "made"),
    [
        (CONTRIBUTIONS[0], "contribution", contribution(KITS[1], COHORT, PARAMETERS)),
        (AGGREGATES[0], "aggregate", aggregate(SEEDS)),
        (CONSENTS[0], "consent", consent(1)),
    ],
)
def test_a_description_names_each_field_by_its_own_name(frame: bytes, kind: str, made: object) -> None:
    shown = describe(frame)
    assert (shown["kind"], shown["bytes"]) == (kind, len(frame))
    named = {name: getattr(made, name) for name in shown if hasattr(made, name)}
    assert {name: shown[name] for name in named} == {
        name: value.hex() if isinstance(value, bytes) else value for name, value in named.items()
    }
    others = {"by_seeds": 1, "length": len(frame) - 220, "sets": 1, "sealed_bytes": len(SEALED)}
    assert set(shown) - set(named) <= {"kind", "version", "bytes", *others}
    assert {name: shown[name] for name in others if name in shown}.items() <= others.items()


def test_a_release_is_described_by_whose_it_is() -> None:
    assert describe(RELEASES[0]) == {
        "kind": "release",
        "version": VERSION,
        "bytes": len(RELEASES[0]),
        "run": RUN.hex(),
        "round": 1,
        "attempt": 1,
        "members": 4,
        "cohort": COHORT.digest(1).hex(),
        "terms": 1,
    }
