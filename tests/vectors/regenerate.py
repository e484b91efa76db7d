"""Write the golden vectors, or with ``--check`` say which of them differ from what the code makes and exit with 1.

Run from the root of the checkout: ``python -m tests.vectors.regenerate [--check]``. Randomness is readable: seeds and
nonces count up, keys are made of a node's number. Only ``sum_0.json`` cannot be made again, since encryption is random:
it was recorded once, is written only where it is missing, and must decrypt for ever.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_client.cipher import RoundCipher
from edge_client.keys import CohortSecret, Kit
from edge_client.round import tag_key
from protocol.bits import pack_bits
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import Cohort, successor_sizes
from protocol.grid import Grid, Share, clips, dequantise, quantise, steps
from protocol.lanes import Slots, pack, value_lanes, vote_lanes
from protocol.layout import Vector
from protocol.pairwise import blind, keystream, pair_key
from protocol.parameters import CHECKS, DEGREE, Parameters
from protocol.payload import pack_payload, unpack_payload
from protocol.plan import Plan
from protocol.support import Support, encode_support
from protocol.tag import tag
from protocol.terms import Terms, encode_terms, support_digest
from protocol.wire import (
    AGGREGATE,
    ATTENDANCE,
    CONTRIBUTION,
    SIGNATURE_BYTES,
    Aggregate,
    encode_aggregate,
    encode_contribution,
    signed,
)
from tests import factories

FOLDER: Final = Path(__file__).parent
NODES: Final = (1, 2, 300)
RECORDED: Final = "sum_0"
ROSTER, OPERATOR_PUBLIC = "roster.json", "operator.pub"

PLAN: Final = Plan(
    method="fedsparsify-global",
    sparsity=0.95,
    granularity="weight",
    rounds=40,
    fraction=1.0,
    min_cohort=3,
    max_cohort=5,
    colluders=1,
    max_share=0.5,
    bits=16,
    model="digits-mlp",
    data="digits",
    partition="iid",
    epochs=4,
    batch_size=16,
    learning_rate=0.1,
    momentum=0.0,
    proximal=0.0,
    seed=1990,
    deadline=600.0,
    attempts=10,
    options=(("exponent", 3.0), ("first-prune", 1), ("allocation", "global"), ("layer-floor", 0.01)),
)
KITS: Final = factories.kits(PLAN, NODES)
COHORT: Final = factories.cohort(KITS, votes=7)
SHAPES: Final = (3, 5)
TERMS: Final = Terms(Support(np.array([0, 1, 2, 3, 5, 6, 7], np.int64), 8), np.array([0.5, 3.0], np.float32))

Case = dict[str, Any]


# --- golden vectors ----------------------------------------------------------------------------


def support_vectors() -> list[Case]:
    """Every form of the encoding, and its ends."""
    named: dict[str, tuple[Sequence[int], int]] = {
        "the only position of one": ([0], 1),
        "the first of two": ([0], 2),
        "the second of two": ([1], 2),
        "everything": (range(5), 5),
        "all but the first": (range(1, 16), 16),
        "all but the last": (range(15), 16),
        "a bitmap: every second": (range(0, 16, 2), 16),
        "Elias-Fano: two of 64": ([3, 42], 64),
        "Elias-Fano: the last two of 64": ([62, 63], 64),
        "Elias-Fano: the first and the last of 1000": ([0, 999], 1000),
        "Elias-Fano: one in twenty of 400": (range(0, 400, 20), 400),
        "a bitmap: Elias-Fano would take as many bits": ([1, 4], 7),
        "Elias-Fano: one bit shorter than a bitmap": ([1, 4], 8),
        "the last of 2^31": ([(1 << 31) - 1], 1 << 31),
    }
    return [
        {
            "name": name,
            "size": size,
            "positions": list(positions),
            "encoded": encode_support(Support(np.array(positions, np.int64), size)).hex(),
        }
        for name, (positions, size) in named.items()
    ]


def terms_vectors() -> list[Case]:
    """Terms, their names and how they are sealed."""
    secret, encoded = CohortSecret(factories.SECRET), encode_terms(TERMS)
    sealed = secret.seal(encoded, factories.RUN, 1)
    return [
        {
            "tensors": list(SHAPES),
            "clips": TERMS.clips.tolist(),
            "positions": TERMS.support.positions.tolist(),
            "encoded": encoded.hex(),
            "secret": factories.SECRET.hex(),
            "run": factories.RUN.hex(),
            "round": 1,
            "sealed": sealed.hex(),
            "digest": support_digest(sealed).hex(),
        }
    ]


def grid_vectors() -> list[Case]:
    """Values of one client on the grid, and what a sum stands for."""
    made = []
    cases = [
        (2, 1, 1, 1, [0.0, -0.0, 0.5, -0.5, 0.25, -0.25, 9.0, -9.0], [0.0, 0.999, 0.0, 0.0, 0.5, 0.5, 0.999, 0.0]),
        (16, 3, 100, 300, [0.5, -0.5, 0.1, -0.1, 1e-9, -1e-9, 0.6, -0.6], [0.25] * 8),
        (24, 10, 1, 49, [0.5, -0.5, 0.1, -0.1, 1e-9, -1e-9, 0.6, -0.6], [0.0, 0.25, 0.5, 0.75] * 2),
        (8, 1000, 4294967295, 4294967295000, [0.5, -0.5, 0.25, 0.1], [0.9, 0.9, 0.0, 0.5]),
    ]
    for bits, clients, samples, total, numbers, dither in cases:
        grid, values = Grid(bits, clients), np.array(numbers, np.float32)
        step = np.full(values.size, 0.5 / grid.levels)
        codes, clipped = quantise(values, step, Share(samples, total), grid, np.array(dither))
        made.append(
            {
                "bits": bits,
                "clients": clients,
                "radix": grid.radix,
                "reach": grid.reach,
                "samples": samples,
                "total": total,
                "clip": 0.5,
                "values": values.tolist(),
                "dither": dither,
                "codes": codes.tolist(),
                "clipped": clipped,
                "dequantised": dequantise(codes, step).tolist(),
            }
        )
    return made


def clip_vectors() -> list[Case]:
    """The clips and steps of a small model."""
    vector = np.array([0.1, -0.2, 0.0, -1.5, 0.25, 1.0, 0.0, 0.5], np.float32)
    made = factories.layout(*SHAPES)
    clip = clips(vector, made)
    step = steps(clip, made, TERMS.support, Grid(16, 5))
    return [
        {
            "tensors": list(SHAPES),
            "vector": vector.tolist(),
            "clips": clip.tolist(),
            "positions": TERMS.support.positions.tolist(),
            "bits": 16,
            "clients": 5,
            "steps": step.tolist(),
        }
    ]


def lanes_vectors() -> list[Case]:
    """Integers at both ends of their lanes, and in between."""
    made = []
    for bits, clients, per_slot in ((16, 10, 3), (8, 3, 6), (24, 1000, 1), (2, 1, 8)):
        lanes = value_lanes(Grid(bits, clients), per_slot)
        reach = -lanes.low
        integers = [reach, -reach, 0, 1, -1, reach, reach, -reach, -reach, 2]
        made.append({"kind": "values", "bits": bits, "clients": clients, "per_slot": per_slot, "integers": integers})
        made[-1] |= _packed(integers, lanes)
    for clients, modulus in ((10, 65_557**3), (3, 1000), (1, 2)):
        lanes = vote_lanes(clients, modulus)
        votes = [1, 0, 1, 1, 0, clients, 0, clients, 1]
        made.append({"kind": "votes", "clients": clients, "per_slot": lanes.per_slot, "integers": votes})
        made[-1] |= _packed(votes, lanes)
    return made


def _packed(integers: Sequence[int], lanes: Any) -> Case:
    slots = pack(np.array(integers, np.int64), lanes)
    return {"low": lanes.low, "radix": lanes.radix, "modulus": lanes.modulus, "slots": slots.tolist()}


def bits_vectors() -> list[Case]:
    """Words of several widths."""
    cases = [
        (3, [5, 2]),
        (8, [1, 2, 255]),
        (12, [0xABC, 0xDEF, 0x123]),
        (52, [(1 << 52) - 1, 1]),
        (60, [1, 2, 3]),
        (60, []),
    ]
    return [
        {"width": width, "words": words, "packed": pack_bits(np.array(words, np.uint64), width).hex()}
        for width, words in cases
    ]


def pairwise_vectors() -> list[Case]:
    """The key of a pair, its stream, and a blinding of both."""
    one, other = KITS[1], KITS[300]
    secret, digest = one.pair_secret(300), COHORT.digest(1)
    key = pair_key(secret, digest, (1, 300))
    made = []
    for modulus in (2, 3, 65_557**3, 3 << 57, (1 << 59) - 1):
        slots = np.arange(5, dtype=np.uint64) % np.uint64(modulus)
        made.append(
            {
                "secret": secret.hex(),
                "cohort": digest.hex(),
                "nodes": [1, 300],
                "key": key.hex(),
                "modulus": modulus,
                "stream": keystream(key, 5, modulus).tolist(),
                "slots": slots.tolist(),
                "masked_by_1": blind(slots, one.node, {300: key}, modulus).tolist(),
                "masked_by_300": blind(slots, other.node, {1: key}, modulus).tolist(),
            }
        )
    return made


def keys_vectors() -> list[Case]:
    """The public names of the keys, and the seed of a round's BFV key."""
    secret = CohortSecret(factories.SECRET)
    return [
        {
            "secret": factories.SECRET.hex(),
            "cohort_id": secret.id.hex(),
            "run": factories.RUN.hex(),
            "round": round_,
            "key_id": KITS[1].roster.key_id(factories.RUN, round_).hex(),
            "bfv_seed": secret.bfv_seed(factories.RUN, round_).hex(),
        }
        for round_ in (1, 2, (1 << 32) - 1)
    ]


def tag_vectors() -> list[Case]:
    """The key of a tag, and the tags of some clients and of their sum, modulo different numbers."""
    made = []
    for bits, clients in ((16, 5), (8, 10), (24, 1000)):
        p, member = Parameters(Grid(bits, clients)), COHORT.members[0]
        key = tag_key(CohortSecret(factories.SECRET), member, 1, 3, COHORT.digest(1))
        third = p.grid.levels // 3
        summands = [[third, -third, 0, i, 1] for i in range(3)]
        total = np.sum(summands, axis=0)
        made.append(
            {
                "secret": factories.SECRET.hex(),
                "attendance": COHORT.encoded[0].hex(),
                "attempt": 1,
                "clients": 3,
                "cohort": COHORT.digest(1).hex(),
                "key": key.hex(),
                "bits": bits,
                "clients_at_most": clients,
                "modulus": p.plain_modulus,
                "factor_bits": p.tag_bits,
                "summands": summands,
                "tags": [tag(np.array(each), 1, key, p).tolist() for each in summands],
                "sum": total.tolist(),
                "tag": tag(total, 3, key, p).tolist(),
            }
        )
    return made


def payload_vectors() -> list[Case]:
    """What three clients give, as slots, and what the slots of their sum hold; with votes and without."""
    return [_payloads(votes) for votes in (7, 0)]


def _payloads(votes: int) -> Case:
    p, key, total = PLAN.parameters, bytes(range(64)), np.zeros(PLAN.parameters.slots(7, votes), np.uint64)
    made = []
    for i in range(3):
        integers, chosen = np.arange(7) * 1000 - 3000 * i, (np.arange(votes) + i) % 2
        slots = pack_payload(integers, chosen, key, p)
        made.append({"integers": integers.tolist(), "votes": chosen.tolist(), "slots": slots.tolist()})
        total = (total + slots) % np.uint64(p.plain_modulus)
    integers, chosen = unpack_payload(total, 3, 7, votes, key, p)
    return {
        "key": key.hex(),
        "bits": PLAN.bits,
        "clients_at_most": PLAN.max_cohort,
        "clients": 3,
        "payloads": made,
        "slots": total.tolist(),
        "values": integers.tolist(),
        "votes": chosen.tolist(),
    }


def attendance_vectors() -> list[Case]:
    """One attendance per node."""
    return [{"fields": _fields(member), "encoded": data.hex()} for member, data in zip(*_members(COHORT), strict=True)]


def cohort_vectors() -> list[Case]:
    """An announced cohort, and its name in two attempts."""
    return [
        {
            "encoded": COHORT.encode().hex(),
            "nodes": sorted(COHORT.nodes),
            "samples": COHORT.samples,
            "bearer": COHORT.bearer,
            "attempt": attempt,
            "digest": COHORT.digest(attempt).hex(),
        }
        for attempt in (1, 2)
    ]


def succession_vectors() -> list[Case]:
    """The sizes that may follow a cohort."""
    return [
        {
            "first": first,
            "last": last,
            "minimum": minimum,
            "colluders": colluders,
            "sizes": list(successor_sizes(first, last, minimum, colluders)),
        }
        for first, last, minimum, colluders in [
            *((last, last, 3, 1) for last in range(3, 33)),
            (20, 20, 15, 1),
            (20, 17, 3, 1),
            (20, 13, 3, 1),
            *((last, last, colluders + 2, colluders) for colluders in (0, 2, 3) for last in (5, 10, 20)),
            (20, 17, 5, 3),
        ]
    ]


def contribution_vectors() -> list[Case]:
    """One contribution per node, with residues and seeds that count up; the first node's carries sealed terms."""
    return [
        {
            "attendance": data.hex(),
            "bits": PLAN.bits,
            "clients_at_most": PLAN.max_cohort,
            "fields": _fields(made := factories.contribution(KITS[member.node], COHORT, PLAN.parameters)),
            "residues": made.first.tolist(),
            "encoded": factories.contribute(KITS[member.node], COHORT, PLAN.parameters).hex(),
        }
        for member, data in zip(*_members(COHORT), strict=True)
    ]


def aggregate_vectors() -> list[Case]:
    """Both forms of the second half; the longer one is named by its digest."""
    p = PLAN.parameters
    summed = (np.arange(DEGREE, dtype=np.uint64) << np.uint64(48)).reshape(1, DEGREE)
    made = []
    for second in ((factories.dummy_seeds(3),), summed):
        aggregate = _aggregate(factories.dummy_words(p.slots(7, 7), p.width_down), second, factories.SEALED)
        encoded = encode_aggregate(aggregate, p)
        vector = {
            "bits": PLAN.bits,
            "clients_at_most": PLAN.max_cohort,
            "fields": _fields(aggregate),
            "residues": aggregate.first.tolist(),
        }
        if isinstance(second, tuple):
            vector["encoded"] = encoded.hex()
        else:
            vector |= {"second": "word i is i * 2^48", "bytes": len(encoded), "blake2b": _blake2b(encoded)}
        made.append(vector)
    return made


def plan_vectors() -> list[Case]:
    """Plans as Flower's run config spells them, and their names."""
    other = replace(PLAN, method="spafl", sparsity=0.5, bits=12, max_cohort=100, model="my.net:build", options=())
    plans = [PLAN, other, replace(PLAN, method="fedsparsify-local", options=(("strict-majority", True),))]
    return [{"config": plan.to_config(), "digest": plan.digest.hex()} for plan in plans]


def parameters_vectors() -> list[Case]:
    """The parameters of encryption over the range of plans."""
    made = []
    for clients in (3, 10, 100, 1000):
        for bits in (8, 12, 16):
            p = Parameters(Grid(bits, clients))
            made.append(
                {
                    "clients": clients,
                    "bits": bits,
                    "radix": p.grid.radix,
                    "fields": p.fields,
                    "plain_modulus": p.plain_modulus,
                    "drop_up": p.drop_up,
                    "drop_down": p.drop_down,
                    "votes_per_slot": p.votes.per_slot,
                }
            )
    return made


def expansion_vectors() -> list[Case]:
    """The second half that SEAL makes of a seed: its first words, and the digest of all of them."""
    made = []
    machine = Seal(PLAN.parameters)
    for seed in (*factories.dummy_seeds(2), bytes(64)):
        summer = Summer(machine)
        summer.add(np.ones(1, np.uint64), [seed])
        second = summer.halves()[1][0]
        made.append(
            {"seed": seed.hex(), "begins": second[:3].tolist(), "blake2b": _blake2b(second.astype("<u8").tobytes())}
        )
    machine.close()
    return made


GOLDEN: Final = {
    "support": support_vectors,
    "terms": terms_vectors,
    "grid": grid_vectors,
    "clips": clip_vectors,
    "lanes": lanes_vectors,
    "bits": bits_vectors,
    "pairwise": pairwise_vectors,
    "keys": keys_vectors,
    "tag": tag_vectors,
    "payload": payload_vectors,
    "attendance": attendance_vectors,
    "cohort": cohort_vectors,
    "succession": succession_vectors,
    "contribution": contribution_vectors,
    "aggregate": aggregate_vectors,
    "plan": plan_vectors,
    "parameters": parameters_vectors,
    "expansion": expansion_vectors,
}


# --- vectors that must be refused --------------------------------------------------------------


def bad_vectors() -> dict[str, Case]:
    """What each decoder must refuse, by the name of its file."""
    made: dict[str, Case] = {}
    for kind, vectors in (
        ("support", _bad_supports()),
        ("bits", _bad_bits()),
        ("terms", _bad_terms()),
        ("attendance", _bad_attendances()),
        ("cohort", _bad_cohorts()),
        ("contribution", _bad_contributions()),
        ("aggregate", _bad_aggregates()),
        ("residues", _bad_residues()),
        ("payload", _bad_payloads()),
        ("plan", _bad_plans()),
        ("roster", _bad_rosters()),
    ):
        for name, (expect, inputs) in vectors.items():
            made[f"bad_{kind}_{name}"] = {"kind": kind, **inputs, "expect": expect}
    return made


Bad = dict[str, tuple[str, Case]]


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


def _bad_attendances() -> Bad:
    good = COHORT.encoded[0]

    def case(data: bytes, expect: str = "MalformedMessage") -> tuple[str, Case]:
        return expect, {"encoded": data.hex()}

    body = good[:-SIGNATURE_BYTES]
    return {
        "magic": case(b"PRSM" + good[4:]),
        "version": case(good[:4] + b"\x01" + good[5:], "VersionRefused"),
        "kind": case(good[:5] + bytes([CONTRIBUTION]) + good[6:]),
        "unknown_kind": case(good[:5] + b"\x04" + good[6:]),
        "reserved": case(good[:7] + b"\x01" + good[8:]),
        "cut": case(good[:-1]),
        "longer": case(good + b"\0"),
        "head": case(good[:100]),
        "samples": case(factories.attend(KITS[1], samples=0)),
        "values": case(factories.attend(KITS[1], values=0)),
        "votes": case(factories.attend(KITS[1], votes=1)),
        "changed": case(good[:36] + struct.pack("<I", 1_000_000) + good[40:], "SignatureRefused"),
        "other_signer": case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "stranger": case(factories.attend(KITS[1], node=3), "SignatureRefused"),
    }


def _bad_cohorts() -> Bad:
    one, two, three = COHORT.encoded

    def case(data: bytes, expect: str) -> tuple[str, Case]:
        return expect, {"encoded": data.hex()}

    return {
        "empty": case(b"", "CohortRefused"),
        "length": case(one + two + three + b"\0", "MalformedMessage"),
        "order": case(two + one + three, "MalformedMessage"),
        "twice": case(one + two + two, "CohortRefused"),
        "two_nonces": case(one + two + factories.attend(KITS[2], votes=7, nonce=bytes(16)), "CohortRefused"),
        "model": case(one + two + factories.attend(KITS[300], votes=7, model=bytes(32)), "AgreementError"),
        "round": case(one + two + factories.attend(KITS[300], votes=7, round=2), "AgreementError"),
        "samples": case(one + two[:36] + bytes([200]) + two[37:] + three, "SignatureRefused"),
    }


def _bad_contributions() -> Bad:
    p, kit = PLAN.parameters, KITS[1]
    good = factories.contribute(kit, COHORT, p)

    def case(data: bytes, expect: str = "MalformedMessage", cohort: Cohort = COHORT) -> tuple[str, Case]:
        inputs = {"attendance": cohort.encoded[0].hex(), "bits": PLAN.bits, "clients_at_most": PLAN.max_cohort}
        return expect, {**inputs, "encoded": data.hex()}

    few = factories.cohort(KITS)  # so many slots that bits of their last byte are unused
    unsealed = encode_contribution(factories.contribution(kit, few, p, sealed=b""), p)
    spare = unsealed[:-1] + bytes([unsealed[-1] | 0x80])
    body = good[:-SIGNATURE_BYTES]
    return {
        "kind": case(good[:5] + bytes([ATTENDANCE]) + good[6:]),
        "cut": case(good[:-1]),
        "sealed_length": case(good[:44] + struct.pack("<I", 1) + good[48:]),
        "node": case(factories.contribute(KITS[2], COHORT, p), "PeerMismatch"),
        "values": case(factories.contribute(kit, COHORT, p, values=8, votes=8), "PeerMismatch"),
        "votes": case(factories.contribute(kit, COHORT, p, votes=0), "PeerMismatch"),
        "residue_changed": case(good[:230] + bytes([good[230] ^ 1]) + good[231:], "SignatureRefused"),
        "other_signer": case(signed(body, KITS[2].sign(body)), "SignatureRefused"),
        "unused_bit": case(signed(spare, kit.sign(spare)), cohort=few),
    }


def _bad_aggregates() -> Bad:
    p = PLAN.parameters
    words, second = factories.dummy_words(p.slots(7, 7), p.width_down), (factories.dummy_seeds(3),)
    good = encode_aggregate(_aggregate(words, second, factories.SEALED), p)

    def case(data: bytes) -> tuple[str, Case]:
        return "MalformedMessage", {"bits": PLAN.bits, "clients_at_most": PLAN.max_cohort, "encoded": data.hex()}

    def with_number(place: int, number: int) -> tuple[str, Case]:
        return case(good[:place] + struct.pack("<I", number) + good[place + 4 :])

    few = factories.dummy_words(p.slots(7, 0), p.width_down)  # as many as leave bits of their last byte unused
    spare = encode_aggregate(replace(_aggregate(few, second, factories.SEALED), votes=0), p)
    last = 164 + (p.slots(7, 0) * p.width_down + 7) // 8 - 1
    return {
        "kind": case(good[:5] + bytes([AGGREGATE - 1]) + good[6:]),
        "cut": case(good[:-1]),
        "longer": case(good + b"\0"),
        "nobody": with_number(32, 0),
        "too_many": with_number(32, 6),
        "values": with_number(36, 0),
        "votes": with_number(40, 1),
        "sealed_length": with_number(44, 1 << 31),
        "form": with_number(48, 2),
        "form_padding": with_number(48, 0x100 + 1),
        "unused_bit": case(spare[:last] + bytes([spare[last] | 0x80]) + spare[last + 1 :]),
    }


def _bad_residues() -> Bad:
    return {
        "above_q": ("MalformedMessage", {"drop": 0, "words": [0, 1152921504606830593]}),
        "head_above_q": ("MalformedMessage", {"drop": 8, "words": [(1152921504606830593 - 1 >> 8) + 1]}),
    }


def _bad_payloads() -> Bad:
    """Slots that are no sum of three clients' payloads, though each lane but the named one holds what it held."""
    p, good = PLAN.parameters, _payloads(votes=7)
    t, radix, ballots = p.plain_modulus, p.grid.radix, p.values.slots(7 + CHECKS)

    def case(slots: Sequence[int], clients: int = 3, **changes: object) -> tuple[str, Case]:
        return "MalformedMessage", {
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
        "padding": added((2, radix**2)),
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


# --- the recorded sum --------------------------------------------------------------------------


def record_sum() -> Case:
    """One whole round of three clients, from values to the encrypted sum, under a secret that is for tests alone."""
    p, secret = PLAN.parameters, CohortSecret(factories.SECRET)
    sealed = secret.seal(encode_terms(TERMS), factories.RUN, 1)
    cohort = factories.cohort(KITS, votes=7, support=support_digest(sealed))
    step = steps(TERMS.clips, factories.layout(*SHAPES), TERMS.support, p.grid)
    machine = Seal(p)
    summer, total, votes, contributions, seeds = Summer(machine), np.zeros(7, np.int64), np.zeros(7, np.int64), [], []
    for member in cohort.members:
        values = _values(member.node)
        codes, _ = quantise(values, step, Share(member.samples, cohort.samples), p.grid, np.full(7, 0.5))
        chosen = (np.arange(7) % (member.node % 3 + 1) == 0).astype(np.int64)
        slots = pack_payload(codes, chosen, tag_key(secret, member, 1, 3, cohort.digest(1)), p)
        first, own = _encrypt(KITS[member.node], cohort, slots)
        made = factories.contribution(
            KITS[member.node],
            cohort,
            p,
            sealed=sealed if member.node == cohort.bearer else b"",
            seeds=own,
            first=first,
        )
        body = encode_contribution(made, p)
        contributions.append(signed(body, KITS[member.node].sign(body)).hex())
        summer.add(restore(first, p.drop_up), own)
        seeds.append(own)
        total, votes = total + codes, votes + chosen
    head = truncate(summer.halves()[0].ravel()[: p.slots(7, 7)], p.drop_down)
    machine.close()
    aggregate = _aggregate(head, tuple(zip(*seeds, strict=True)), sealed, cohort)
    return {
        "secret": factories.SECRET.hex(),
        "bits": PLAN.bits,
        "clients_at_most": PLAN.max_cohort,
        "run": factories.RUN.hex(),
        "round": 1,
        "tensors": list(SHAPES),
        "cohort": cohort.encode().hex(),
        "attempt": 1,
        "contributions": contributions,
        "aggregate": encode_aggregate(aggregate, p).hex(),
        "values": total.tolist(),
        "votes": votes.tolist(),
        "mean": dequantise(total, step).tolist(),
    }


def _values(node: int) -> Vector:
    """What a client has trained: around zero, one of them clipped."""
    return np.array([0.1, -0.2, 0.6, 0.0, -1.5, node / 1000, 2.9], np.float32)


def _encrypt(kit: Kit, cohort: Cohort, slots: Slots) -> tuple[Slots, tuple[bytes, ...]]:
    p, digest = PLAN.parameters, cohort.digest(1)
    keys = {peer: pair_key(kit.pair_secret(peer), digest, (kit.node, peer)) for peer in cohort.nodes - {kit.node}}
    with RoundCipher(p, kit.secret.bfv_seed(factories.RUN, 1)) as cipher:
        return cipher.encrypt(blind(slots, kit.node, keys, p.plain_modulus))


# --- files -------------------------------------------------------------------------------------


def _aggregate(first: Slots, second: Any, sealed: bytes, cohort: Cohort = COHORT) -> Aggregate:
    member = cohort.members[0]
    return Aggregate(
        run=member.run,
        round=member.round,
        attempt=1,
        clients=3,
        values=member.values,
        votes=member.votes,
        plan=member.plan,
        key=member.key,
        cohort=cohort.digest(1),
        support=member.support,
        first=first,
        second=second,
        sealed=sealed,
    )


def _members(cohort: Cohort) -> tuple[Sequence[Any], Sequence[bytes]]:
    return cohort.members, cohort.encoded


def _fields(message: object) -> Case:
    """The fields of a message that JSON can hold, bytes in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in vars(message).items()
        if isinstance(value, bytes | int)
    }


def _blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def texts() -> dict[str, str]:
    """The text of every file but the recorded one, by its name."""
    made: dict[str, Any] = {name: vectors() for name, vectors in GOLDEN.items()}
    files = {f"{name}.json": _text(vector) for name, vector in (made | bad_vectors()).items()}
    return files | {ROSTER: factories.signed_roster(KITS[1].roster), OPERATOR_PUBLIC: factories.OPERATOR_PUBLIC}


def _text(vector: object) -> str:
    """JSON with every list of numbers on one line."""
    text = json.dumps(vector, indent=1)
    return re.sub(r"\[\s+([^][{}\"]+?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text) + "\n"


def differences(expected: Mapping[str, str]) -> list[str]:
    """What is wrong with the files in the folder, one line each."""
    present = {path.name: path.read_text() for pattern in ("*.json", "*.pub") for path in FOLDER.glob(pattern)}
    recorded = {f"{RECORDED}.json"}
    return (
        [f"{name} is missing" for name in sorted((set(expected) | recorded) - set(present))]
        + [f"{name} is no vector of this program" for name in sorted(set(present) - set(expected) - recorded)]
        + [f"{name} differs" for name in sorted(expected) if present.get(name, expected[name]) != expected[name]]
    )


def main(arguments: Sequence[str]) -> int:
    """Write or check; the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    expected = texts()
    if parser.parse_args(arguments).check:
        wrong = differences(expected)
        sys.stderr.writelines(f"{line}\n" for line in wrong)
        return 1 if wrong else 0
    for path in FOLDER.glob("*.json"):
        if path.name not in {*expected, f"{RECORDED}.json"}:
            path.unlink()
    for name, text in expected.items():
        (FOLDER / name).write_text(text)
    if not (FOLDER / f"{RECORDED}.json").exists():
        (FOLDER / f"{RECORDED}.json").write_text(_text(record_sum()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
