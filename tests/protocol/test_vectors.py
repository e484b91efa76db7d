"""The vectors of `tests/vectors/`: what was right once is right for ever, and what was refused stays refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.cipher import RoundCipher
from edge_client.keys import CohortSecret
from edge_client.round import tag_key
from protocol import errors
from protocol.bits import pack_bits, unpack_bits
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import decode_cohort, successor_sizes
from protocol.grid import Grid, Share, clips, dequantise, quantise, steps
from protocol.lanes import pack, unpack, value_lanes, vote_lanes
from protocol.pairwise import blind, keystream, pair_key
from protocol.parameters import CHECKS, DEGREE, Parameters
from protocol.payload import pack_payload, unpack_payload
from protocol.plan import plan_from_config
from protocol.roster import Roster, load_roster
from protocol.support import Support, decode_support, encode_support
from protocol.tag import tag
from protocol.terms import decode_terms, encode_terms, support_digest
from protocol.wire import (
    SIGNATURE_BYTES,
    Aggregate,
    Attendance,
    Contribution,
    decode_aggregate,
    decode_attendance,
    decode_contribution,
    encode_aggregate,
    encode_attendance,
    encode_contribution,
)
from tests.factories import OPERATOR_PUBLIC, layout, sign_key
from tests.vectors import regenerate

FOLDER = Path(regenerate.__file__).parent
Case = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def roster() -> Roster:
    return load_roster(FOLDER / "roster.json")


def test_the_roster_is_signed_by_the_operators_key_beside_it_and_by_no_other(tmp_path: Path) -> None:
    (tmp_path / "operator.pub").write_text(OPERATOR_PUBLIC)
    assert load_roster(FOLDER / "roster.json", tmp_path / "operator.pub") == roster()
    (tmp_path / "operator.pub").write_text(sign_key(1).public_key().public_bytes_raw().hex())
    with pytest.raises(errors.RosterRefused):
        load_roster(FOLDER / "roster.json", tmp_path / "operator.pub")


def words(numbers: list[int]) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    return np.array(numbers, np.uint64)


def blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def fields(message: object) -> Case:
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in vars(message).items()
        if isinstance(value, bytes | int)
    }


def parameters(case: Case) -> Parameters:
    return Parameters(Grid(case["bits"], case["clients_at_most"]))


# --- golden vectors ----------------------------------------------------------------------------


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


def replay_pairwise(case: Case) -> None:
    one, other = case["nodes"]
    key = pair_key(bytes.fromhex(case["secret"]), bytes.fromhex(case["cohort"]), (one, other))
    assert key.hex() == case["key"]
    assert keystream(key, len(case["stream"]), case["modulus"]).tolist() == case["stream"]
    assert blind(words(case["slots"]), one, {other: key}, case["modulus"]).tolist() == case[f"masked_by_{one}"]
    assert blind(words(case["slots"]), other, {one: key}, case["modulus"]).tolist() == case[f"masked_by_{other}"]


def replay_keys(case: Case) -> None:
    secret, run = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["run"])
    assert secret.id.hex() == case["cohort_id"]
    assert Roster(secret.id, {}).key_id(run, case["round"]).hex() == case["key_id"]
    assert secret.bfv_seed(run, case["round"]).hex() == case["bfv_seed"]


def replay_tag(case: Case) -> None:
    p, member = parameters(case), decode_attendance(bytes.fromhex(case["attendance"]), roster())
    secret, cohort = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["cohort"])
    key = tag_key(secret, member, case["attempt"], case["clients"], cohort)
    assert (key.hex(), p.plain_modulus, p.tag_bits) == (case["key"], case["modulus"], case["factor_bits"])
    assert [tag(np.array(each), 1, key, p).tolist() for each in case["summands"]] == case["tags"]
    assert np.sum(case["summands"], axis=0).tolist() == case["sum"]
    assert tag(np.array(case["sum"]), case["clients"], key, p).tolist() == case["tag"]
    assert [sum(column) % p.plain_modulus for column in zip(*case["tags"], strict=True)] == case["tag"]


def replay_payload(case: Case) -> None:
    p, key = parameters(case), bytes.fromhex(case["key"])
    for each in case["payloads"]:
        slots = pack_payload(np.array(each["integers"]), np.array(each["votes"], np.int64), key, p)
        assert slots.tolist() == each["slots"]
    total = [sum(column) % p.plain_modulus for column in zip(*(x["slots"] for x in case["payloads"]), strict=True)]
    assert total == case["slots"]
    values, votes = unpack_payload(words(total), case["clients"], len(case["values"]), len(case["votes"]), key, p)
    assert (values.tolist(), votes.tolist()) == (case["values"], case["votes"])
    assert values.tolist() == np.sum([x["integers"] for x in case["payloads"]], axis=0).tolist()


def replay_attendance(case: Case) -> None:
    data = bytes.fromhex(case["encoded"])
    made = decode_attendance(data, roster())
    assert fields(made) == case["fields"]
    assert encode_attendance(made) == data[:-SIGNATURE_BYTES]
    assert set(case["fields"]) == set(Attendance.__dataclass_fields__)


def replay_cohort(case: Case) -> None:
    made = decode_cohort(bytes.fromhex(case["encoded"]), roster())
    assert made.encode().hex() == case["encoded"]
    assert (sorted(made.nodes), made.samples, made.bearer) == (case["nodes"], case["samples"], case["bearer"])
    assert made.digest(case["attempt"]).hex() == case["digest"]


def replay_succession(case: Case) -> None:
    sizes = successor_sizes(case["first"], case["last"], case["minimum"], case["colluders"])
    assert list(sizes) == case["sizes"]


def replay_contribution(case: Case) -> None:
    data = bytes.fromhex(case["encoded"])
    attendance = decode_attendance(bytes.fromhex(case["attendance"]), roster())
    made = decode_contribution(data, attendance, parameters(case), roster())
    assert fields(made) == case["fields"]
    assert made.first.tolist() == case["residues"]
    assert encode_contribution(made, parameters(case)) == data[:-SIGNATURE_BYTES]
    assert set(case["fields"]) == set(Contribution.__dataclass_fields__) - {"seeds", "first"}


def replay_aggregate(case: Case) -> None:
    if "encoded" in case:
        data = bytes.fromhex(case["encoded"])
        made = decode_aggregate(data, parameters(case))
    else:
        known: Case = {name: bytes.fromhex(x) if isinstance(x, str) else x for name, x in case["fields"].items()}
        second = (np.arange(DEGREE, dtype=np.uint64) << np.uint64(48)).reshape(1, DEGREE)
        data = encode_aggregate(Aggregate(first=words(case["residues"]), second=second, **known), parameters(case))
        made = decode_aggregate(data, parameters(case))
        assert (len(data), blake2b(data)) == (case["bytes"], case["blake2b"])
        assert isinstance(made.second, np.ndarray)
        assert made.second.tolist() == second.tolist()
    assert fields(made) == case["fields"]
    assert made.first.tolist() == case["residues"]
    assert encode_aggregate(made, parameters(case)) == data


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
    "pairwise": replay_pairwise,
    "keys": replay_keys,
    "tag": replay_tag,
    "payload": replay_payload,
    "attendance": replay_attendance,
    "cohort": replay_cohort,
    "succession": replay_succession,
    "contribution": replay_contribution,
    "aggregate": replay_aggregate,
    "plan": replay_plan,
    "parameters": replay_parameters,
    "expansion": replay_expansion,
}


@pytest.mark.parametrize("kind", REPLAYS)
def test_the_code_still_makes_what_it_made(kind: str) -> None:
    cases = read(kind)
    assert cases
    for case in cases:
        REPLAYS[kind](case)


# --- vectors that must be refused --------------------------------------------------------------

REFUSALS: dict[str, Callable[[Case], object]] = {
    "support": lambda case: decode_support(bytes.fromhex(case["encoded"]), case["size"]),
    "bits": lambda case: unpack_bits(bytes.fromhex(case["packed"]), case["count"], case["width"]),
    "terms": lambda case: decode_terms(bytes.fromhex(case["encoded"]), layout(*case["tensors"])),
    "attendance": lambda case: decode_attendance(bytes.fromhex(case["encoded"]), roster()),
    "cohort": lambda case: decode_cohort(bytes.fromhex(case["encoded"]), roster()),
    "contribution": lambda case: decode_contribution(
        bytes.fromhex(case["encoded"]),
        decode_attendance(bytes.fromhex(case["attendance"]), roster()),
        parameters(case),
        roster(),
    ),
    "aggregate": lambda case: decode_aggregate(bytes.fromhex(case["encoded"]), parameters(case)),
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
        "aggregate": {"MalformedMessage"},
        "residues": {"MalformedMessage"},
        "payload": {"MalformedMessage"},
        "plan": {"ConfigError", "HeadroomError"},
        "roster": {"RosterRefused"},
    }


# --- the recorded sum --------------------------------------------------------------------------


def test_the_recorded_sum_decrypts_to_the_recorded_integers() -> None:
    case = read("sum_0")
    p, secret, run = parameters(case), CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["run"])
    aggregate = decode_aggregate(bytes.fromhex(case["aggregate"]), p)
    made = layout(*case["tensors"])
    terms = decode_terms(secret.unseal(aggregate.sealed, run, case["round"]), made)
    assert aggregate.support == support_digest(aggregate.sealed)
    assert aggregate.key == roster().key_id(run, case["round"])
    with RoundCipher(p, secret.bfv_seed(run, case["round"])) as cipher:
        slots = cipher.decrypt(aggregate)
    key = tag_key(secret, aggregate, aggregate.attempt, aggregate.clients, aggregate.cohort)
    values, votes = unpack_payload(slots, 3, len(case["values"]), len(case["votes"]), key, p)
    assert (values.tolist(), votes.tolist()) == (case["values"], case["votes"])
    cut = p.values.slots(len(case["values"]) + CHECKS)
    lanes = unpack(slots[:cut], cut * p.values.per_slot, p.values)
    assert lanes.tolist() == [*case["values"], 3, 0]
    step = steps(terms.clips, made, terms.support, p.grid)
    assert dequantise(values, step).tolist() == case["mean"]


def test_the_recorded_contributions_still_add_up_to_the_recorded_sum() -> None:
    case = read("sum_0")
    p, machine = parameters(case), Seal(parameters(case))
    cohort, summer = decode_cohort(bytes.fromhex(case["cohort"]), roster()), Summer(machine)
    contributions = [
        decode_contribution(bytes.fromhex(data), member, p, roster())
        for member, data in zip(cohort.members, case["contributions"], strict=True)
    ]
    for contribution in contributions:
        summer.add(restore(contribution.first, p.drop_up), contribution.seeds)
    recorded = decode_aggregate(bytes.fromhex(case["aggregate"]), p)
    first, second = summer.halves()
    assert truncate(first.ravel()[: recorded.first.size], p.drop_down).tolist() == recorded.first.tolist()
    assert recorded.second == tuple(zip(*(contribution.seeds for contribution in contributions), strict=True))
    assert {contribution.cohort for contribution in contributions} == {recorded.cohort} == {cohort.digest(1)}
    assert second.max() > 0
    machine.close()


def test_a_single_recorded_contribution_does_not_show_its_values() -> None:
    # Whoever may decrypt and holds one client's contribution sees its blinding: the count is not one.
    case = read("sum_0")
    p, secret, run = parameters(case), CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["run"])
    cohort = decode_cohort(bytes.fromhex(case["cohort"]), roster())
    alone = decode_contribution(bytes.fromhex(case["contributions"][0]), cohort.members[0], p, roster())
    recorded = decode_aggregate(bytes.fromhex(case["aggregate"]), p)
    first = truncate(restore(alone.first, p.drop_up), p.drop_down)
    posed = Aggregate(**{**vars(recorded), "first": first, "second": (alone.seeds,), "clients": 1})
    with RoundCipher(p, secret.bfv_seed(run, case["round"])) as cipher:
        slots = cipher.decrypt(decode_aggregate(encode_aggregate(posed, p), p))
    cut = p.values.slots(len(case["values"]) + CHECKS)
    lanes = unpack(slots[:cut], cut * p.values.per_slot, p.values)
    assert lanes[len(case["values"]) : len(case["values"]) + CHECKS].tolist() != [1] * CHECKS
    assert np.abs(lanes).max() > 1000


# --- the folder --------------------------------------------------------------------------------


def test_the_vectors_are_what_regenerate_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenerate.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_a_vector_that_differs_is_missing_or_is_foreign_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    (tmp_path / "foreign.json").write_text("{}")
    assert regenerate.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *(path.name for path in FOLDER.glob("*.json")),
        "operator.pub",
    }
    assert regenerate.main(["--check"]) == 0
    (tmp_path / "bits.json").write_text("[]\n")
    (tmp_path / "sum_0.json").unlink()
    (tmp_path / "support.json").unlink()
    (tmp_path / "more.json").write_text("{}")
    assert regenerate.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sum_0.json is missing",
        "support.json is missing",
        "more.json is no vector of this program",
        "bits.json differs",
    ]


def test_the_recorded_sum_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    (tmp_path / "sum_0.json").write_text("recorded")
    assert regenerate.main([]) == 0
    assert (tmp_path / "sum_0.json").read_text() == "recorded"


def test_every_file_has_a_line_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.json"):
        name = path.stem if not path.stem.startswith("bad_") else f"bad_{path.stem.split('_')[1]}_*"
        assert f"`{name}`" in text, path.name
