"""The golden vectors of messages: what was written once is read for ever, and written alike."""

from collections.abc import Callable

import numpy as np
import pytest

from protocol.attendance import Attendance, decode_attendance, encode_attendance
from protocol.cohort import decode_cohort
from protocol.frame import SIGNATURE_BYTES
from protocol.openings import Opening, decode_memory, encode_memory, nodes_digest
from protocol.parameters import DEGREE
from protocol.release import Consent, Release, decode_consent, decode_release, encode_consent, encode_release
from protocol.wire import (
    Aggregate,
    Contribution,
    aggregates,
    decode_aggregate,
    decode_contribution,
    encode_aggregate,
    encode_contribution,
)
from tests.protocol.replaying import Case, blake2b, fields, parameters, read, roster, words
from tests.vectors.golden_messages import MESSAGES


def replay_memory(case: Case) -> None:
    openings = {
        Opening(frozenset(each["invited"]), frozenset(map(frozenset, each["sets"]))): each["digest"]
        for each in case["openings"]
    }
    assert encode_memory(frozenset(openings)).hex() == case["encoded"]
    assert decode_memory(bytes.fromhex(case["encoded"])) == openings.keys()
    assert {opening: nodes_digest(opening.invited).hex() for opening in openings} == openings


def replay_attendance(case: Case) -> None:
    data = bytes.fromhex(case["encoded"])
    made = decode_attendance(data, roster())
    assert (fields(made), encode_memory(made.memory).hex()) == (case["fields"], case["memory"])
    assert encode_attendance(made) == data[:-SIGNATURE_BYTES]
    assert set(case["fields"]) == set(Attendance.__dataclass_fields__) - {"memory"}


def replay_cohort(case: Case) -> None:
    made = decode_cohort(bytes.fromhex(case["encoded"]), roster())
    assert made.encode().hex() == case["encoded"]
    assert (sorted(made.nodes), made.samples) == (case["nodes"], case["samples"])
    assert [sorted(group) for group in made.groups] == case["groups"]
    assert made.weights(case["most"]) == dict(zip(case["nodes"], case["weights"], strict=True))
    assert made.digest(case["attempt"]).hex() == case["digest"]


def replay_contribution(case: Case) -> None:
    data = bytes.fromhex(case["encoded"])
    attendance = decode_attendance(bytes.fromhex(case["attendance"]), roster())
    made = decode_contribution(data, attendance, len(case["held"]), parameters(case), roster())
    assert (fields(made), list(made.held)) == (case["fields"], case["held"])
    assert made.first.tolist() == case["residues"]
    assert encode_contribution(made, parameters(case)) == data[:-SIGNATURE_BYTES]
    assert set(case["fields"]) == set(Contribution.__dataclass_fields__) - {"held", "seeds", "first"}


def replay_release(case: Case) -> None:
    made = decode_release(bytes.fromhex(case["encoded"]))
    assert (fields(made), [sorted(one) for one in made.sets]) == (case["fields"], case["sets"])
    assert encode_release(made).hex() == case["encoded"]
    assert set(case["fields"]) == set(Release.__dataclass_fields__) - {"sets"}


def replay_consent(case: Case) -> None:
    data = bytes.fromhex(case["encoded"])
    made = decode_consent(data, roster())
    assert (fields(made), [share.hex() for share in made.shares]) == (case["fields"], case["shares"])
    assert [voucher.hex() for voucher in made.vouchers] == case["vouchers"]
    assert encode_consent(made) == data[:-SIGNATURE_BYTES]
    assert set(case["fields"]) == set(Consent.__dataclass_fields__) - {"vouchers", "shares"}


def replay_aggregate(case: Case) -> None:
    if "encoded" in case:
        data = bytes.fromhex(case["encoded"])
    else:
        (only,) = case["sums"]
        known: Case = {name: bytes.fromhex(x) if isinstance(x, str) else x for name, x in only["fields"].items()}
        second = (np.arange(DEGREE, dtype=np.uint64) << np.uint64(48)).reshape(1, DEGREE)
        data = encode_aggregate(Aggregate(first=words(only["residues"]), second=second, **known), parameters(case))
        assert (len(data), blake2b(data)) == (case["bytes"], case["blake2b"])
        halves = decode_aggregate(data, parameters(case)).second
        assert isinstance(halves, np.ndarray)
        assert halves.tolist() == second.tolist()
    cut = [each for each, _ in aggregates(data)]
    assert b"".join(cut) == data
    for one, expected in zip(cut, case["sums"], strict=True):
        made = decode_aggregate(one, parameters(case))
        assert fields(made) == expected["fields"]
        assert made.first.tolist() == expected["residues"]
        assert encode_aggregate(made, parameters(case)) == one


REPLAYS: dict[str, Callable[[Case], None]] = {
    "memory": replay_memory,
    "attendance": replay_attendance,
    "cohort": replay_cohort,
    "contribution": replay_contribution,
    "release": replay_release,
    "consent": replay_consent,
    "aggregate": replay_aggregate,
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_code_still_reads_and_writes_what_it_wrote(kind: str) -> None:
    cases = read(kind)
    assert cases
    for case in cases:
        REPLAYS[kind](case)
