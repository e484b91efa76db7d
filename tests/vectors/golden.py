"""The golden vectors of arithmetic: from a support to the slots of a payload, plans and parameters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from edge_client.keys import CohortSecret
from protocol.bits import pack_bits
from protocol.ciphertext import Seal, Summer
from protocol.grid import Grid, Share, clips, dequantise, quantise, steps
from protocol.lanes import pack, value_lanes, vote_lanes
from protocol.parameters import Parameters
from protocol.support import Support, encode_support
from protocol.terms import encode_terms, support_digest
from tests import factories
from tests.vectors.scene import PLAN, SHAPES, TERMS, Case, blake2b, payloads


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


def payload_vectors() -> list[Case]:
    """What three clients give, as slots, and what the slots of their sum hold; with votes and without."""
    return [payloads(votes) for votes in (7, 0)]


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
            {"seed": seed.hex(), "begins": second[:3].tolist(), "blake2b": blake2b(second.astype("<u8").tobytes())}
        )
    machine.close()
    return made


ARITHMETIC: Final = {
    "support": support_vectors,
    "terms": terms_vectors,
    "grid": grid_vectors,
    "clips": clip_vectors,
    "lanes": lanes_vectors,
    "bits": bits_vectors,
    "payload": payload_vectors,
    "plan": plan_vectors,
    "parameters": parameters_vectors,
    "expansion": expansion_vectors,
}
