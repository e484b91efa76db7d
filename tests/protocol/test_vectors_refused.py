"""The vectors that must be refused: what was refused stays refused, in the way that it says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_client.dealing import take
from protocol import errors
from protocol.attendance import decode_attendance
from protocol.bits import unpack_bits
from protocol.call import Call
from protocol.ciphertext import restore
from protocol.cohort import decode_cohort
from protocol.openings import decode_memory
from protocol.payload import unpack_payload
from protocol.plan import plan_from_config
from protocol.release import decode_consent, decode_release
from protocol.roster import load_roster
from protocol.sharing import join
from protocol.support import decode_support
from protocol.terms import decode_terms
from protocol.wire import aggregates, decode_aggregate, decode_contribution
from tests import factories
from tests.factories import layout
from tests.protocol.replaying import FOLDER, Case, parameters, read, roster, words


def taken(case: Case) -> list[bytes | None]:
    """What a node takes of what one member has dealt it."""
    kits = factories.kits(factories.plan(), roster().nodes)
    member = decode_attendance(bytes.fromhex(case["attendance"]), roster())
    call = Call(member.run, member.round, member.attempt)
    return [*take(bytes.fromhex(case["dealt"]), [member], call, kits[case["node"]])]


REFUSALS: dict[str, Callable[[Case], object]] = {
    "support": lambda case: decode_support(bytes.fromhex(case["encoded"]), case["size"]),
    "bits": lambda case: unpack_bits(bytes.fromhex(case["packed"]), case["count"], case["width"]),
    "terms": lambda case: decode_terms(bytes.fromhex(case["encoded"]), layout(*case["tensors"])),
    "attendance": lambda case: decode_attendance(bytes.fromhex(case["encoded"]), roster()),
    "cohort": lambda case: decode_cohort(bytes.fromhex(case["encoded"]), roster()),
    "contribution": lambda case: decode_contribution(
        bytes.fromhex(case["encoded"]),
        decode_attendance(bytes.fromhex(case["attendance"]), roster()),
        case["members"],
        parameters(case),
        roster(),
    ),
    "memory": lambda case: decode_memory(bytes.fromhex(case["encoded"])),
    "release": lambda case: decode_release(bytes.fromhex(case["encoded"])),
    "consent": lambda case: decode_consent(bytes.fromhex(case["encoded"]), roster()),
    "sharing": lambda case: join({int(node): bytes.fromhex(share) for node, share in case["shares"].items()}),
    "dealing": taken,
    "aggregate": lambda case: decode_aggregate(bytes.fromhex(case["encoded"]), parameters(case)),
    "aggregates": lambda case: list(aggregates(bytes.fromhex(case["encoded"]) * case.get("times", 1))),
    "residues": lambda case: restore(words(case["words"]), case["drop"]),
    "payload": lambda case: unpack_payload(
        words(case["slots"]),
        case["clients"],
        case["values"],
        case["votes"],
        bytes.fromhex(case["key"]),
        parameters(case),
    ),
    "plan": lambda case: plan_from_config(case["config"]),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("bad_*.json")))
def test_what_must_be_refused_is_refused_in_the_way_it_says(name: str, tmp_path: Path) -> None:
    case = read(name)
    expected = getattr(errors, case["expect"])
    if case["kind"] == "roster":
        (tmp_path / "operator.pub").write_text((FOLDER / "operator.pub").read_text())
        (tmp_path / "roster.json").write_text(case.get("text") or json.dumps(case["roster"], indent=1))
        with pytest.raises(expected) as refusal:
            load_roster(tmp_path / "roster.json")
    else:
        with pytest.raises(expected) as refusal:
            REFUSALS[case["kind"]](case)
    assert refusal.type is expected


def test_every_refusal_that_a_decoder_can_make_has_a_vector() -> None:
    kinds: dict[str, set[str]] = {}
    for path in FOLDER.glob("bad_*.json"):
        case = read(path.stem)
        kinds.setdefault(case["kind"], set()).add(case["expect"])
    assert kinds == {
        "support": {"MalformedMessage"},
        "bits": {"MalformedMessage"},
        "terms": {"MalformedMessage"},
        "attendance": {"MalformedMessage", "VersionRefused", "SignatureRefused"},
        "cohort": {"MalformedMessage", "SignatureRefused", "CohortRefused", "AgreementError"},
        "contribution": {"MalformedMessage", "SignatureRefused", "PeerMismatch"},
        "memory": {"MalformedMessage"},
        "release": {"MalformedMessage"},
        "consent": {"MalformedMessage", "SignatureRefused"},
        "sharing": {"MalformedMessage"},
        "dealing": {"MalformedMessage"},
        "aggregate": {"MalformedMessage"},
        "aggregates": {"MalformedMessage", "VersionRefused"},
        "residues": {"MalformedMessage"},
        "payload": {"Spoiled"},
        "plan": {"ConfigError", "HeadroomError"},
        "roster": {"RosterRefused"},
    }
