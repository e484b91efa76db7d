"""``edge_client.client``: bytes in, bytes out; a client is nothing but its kit, its data and what waits on its disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_client.client import Client
from edge_client.keys import SEAL_FILE
from edge_client.learning.network import build_network
from edge_client.settings import NodeSettings
from edge_client.sparsify.fedavg import FedAvg
from edge_client.state import load_pending
from protocol.attendance import decode_attendance
from protocol.call import Action, Call
from protocol.errors import ConfigError, KeyFileError, MalformedMessage, RosterRefused
from protocol.figures import NOTHING
from protocol.wire import decode_aggregate, encode_aggregate
from tests.edge_client.federation import (
    FIRST,
    NODES,
    PLAN,
    RUN,
    Federation,
    Played,
    Stage,
    federation,
    invitation,
    one_client,
    tiny_plan,
)
from tests.factories import write_roster

# --- who it works for ---------------------------------------------------------------------------


def test_a_client_refuses_any_plan_but_the_one_that_it_was_provisioned_for(tmp_path: Path) -> None:
    fed = federation(PLAN)
    kit = fed.write(NODES[0], tmp_path / "kit")
    other = replace(PLAN, min_cohort=4)
    with pytest.raises(ConfigError) as caught:
        Client(NodeSettings(kit, kit / "state", None, 0, 4, 1), other)
    assert other.digest.hex()[:16] in str(caught.value)
    assert PLAN.digest.hex()[:16] in str(caught.value)
    assert not (kit / "state").exists()


def test_a_client_with_half_a_kit_does_not_start(tmp_path: Path) -> None:
    fed = federation(PLAN)
    kit = fed.write(NODES[0], tmp_path / "kit")
    (kit / SEAL_FILE).unlink()
    with pytest.raises(KeyFileError, match=SEAL_FILE):
        Client(NodeSettings(kit, kit / "state", None, 0, 4, 1), PLAN)


def test_a_client_that_has_worked_with_a_roster_refuses_an_older_one(tmp_path: Path) -> None:
    fed = federation(PLAN)
    client = one_client(tmp_path, replace(fed, roster=replace(fed.roster, serial=3)), PLAN)
    kit, before = tmp_path / "kit", client.train(FIRST, invitation(NODES[:4]))
    write_roster(kit, replace(fed.roster, serial=2))
    with pytest.raises(RosterRefused, match="is number 2, but number 3 was in force here"):
        Client(NodeSettings(kit, kit / "state", None, 0, 4, 1), PLAN)
    write_roster(kit, replace(fed.roster, serial=4))
    assert Client(NodeSettings(kit, kit / "state", None, 0, 4, 1), PLAN).train(FIRST, invitation(NODES[:4])) == before


def test_a_client_uses_as_many_threads_as_it_is_told(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for place, threads in enumerate((1, 2, 1)):
            one_client(tmp_path / str(place), federation(PLAN), PLAN, threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# --- the network --------------------------------------------------------------------------------


def test_every_client_begins_with_the_same_network_and_torchs_generator_stays_where_it_was() -> None:
    generator = torch.random.get_rng_state()
    one, other = (build_network(PLAN, (5,), 4, RUN) for _ in range(2))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert one.initial.vector.tobytes() == other.initial.vector.tobytes()
    assert one.layout == other.layout
    assert (one.initial.round, bool(one.initial.mask.all()), one.method.name) == (0, True, PLAN.method)
    reseeded = build_network(replace(PLAN, seed=1), (5,), 4, RUN)
    assert reseeded.initial.vector.tobytes() != one.initial.vector.tobytes()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no-such-network"}, "unknown model"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"rounds": 1}, "must exceed first-prune"),
        ({"model": "tests.edge_client.tiny:doubled"}, "trained in float32"),
        ({"model": "lenet5"}, "lenet5 takes images"),
    ],
)
def test_a_plan_that_names_what_there_is_not_is_refused(change: dict[str, str], text: str, tmp_path: Path) -> None:
    plan = tiny_plan(**{"method": "fedsparsify-global", **change})
    client = one_client(tmp_path, federation(PLAN), plan)
    with pytest.raises(ConfigError, match=text):
        client.train(FIRST, invitation(NODES[:4]))


# --- what stays here ----------------------------------------------------------------------------


def test_methods_without_personal_tensors_leave_no_file_of_them(stage: Stage) -> None:
    assert sorted(path.name for path in stage.state(2).iterdir()) == ["ledger.json", "pending.npz"]
    assert FedAvg(PLAN).personal(build_network(PLAN, (5,), 4, RUN).model) == {}


def test_what_a_client_has_measured_is_in_its_folder_and_in_no_answer(
    over: tuple[Federation, Mapping[int, Client], Played], stage: Stage
) -> None:
    _, _, result = over
    for node, answer in stage.trained.items():
        measured = load_pending(stage.state(node)).measured
        assert measured.tested > 0
        assert measured.loss > 0
        said = decode_attendance(answer.frames["attendance"], stage.fed.roster)
        assert said.figures == NOTHING, "of a sum, and there is none yet"
    for answers, action in ((result.trained, Action.TRAIN), (result.sent, Action.CONTRIBUTE)):
        assert all(set(each.frames) == set(action.reply) for each in answers.values())


def test_a_wrong_aggregate_never_reaches_the_training(
    played: tuple[Federation, Mapping[int, Client], Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clients, result = played
    aggregate = decode_aggregate(result.aggregate, PLAN.parameters)
    wrong = encode_aggregate(replace(aggregate, first=np.roll(aggregate.first, 1)), PLAN.parameters)
    trained: list[object] = []
    monkeypatch.setattr("edge_client.client.local_update", lambda *arguments: trained.append(arguments))
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        clients[2].train(Call(RUN, 2, 1), invitation(clients, wrong))
    assert trained == []
