"""Messages, and what stands in them, that must be refused: each made from a good one by the change in its name."""

import struct
from dataclasses import replace
from typing import Any, Final

from protocol.cohort import Cohort
from protocol.frame import AGGREGATE, ATTENDANCE, CONTRIBUTION, SIGNATURE_BYTES, signed
from protocol.openings import MOST_SETS, Nodes, Opening, encode_memory, encode_sets
from protocol.release import Consent, Release, encode_consent, encode_release
from protocol.sharing import SECRET_BYTES
from protocol.wire import encode_aggregate, encode_contribution
from tests import factories
from tests.vectors.scene import COHORT, DIVIDED, GROUPS, KITS, MEMORY, NODES, PLAN, Bad, Case, aggregate_of


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
        "more_sets": _case(few + struct.pack("<I", 2) + alike),
        "too_many_sets": _case(few + encode_sets([Nodes({1})] * (MOST_SETS + 1))),
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
        "memory_length": _case(_with_number(good, 352, 4)),
        "memory_order": _case(signed(turned, kit.sign(turned))),
        "memory_stranger": _case(factories.attend(kit, memory=strange)),
        "changed": _case(_with_number(good, 36, 1_000_000), "SignatureRefused"),
        "exchange_changed": _case(good[:192] + bytes([good[192] ^ 1]) + good[193:], "SignatureRefused"),
        "other_signer": _case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "stranger": _case(factories.attend(kit, node=3), "SignatureRefused"),
    }


def bad_cohorts() -> Bad:
    """What is no list of signed, agreeing attendances in ascending order, each of them in one of the groups."""
    none, (one, two, three) = encode_sets(()), COHORT.encoded
    (first, second), everybody = GROUPS, b"".join(DIVIDED.encoded)

    def last(**changes: Any) -> bytes:
        return factories.attend(KITS[300], votes=7, **changes)

    def divided(*groups: Nodes, expect: str = "CohortRefused") -> tuple[str, Case]:
        return _case(encode_sets(groups) + everybody, expect)

    return {
        "empty": _case(b""),
        "nobody": _case(none, "CohortRefused"),
        "length": _case(none + one + two + three + b"\0"),
        "memory_length": _case(none + one + two + _with_number(three, 352, 0xFFFF_FFFF)),
        "order": _case(none + two + one + three),
        "twice": _case(none + one + two + two, "CohortRefused"),
        "two_keys": _case(none + one + two + factories.attend(KITS[2], votes=7, seed=bytes(32)), "CohortRefused"),
        "five_of_four": _case(none + one + two + three + three + three, "CohortRefused"),
        "model": _case(none + one + two + last(model=bytes(32)), "AgreementError"),
        "round": _case(none + one + two + last(round=2), "AgreementError"),
        "attempt": _case(none + one + two + last(attempt=2), "AgreementError"),
        "invited": _case(none + one + two + last(invited=bytes(32)), "AgreementError"),
        "spoiled": _case(none + one + two + last(spoiled=1), "AgreementError"),
        "samples": _case(none + one + two[:36] + bytes([200]) + two[37:] + three, "SignatureRefused"),
        "groups_missing": _case(one + two + three),
        "groups_one": divided(DIVIDED.nodes),
        "groups_empty": divided(Nodes(), first, second),
        "groups_twice": divided(first, second | {1}),
        "groups_left_out": divided(first, second - {300}),
        "groups_stranger": divided(first, second | {3}),
        "groups_order": divided(second, first, expect="MalformedMessage"),
        "groups_node_order": _case(struct.pack("<7I", 2, 2, 70_000, 1, 2, 2, 300) + everybody),
        "groups_node_twice": _case(struct.pack("<8I", 2, 3, 1, 1, 70_000, 2, 2, 300) + everybody),
        "groups_too_many": divided(*(Nodes({node}) for node in range(MOST_SETS + 1)), expect="MalformedMessage"),
        "groups_longer": _case(_with_number(encode_sets(GROUPS), 4, 0xFFFF_FFFF) + everybody),
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
    made = Release(factories.RUN, 1, 1, 3, COHORT.digest(1), terms=True, sets=(Nodes(NODES),))
    good = encode_release(made)

    def of(*sets: Nodes, members: int = 4) -> tuple[str, Case]:
        return _case(encode_release(replace(made, members=members, sets=sets)))

    return {
        "kind": _case(good[:5] + bytes([AGGREGATE]) + good[6:]),
        "cut": _case(good[:-1]),
        "longer": _case(good + b"\0"),
        "head": _case(good[:75]),
        "nobody": of(Nodes()),
        "more_than_members": of(Nodes(NODES), members=2),
        "count": _case(_with_number(good, 76, 2)),
        "order": _case(good[:80] + struct.pack("<3I", 2, 1, 300)),
        "twice": _case(good[:80] + struct.pack("<3I", 1, 1, 300)),
        "sets_none": of(),
        "sets_empty": of(GROUPS[0], Nodes()),
        "sets_overlap": of(GROUPS[0], GROUPS[1] | {1}, members=5),
        "sets_twice": of(GROUPS[0], GROUPS[0]),
        "sets_more_than_members": of(*GROUPS, members=3),
        "sets_fewer": _case(_with_number(encode_release(replace(made, members=4, sets=GROUPS)), 72, 1)),
        "sets_too_many": of(*(Nodes({node}) for node in range(MOST_SETS + 1)), members=MOST_SETS + 1),
        "terms": _case(_with_number(good, 68, 2)),
        "terms_padding": _case(_with_number(good, 68, 0x101)),
    }


def bad_consents() -> Bad:
    """What is no consent, or not signed by its node."""
    shares = tuple(bytes(range(start, start + SECRET_BYTES)) for start in range(3))
    vouchers = (bytes(range(0x60, 0x80)),)
    made = Consent(factories.RUN, 1, 1, 1, 3, COHORT.digest(1), vouchers, shares, factories.SEALED)
    body, kit = encode_consent(made), KITS[1]
    good, strange = signed(body, kit.sign(body)), encode_consent(replace(made, node=3))

    def again(**changes: Any) -> bytes:
        other = encode_consent(replace(made, **changes))
        return signed(other, kit.sign(other))

    return {
        "kind": _case(good[:5] + bytes([ATTENDANCE]) + good[6:]),
        "cut": _case(good[:-1]),
        "longer": _case(good + b"\0"),
        "head": _case(good[:79]),
        "members": _case(again(members=2)),
        "share_missing": _case(again(shares=shares[:2])),
        "sealed_length": _case(_with_number(good, 76, len(factories.SEALED) - 1)),
        "share_changed": _case(good[:140] + bytes([good[140] ^ 1]) + good[141:], "SignatureRefused"),
        "voucher_changed": _case(good[:80] + bytes(32) + good[112:], "SignatureRefused"),
        "voucher_missing": _case(good[:80] + good[112:]),
        "sums_more": _case(_with_number(good, 40, 2)),
        "sums_none": _case(_with_number(good, 40, 0)),
        "sums_and_members": _case(_with_number(_with_number(good, 40, 2), 36, 2), "SignatureRefused"),
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
    last = 220 + (p.slots(7, 0) * p.width_down + 7) // 8 - 1
    return {
        "kind": case(good[:5] + bytes([AGGREGATE - 1]) + good[6:]),
        "cut": case(good[:-1]),
        "longer": case(good + b"\0"),
        "head": case(good[:219]),
        "two": case(good + good),
        "nobody": with_number(32, 0),
        "too_many": with_number(32, 6),
        "more_than_members": with_number(32, 4),
        "fewer_members": with_number(36, 2),
        "too_many_members": with_number(36, 6),
        "values": with_number(44, 0),
        "votes": with_number(48, 1),
        "length_longer": with_number(52, len(good) - 220 + 1),
        "length_shorter": with_number(52, len(good) - 220 - 1),
        "length_most": with_number(52, 0xFFFF_FFFF),
        "seeds_missing": case(_with_number(good[:-100], 52, len(good) - 220 - 100)),
        "form": with_number(56, 2),
        "form_padding": with_number(56, 0x100 + 1),
        "weight_nothing": with_number(60, 0, "Q"),
        "weight_above_total": with_number(68, 302, "Q"),
        "unused_bit": case(spare[:last] + bytes([spare[last] | 0x80]) + spare[last + 1 :]),
    }


def bad_sums() -> Bad:
    """What are no aggregates end to end; of each no more is read than its head."""
    p, words = PLAN.parameters, factories.dummy_words(PLAN.parameters.slots(7, 7), PLAN.parameters.width_down)
    one, other = (
        encode_aggregate(aggregate_of(words, (factories.dummy_seeds(2),), factories.SEALED, DIVIDED, group), p)
        for group in range(2)
    )
    body = len(one) - 220
    return {
        "cut": _case(one + other[:-1]),
        "longer": _case(one + other + b"\0"),
        "head": _case(one + other[:219]),
        "kind": _case(one + other[:5] + bytes([AGGREGATE - 1]) + other[6:]),
        "version": _case(one + other[:4] + b"\x01" + other[5:], "VersionRefused"),
        "length_longer": _case(_with_number(one, 52, body + 1) + other),
        "length_shorter": _case(_with_number(one, 52, body - 1) + other),
        "length_most": _case(one + _with_number(other, 52, 0xFFFF_FFFF)),
        "too_many": _case(one, times=MOST_SETS + 1),
    }


BAD_MESSAGES: Final = {
    "memory": bad_memories,
    "attendance": bad_attendances,
    "cohort": bad_cohorts,
    "contribution": bad_contributions,
    "release": bad_releases,
    "consent": bad_consents,
    "aggregate": bad_aggregates,
    "aggregates": bad_sums,
}
