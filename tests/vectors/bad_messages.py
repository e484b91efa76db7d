"""Messages, and what stands in them, that must be refused: each made from a good one by the change in its name."""

import struct
from dataclasses import replace
from typing import Any, Final

from protocol.attendance import SHARE_BYTES
from protocol.cohort import Cohort
from protocol.frame import AGGREGATE, ATTENDANCE, CONTRIBUTION, SIGNATURE_BYTES, signed
from protocol.openings import Opening, encode_memory
from protocol.release import Consent, Release, encode_consent, encode_release
from protocol.sharing import SECRET_BYTES
from protocol.wire import encode_aggregate, encode_contribution
from tests import factories
from tests.vectors.scene import COHORT, KITS, MEMORY, NODES, PLAN, Bad, Case, aggregate_of


def _case(data: bytes, expect: str = "MalformedMessage", **inputs: Any) -> tuple[str, Case]:
    return expect, {**inputs, "encoded": data.hex()}


def _with_number(good: bytes, place: int, number: int, size: str = "I") -> bytes:
    put = struct.pack(f"<{size}", number)
    return good[:place] + put + good[place + len(put) :]


def bad_memories() -> Bad:
    """What is no memory."""
    one, other = sorted(encode_memory(frozenset({opening})) for opening in MEMORY)
    few, alike = struct.pack("<3I", 2, 1, 2), struct.pack("<2I", 1, 1)
    return {
        "order": _case(other + one),
        "twice": _case(one + one),
        "set_twice": _case(few + struct.pack("<I", 2) + alike + alike),
        "set_order": _case(few + struct.pack("<5I", 2, 1, 2, 1, 1)),
        "nodes_order": _case(struct.pack("<4I", 2, 2, 1, 0)),
        "node_twice": _case(struct.pack("<4I", 2, 1, 1, 0)),
        "stranger": _case(few + struct.pack("<3I", 1, 1, 3)),
        "more_sets": _case(few + struct.pack("<I", 0xFFFF_FFFF)),
        "more_nodes": _case(struct.pack("<I", 0xFFFF_FFFF)),
        "cut": _case(one[:-1]),
        "longer": _case(one + b"\0"),
    }


def bad_attendances() -> Bad:
    """What is no attendance, or not signed by the node that it names."""
    good, kit = COHORT.encoded[0], KITS[1]
    body = good[:-SIGNATURE_BYTES]
    remembering = factories.attend(kit, memory=MEMORY)
    one, other = sorted(encode_memory(frozenset({opening})) for opening in MEMORY)
    turned = remembering[: -SIGNATURE_BYTES - len(one + other)] + other + one
    strange = frozenset({Opening(frozenset({1, 2}), frozenset({frozenset({1, 3})}))})
    return {
        "magic": _case(b"PRSM" + good[4:]),
        "version": _case(good[:4] + b"\x01" + good[5:], "VersionRefused"),
        "kind": _case(good[:5] + bytes([CONTRIBUTION]) + good[6:]),
        "unknown_kind": _case(good[:5] + b"\x06" + good[6:]),
        "reserved": _case(good[:7] + b"\x01" + good[8:]),
        "cut": _case(good[:-1]),
        "longer": _case(good + b"\0"),
        "head": _case(good[:100]),
        "samples": _case(factories.attend(kit, samples=0)),
        "values": _case(factories.attend(kit, values=0, votes=7)),
        "votes": _case(factories.attend(kit, votes=1)),
        "exchange_zero": _case(factories.attend(kit, exchange=bytes(32))),
        "exchange_one": _case(factories.attend(kit, exchange=b"\x01" + bytes(31))),
        "memory_length": _case(_with_number(good, 344, 4)),
        "memory_order": _case(signed(turned, kit.sign(turned))),
        "memory_stranger": _case(factories.attend(kit, memory=strange)),
        "changed": _case(_with_number(good, 36, 1_000_000), "SignatureRefused"),
        "exchange_changed": _case(good[:192] + bytes([good[192] ^ 1]) + good[193:], "SignatureRefused"),
        "other_signer": _case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "stranger": _case(factories.attend(kit, node=3), "SignatureRefused"),
    }


def bad_cohorts() -> Bad:
    """What is no list of signed, agreeing attendances in ascending order."""
    one, two, three = COHORT.encoded

    def last(**changes: Any) -> bytes:
        return factories.attend(KITS[300], votes=7, **changes)

    return {
        "empty": _case(b"", "CohortRefused"),
        "length": _case(one + two + three + b"\0"),
        "memory_length": _case(one + two + _with_number(three, 344, 0xFFFF_FFFF)),
        "order": _case(two + one + three),
        "twice": _case(one + two + two, "CohortRefused"),
        "two_keys": _case(one + two + factories.attend(KITS[2], votes=7, seed=bytes(32)), "CohortRefused"),
        "five_of_four": _case(one + two + three + three + three, "CohortRefused"),
        "model": _case(one + two + last(model=bytes(32)), "AgreementError"),
        "round": _case(one + two + last(round=2), "AgreementError"),
        "attempt": _case(one + two + last(attempt=2), "AgreementError"),
        "invited": _case(one + two + last(invited=bytes(32)), "AgreementError"),
        "samples": _case(one + two[:36] + bytes([200]) + two[37:] + three, "SignatureRefused"),
    }


def bad_contributions() -> Bad:
    """What is no contribution, was not announced, or is not signed by its node."""
    p, kit = PLAN.parameters, KITS[1]
    good = factories.contribute(kit, COHORT, p)

    def case(data: bytes, expect: str = "MalformedMessage", cohort: Cohort = COHORT) -> tuple[str, Case]:
        inputs = {"attendance": cohort.encoded[0].hex(), "members": 3}
        return _case(data, expect, **inputs, bits=PLAN.bits, clients_at_most=PLAN.max_cohort)

    # Without votes there are so many slots that bits of their last byte are unused.
    few = factories.cohort({node: KITS[node] for node in NODES})
    body, short = good[:-SIGNATURE_BYTES], encode_contribution(factories.contribution(kit, few, p), p)
    spare, held = short[:-1] + bytes([short[-1] | 0x80]), body[:156] + b"\x0f" + body[157:]
    return {
        "kind": case(good[:5] + bytes([ATTENDANCE]) + good[6:]),
        "cut": case(good[:-1]),
        "members": case(factories.contribute(kit, COHORT, p, held=(True,) * 9)),
        "node": case(factories.contribute(KITS[2], COHORT, p), "PeerMismatch"),
        "values": case(factories.contribute(kit, COHORT, p, values=8, votes=8), "PeerMismatch"),
        "votes": case(factories.contribute(kit, COHORT, p, votes=0), "PeerMismatch"),
        "residue_changed": case(good[:230] + bytes([good[230] ^ 1]) + good[231:], "SignatureRefused"),
        "held_changed": case(good[:156] + b"\x05" + good[157:], "SignatureRefused"),
        "other_signer": case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "unused_bit": case(signed(spare, kit.sign(spare)), cohort=few),
        "held_unused_bit": case(signed(held, kit.sign(held))),
    }


def bad_releases() -> Bad:
    """What is no release."""
    made = Release(factories.RUN, 1, 1, 3, COHORT.digest(1), terms=True, nodes=frozenset(NODES))
    good = encode_release(made)
    return {
        "kind": _case(good[:5] + bytes([AGGREGATE]) + good[6:]),
        "cut": _case(good[:-1]),
        "longer": _case(good + b"\0"),
        "head": _case(good[:75]),
        "nobody": _case(encode_release(replace(made, nodes=frozenset()))),
        "more_than_members": _case(encode_release(replace(made, members=2))),
        "count": _case(_with_number(good, 72, 2)),
        "order": _case(good[:76] + struct.pack("<3I", 2, 1, 300)),
        "twice": _case(good[:76] + struct.pack("<3I", 1, 1, 300)),
        "terms": _case(_with_number(good, 68, 2)),
        "terms_padding": _case(_with_number(good, 68, 0x101)),
    }


def bad_consents() -> Bad:
    """What is no consent, or not signed by its node."""
    shares = tuple(bytes(range(start, start + SECRET_BYTES)) for start in range(3))
    made = Consent(factories.RUN, 1, 1, 1, 3, COHORT.digest(1), bytes(range(0x60, 0x80)), shares, factories.SEALED)
    body, kit = encode_consent(made), KITS[1]
    good, strange = signed(body, kit.sign(body)), encode_consent(replace(made, node=3))

    def again(**changes: Any) -> bytes:
        other = encode_consent(replace(made, **changes))
        return signed(other, kit.sign(other))

    return {
        "kind": _case(good[:5] + bytes([ATTENDANCE]) + good[6:]),
        "cut": _case(good[:-1]),
        "longer": _case(good + b"\0"),
        "head": _case(good[:107]),
        "members": _case(again(members=2)),
        "share_missing": _case(again(shares=shares[:2])),
        "sealed_length": _case(_with_number(good, 104, len(factories.SEALED) - 1)),
        "share_changed": _case(good[:140] + bytes([good[140] ^ 1]) + good[141:], "SignatureRefused"),
        "voucher_changed": _case(good[:72] + bytes(32) + good[104:], "SignatureRefused"),
        "other_signer": _case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "stranger": _case(signed(strange, kit.sign(strange)), "SignatureRefused"),
    }


def bad_aggregates() -> Bad:
    """What is no aggregate; it is not signed."""
    p = PLAN.parameters
    words, second = factories.dummy_words(p.slots(7, 7), p.width_down), (factories.dummy_seeds(3),)
    good = encode_aggregate(aggregate_of(words, second, factories.SEALED), p)

    def case(data: bytes) -> tuple[str, Case]:
        return _case(data, bits=PLAN.bits, clients_at_most=PLAN.max_cohort)

    def with_number(place: int, number: int, size: str = "I") -> tuple[str, Case]:
        return case(_with_number(good, place, number, size))

    few = factories.dummy_words(p.slots(7, 0), p.width_down)  # as many as leave bits of their last byte unused
    spare = encode_aggregate(replace(aggregate_of(few, second, factories.SEALED), votes=0), p)
    last = 216 + (p.slots(7, 0) * p.width_down + 7) // 8 - 1
    return {
        "kind": case(good[:5] + bytes([AGGREGATE - 1]) + good[6:]),
        "cut": case(good[:-1]),
        "longer": case(good + b"\0"),
        "nobody": with_number(32, 0),
        "too_many": with_number(32, 6),
        "more_than_members": with_number(32, 4),
        "fewer_members": with_number(36, 2),
        "too_many_members": with_number(36, 6),
        "values": with_number(40, 0),
        "votes": with_number(44, 1),
        "sealed_length": with_number(48, 1 << 31),
        "form": with_number(52, 2),
        "form_padding": with_number(52, 0x100 + 1),
        "weight_nothing": with_number(56, 0, "Q"),
        "weight_above_total": with_number(64, 302, "Q"),
        "unused_bit": case(spare[:last] + bytes([spare[last] | 0x80]) + spare[last + 1 :]),
    }


def bad_shares() -> Bad:
    """What is no share, beside one that is."""
    prime, good = (1 << 255) - 19, bytes(range(32))

    def case(share: bytes) -> tuple[str, Case]:
        return "MalformedMessage", {"shares": {"1": good.hex(), "2": share.hex()}}

    return {
        "cut": case(good[:-1]),
        "longer": case(good + b"\0"),
        "missing": case(b""),
        "prime": case(prime.to_bytes(32, "little")),
        "high_bit": case(good[:-1] + bytes([good[-1] | 0x80])),
    }


def bad_dealings() -> Bad:
    """Not one deal of each member."""
    inputs = {"attendance": COHORT.encoded[0].hex(), "node": 2}
    return {
        "cut": ("MalformedMessage", {**inputs, "dealt": bytes(SHARE_BYTES - 1).hex()}),
        "longer": ("MalformedMessage", {**inputs, "dealt": bytes(SHARE_BYTES + 1).hex()}),
        "nothing": ("MalformedMessage", {**inputs, "dealt": ""}),
        "twice": ("MalformedMessage", {**inputs, "dealt": bytes(2 * SHARE_BYTES).hex()}),
    }


BAD_MESSAGES: Final = {
    "memory": bad_memories,
    "attendance": bad_attendances,
    "cohort": bad_cohorts,
    "contribution": bad_contributions,
    "release": bad_releases,
    "consent": bad_consents,
    "aggregate": bad_aggregates,
    "sharing": bad_shares,
    "dealing": bad_dealings,
}
