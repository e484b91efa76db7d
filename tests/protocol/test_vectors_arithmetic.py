"""The golden vectors of arithmetic: what was computed once is computed for ever."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from edge_client.keys import CohortSecret
from protocol.bits import pack_bits, unpack_bits
from protocol.ciphertext import Seal, Summer
from protocol.figures import Figures
from protocol.grid import Grid, Share, clips, dequantise, quantise, steps
from protocol.lanes import pack, unpack, value_lanes, vote_lanes
from protocol.parameters import Parameters
from protocol.payload import pack_payload, unpack_payload
from protocol.plan import plan_from_config
from protocol.support import Support, decode_support, encode_support
from protocol.terms import decode_terms, encode_terms, support_digest
from tests.factories import layout
from tests.protocol.replaying import Case, blake2b, parameters, read, words
from tests.vectors.golden import ARITHMETIC


def replay_support(case: Case) -> None:
    support = Support(np.array(case["positions"], np.int64), case["size"])
    assert encode_support(support).hex() == case["encoded"]
    assert decode_support(bytes.fromhex(case["encoded"]), case["size"]) == support


def replay_terms(case: Case) -> None:
    terms = decode_terms(bytes.fromhex(case["encoded"]), layout(*case["tensors"]))
    assert (terms.clips.tolist(), terms.support.positions.tolist()) == (case["clips"], case["positions"])
    assert encode_terms(terms).hex() == case["encoded"]
    secret, run = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["run"])
    assert secret.seal(encode_terms(terms), run, case["round"]).hex() == case["sealed"]
    assert secret.unseal(bytes.fromhex(case["sealed"]), run, case["round"]).hex() == case["encoded"]
    assert support_digest(bytes.fromhex(case["sealed"])).hex() == case["digest"]


def replay_grid(case: Case) -> None:
    grid, values = Grid(case["bits"], case["clients"]), np.array(case["values"], np.float32)
    assert (grid.radix, grid.reach) == (case["radix"], case["reach"])
    step = np.full(values.size, case["clip"] / grid.levels)
    codes, clipped = quantise(values, step, Share(case["samples"], case["total"]), grid, np.array(case["dither"]))
    assert (codes.tolist(), clipped) == (case["codes"], case["clipped"])
    assert dequantise(codes, step).tolist() == case["dequantised"]


def replay_clips(case: Case) -> None:
    made, vector = layout(*case["tensors"]), np.array(case["vector"], np.float32)
    clip = clips(vector, made)
    support = Support(np.array(case["positions"], np.int64), made.size)
    assert clip.tolist() == case["clips"]
    assert steps(clip, made, support, Grid(case["bits"], case["clients"])).tolist() == case["steps"]


def replay_lanes(case: Case) -> None:
    if case["kind"] == "values":
        lanes = value_lanes(Grid(case["bits"], case["clients"]), case["per_slot"])
    else:
        lanes = vote_lanes(case["clients"], case["modulus"])
    assert vars(lanes) == {key: case[key] for key in ("low", "radix", "per_slot", "modulus")}
    assert pack(np.array(case["integers"], np.int64), lanes).tolist() == case["slots"]
    assert unpack(words(case["slots"]), len(case["integers"]), lanes).tolist() == case["integers"]


def replay_bits(case: Case) -> None:
    assert pack_bits(words(case["words"]), case["width"]).hex() == case["packed"]
    assert unpack_bits(bytes.fromhex(case["packed"]), len(case["words"]), case["width"]).tolist() == case["words"]


def replay_payload(case: Case) -> None:
    p, key = parameters(case), bytes.fromhex(case["key"])
    for each in case["payloads"]:
        votes, figures = np.array(each["votes"], np.int64), Figures(**each["figures"])
        slots = pack_payload(np.array(each["integers"]), votes, figures, key, p)
        assert slots.tolist() == each["slots"]
    total = [sum(column) % p.plain_modulus for column in zip(*(x["slots"] for x in case["payloads"]), strict=True)]
    assert total == case["slots"]
    sizes = len(case["values"]), len(case["votes"])
    values, votes, figures = unpack_payload(words(total), case["clients"], *sizes, key, p)
    assert (values.tolist(), votes.tolist(), asdict(figures)) == (case["values"], case["votes"], case["figures"])
    assert values.tolist() == np.sum([x["integers"] for x in case["payloads"]], axis=0).tolist()


def replay_plan(case: Case) -> None:
    made = plan_from_config(case["config"])
    assert made.digest.hex() == case["digest"]
    assert made.to_config() == case["config"]


def replay_parameters(case: Case) -> None:
    p = Parameters(Grid(case["bits"], case["clients"]))
    assert case == {
        "clients": case["clients"],
        "bits": case["bits"],
        "radix": p.grid.radix,
        "fields": p.fields,
        "plain_modulus": p.plain_modulus,
        "drop_up": p.drop_up,
        "drop_down": p.drop_down,
        "votes_per_slot": p.votes.per_slot,
    }


def replay_expansion(case: Case) -> None:
    machine = Seal(Parameters(Grid(16, 5)))
    summer = Summer(machine)
    summer.add(words([1]), [bytes.fromhex(case["seed"])])
    second = summer.halves()[1][0]
    machine.close()
    assert second[:3].tolist() == case["begins"]
    assert blake2b(second.astype("<u8").tobytes()) == case["blake2b"]


REPLAYS: dict[str, Callable[[Case], None]] = {
    "support": replay_support,
    "terms": replay_terms,
    "grid": replay_grid,
    "clips": replay_clips,
    "lanes": replay_lanes,
    "bits": replay_bits,
    "payload": replay_payload,
    "plan": replay_plan,
    "parameters": replay_parameters,
    "expansion": replay_expansion,
}


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_the_code_still_computes_what_it_computed(kind: str) -> None:
    cases = read(kind)
    assert cases
    for case in cases:
        REPLAYS[kind](case)
