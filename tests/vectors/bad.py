"""What must be refused, by kind: here supports, words, terms, shares, residues, payloads, plans and rosters."""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from protocol.attendance import SHARE_BYTES
from protocol.support import Support, encode_support
from protocol.terms import encode_terms
from tests import factories
from tests.vectors.bad_messages import BAD_MESSAGES
from tests.vectors.scene import COHORT, KITS, PLAN, SHAPES, TERMS, Bad, Case, payloads


def bad_vectors() -> dict[str, Case]:
    """What each decoder must refuse, by the name of its file."""
    kinds: dict[str, Bad] = {
        "support": _bad_supports(),
        "bits": _bad_bits(),
        "terms": _bad_terms(),
        "sharing": _bad_shares(),
        "dealing": _bad_dealings(),
        "residues": _bad_residues(),
        "payload": _bad_payloads(),
        "plan": _bad_plans(),
        "roster": _bad_rosters(),
        **{kind: vectors() for kind, vectors in BAD_MESSAGES.items()},
    }
    return {
        f"bad_{kind}_{name}": {"kind": kind, **inputs, "expect": expect}
        for kind, vectors in kinds.items()
        for name, (expect, inputs) in vectors.items()
    }


def _bad_supports() -> Bad:
    def case(size: int, data: str) -> tuple[str, Case]:
        return "MalformedMessage", {"size": size, "encoded": data}

    return {
        "empty": case(8, ""),
        "of_nothing": case(8, "00000000"),
        "too_many": case(8, "09000000"),
        "length": case(8, "0400000055aa"),
        "whole_with_bytes": case(8, "08000000ff"),
        "count": case(8, "0400000057"),
        "unused_bit": case(5, "0400000080"),
        "order": case(64, "02000000" + _elias_fano([8, 7], [0, 1])),
        "twice": case(64, "02000000" + _elias_fano([7, 7], [0, 1])),
        "unary": case(64, "02000000" + _elias_fano([7, 8], [0, 1, 2])),
        "outside": case(41, encode_support(Support(np.array([0, 41], np.int64), 42)).hex()),
    }


def _elias_fano(low: Sequence[int], ones: Sequence[int]) -> str:
    """Two positions of 64: five low bits each, then the high parts in unary."""
    number = low[0] | low[1] << 5 | sum(1 << (10 + one) for one in ones)
    return number.to_bytes(2, "little").hex()


def _bad_bits() -> Bad:
    return {
        "length": ("MalformedMessage", {"width": 12, "count": 2, "packed": "00000000"}),
        "unused_bit": ("MalformedMessage", {"width": 3, "count": 2, "packed": "55"}),
    }


def _bad_terms() -> Bad:
    good = encode_terms(TERMS)

    def case(data: bytes) -> tuple[str, Case]:
        return "MalformedMessage", {"tensors": list(SHAPES), "encoded": data.hex()}

    return {
        "tensors": case(struct.pack("<I", 3) + good[4:]),
        "cut": case(good[:11]),
        "clip_zero": case(good[:4] + bytes(4) + good[8:]),
        "clip_nan": case(good[:4] + struct.pack("<f", float("nan")) + good[8:]),
        "clip_infinite": case(good[:8] + struct.pack("<f", float("inf")) + good[12:]),
        "no_support": case(good[:12]),
    }


def _bad_shares() -> Bad:
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


def _bad_dealings() -> Bad:
    """Not one deal of each member."""
    inputs = {"attendance": COHORT.encoded[0].hex(), "node": 2}
    return {
        "cut": ("MalformedMessage", {**inputs, "dealt": bytes(SHARE_BYTES - 1).hex()}),
        "longer": ("MalformedMessage", {**inputs, "dealt": bytes(SHARE_BYTES + 1).hex()}),
        "nothing": ("MalformedMessage", {**inputs, "dealt": ""}),
        "twice": ("MalformedMessage", {**inputs, "dealt": bytes(2 * SHARE_BYTES).hex()}),
    }


def _bad_residues() -> Bad:
    return {
        "above_q": ("MalformedMessage", {"drop": 0, "words": [0, 1152921504606830593]}),
        "head_above_q": ("MalformedMessage", {"drop": 8, "words": [(1152921504606830593 - 1 >> 8) + 1]}),
    }


def _bad_payloads() -> Bad:
    """Slots that are no sum of three clients' payloads, though each lane but the named one holds what it held."""
    p, good = PLAN.parameters, payloads(votes=7)
    t, radix, ballots = p.plain_modulus, p.grid.radix, p.values.slots(7 + p.trailing)

    def case(slots: Sequence[int], clients: int = 3, **changes: object) -> tuple[str, Case]:
        return "Spoiled", {
            **{name: good[name] for name in ("key", "bits", "clients_at_most")},
            "clients": clients,
            "values": 7,
            "votes": 7,
            "slots": list(slots),
            **changes,
        }

    def added(*changes: tuple[int, int]) -> tuple[str, Case]:
        slots = list(good["slots"])
        for slot, number in changes:
            slots[slot] = (slots[slot] + number) % t
        return case(slots)

    first, second, *rest = good["slots"]
    twice = [2 * slot % t for slot in good["slots"]]
    return {
        "value": added((0, 1)),
        "value_beyond": added((0, p.grid.reach + 1 - good["values"][0])),
        "count": added((2, radix)),
        "figure": added((2, radix**2)),
        "padding": added((ballots - 1, radix ** ((7 + p.trailing) % p.fields))),
        "vote": added((ballots, 1)),
        "vote_beyond": added((ballots, 3)),
        "vote_padding": added((ballots, (PLAN.max_cohort + 1) ** 7)),
        "tag": added((-1, 1)),
        "tag_and_value": added((0, 1), (-p.tags, 1)),
        "swapped": case([second, first, *rest]),
        "turned": case([*good["slots"][1:], good["slots"][0]]),
        "one_client_less": case(good["slots"], clients=2),
        "twice": case(twice),
        "other_key": case(good["slots"], key=bytes(64).hex()),
        "nothing": case([0] * len(good["slots"])),
        "full": case([t - 1] * len(good["slots"])),
    }


def _bad_plans() -> Bad:
    def case(expect: str, **changes: Any) -> tuple[str, Case]:
        return expect, {"config": PLAN.to_config() | {name.replace("_", "-"): x for name, x in changes.items()}}

    return {
        "unknown_key": case("ConfigError", zeal=1),
        "type": case("ConfigError", rounds="40"),
        "options": case("ConfigError", options=3),
        "option_name": case("ConfigError", **{"options.first--prune": 1}),
        "option_value": case("ConfigError", **{"options.exponent": [3.0]}),
        "sparsity": case("ConfigError", sparsity=1.0),
        "pair": case("ConfigError", min_cohort=2),
        "colluders": case("ConfigError", colluders=2),
        "share": case("ConfigError", max_share=0.33),
        "headroom": case("HeadroomError", bits=24, max_cohort=1 << 30),
    }


def _bad_rosters() -> Bad:
    roster = KITS[1].roster
    text = factories.signed_roster(roster)
    good = json.loads(text)
    first, signature = good["nodes"][0], bytes.fromhex(good["signature"])
    # by a node, as it signs messages; by another operator; by the operator, of the same nodes in another cohort
    own, foreign = KITS[1].sign(roster.to_sign()), factories.sign_key(1).sign(roster.to_sign())
    elsewhere = factories.OPERATOR.sign(replace(roster, cohort_id=bytes(16)).to_sign())

    def case(**changes: object) -> tuple[str, Case]:
        return "RosterRefused", {"roster": {**good, **changes}}

    return {
        "version": case(version=1),
        "twice": case(nodes=[first, *good["nodes"]]),
        "short_key": case(nodes=[{**first, "sign": "00"}]),
        "number": case(nodes=[{**first, "node": 1 << 32}]),
        "unsigned": ("RosterRefused", {"roster": {key: good[key] for key in good if key != "signature"}}),
        "signature": case(signature=(bytes([signature[0] ^ 1]) + signature[1:]).hex()),
        "short_signature": case(signature=signature[:-1].hex()),
        "node_signature": case(signature=own.hex()),
        "other_operator": case(signature=foreign.hex()),
        "other_cohort": case(signature=elsewhere.hex()),
        "cohort": case(cohort=bytes(16).hex()),
        "serial": case(serial=2),
        "serial_zero": case(serial=0),
        "node_left_out": case(nodes=good["nodes"][1:]),
        "name": case(nodes=[{**first, "name": "node-9"}, *good["nodes"][1:]]),
        "unknown_key": case(zeal=1),
        "spaces": ("RosterRefused", {"text": text + "\n"}),
    }
