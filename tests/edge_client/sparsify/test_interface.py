"""``edge_client.sparsify.interface``: what a method says by default, and two toy methods that say all the rest.

The toys stand for what the interface must carry: one lets the clients vote on the mask, the other sends a threshold a
neuron and keeps all weights at home. Both run two rounds of the real protocol.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.client import Client
from edge_client.learning.data import Share, part
from edge_client.learning.network import Network, build_network, extract, first_state, layout_of
from edge_client.learning.partition import partition
from edge_client.learning.training import local_update
from edge_client.round import training_seed
from edge_client.sparsify import METHODS, GlobalState
from edge_client.sparsify.fedavg import FedAvg
from edge_client.sparsify.interface import Sparsifier
from edge_client.sparsify.topk import top_k
from edge_client.state import load_pending
from edge_client.sums import open_sum, state_after
from protocol import checkpoint
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector
from protocol.wire import contribution_length
from tests.edge_client import tiny
from tests.edge_client.federation import (
    RUN,
    Federation,
    Played,
    federation,
    figures_of,
    invitation,
    play_round,
    reports,
    tiny_plan,
)


def personal_file(folder: Path, node: int, round_: int, run: bytes = RUN) -> Path:
    return folder / str(node) / "state" / "personal" / f"{run.hex()}-{round_:06d}.safetensors"


class MajorityVote(Sparsifier):
    """Each client votes for the larger half of what is left; a position stays with the votes of more than half."""

    name = "toy-majority"

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        votes = ~layout.prunable
        candidates = np.flatnonzero(layout.prunable & state.mask)
        votes[candidates[top_k(np.abs(trained[candidates]), candidates.size // 2)]] = True
        return trained, votes

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        elected: Mask = 2 * votes > clients
        return elected


class Gated(nn.Module):
    """The tiny network with a gate a hidden neuron that closes where the threshold passes the mean magnitude."""

    seen: torch.Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        neurons = body.get_parameter("fc1.bias").numel()
        self.threshold = nn.Parameter(torch.zeros(neurons))
        self.register_buffer("seen", torch.zeros(neurons))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.body.get_parameter("fc1.weight")
        gate = torch.sigmoid(10 * (weight.abs().mean(dim=1) - self.threshold))
        hidden = torch.tanh(self.body.get_submodule("fc1")(x)) * gate
        logits: torch.Tensor = self.body.get_submodule("fc2")(hidden)
        return logits


class PersonalWeights(Sparsifier):
    """One threshold per neuron travels; what moved it moves the node's own weights."""

    name = "toy-personal"

    def wear(self, model: nn.Module) -> nn.Module:
        return Gated(model)

    def travelling(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        return {"threshold": model.get_parameter("threshold")}

    def personal(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name != "threshold"}

    def absorb(self, model: nn.Module, shared: Mapping[str, torch.Tensor]) -> None:
        seen, weight = model.get_buffer("seen"), model.get_parameter("body.fc1.weight")
        with torch.no_grad():
            rise = shared["threshold"] - seen
            weight.sub_((rise * torch.sign(weight.sum(dim=1)) / weight.shape[1])[:, None])
            seen.copy_(shared["threshold"])
        super().absorb(model, shared)

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        return np.ones(layout.size, np.bool_)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, MajorityVote.name, MajorityVote)
    monkeypatch.setitem(METHODS, PersonalWeights.name, PersonalWeights)


def rounds(clients: Mapping[int, Client], fed: Federation, count: int) -> Iterator[Played]:
    aggregate = b""
    for number in range(1, count + 1):
        played = play_round(clients, fed, number, aggregate)
        aggregate = played.aggregate
        yield played


# --- what a method says by default --------------------------------------------------------------


def test_by_default_every_float_tensor_travels_and_nothing_is_personal() -> None:
    model = tiny.normed((5,), 4)
    method = FedAvg(tiny_plan())
    assert method.wear(model) is model
    assert set(model.state_dict()) - set(method.travelling(model)) == {"norm.num_batches_tracked"}
    assert method.personal(model) == {}


def test_by_default_the_averages_replace_the_models_tensors() -> None:
    model = tiny.normed((5,), 4)
    method = FedAvg(tiny_plan())
    shared = {name: torch.randn_like(tensor) for name, tensor in method.travelling(model).items()}
    method.absorb(model, shared)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in shared.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_by_default_a_client_gives_what_it_has_trained_and_does_not_vote() -> None:
    method = FedAvg(tiny_plan())
    layout = layout_of(tiny.build((5,), 4), method)
    vector = np.linspace(-1, 1, layout.size, dtype=np.float32)
    values, votes = method.submit(vector, layout, first_state(vector, layout), lambda: pytest.fail("not needed"))
    assert values is vector
    assert votes.size == 0


def test_by_default_everything_travels_in_the_first_round() -> None:
    method = FedAvg(tiny_plan())
    layout = layout_of(tiny.build((5,), 4), method)
    assert method.first_mask(np.zeros(layout.size, np.float32), layout).all()


def test_a_method_must_say_what_survives() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?survivors'?"):
        Sparsifier(tiny_plan())  # type: ignore[abstract]


# --- votes --------------------------------------------------------------------------------------


def test_the_majority_of_encrypted_votes_becomes_the_mask(tmp_path: Path) -> None:
    plan = tiny_plan(method=MajorityVote.name, model="tests.edge_client.tiny:normed", rounds=2)
    fed = federation(plan)
    clients = fed.clients(tmp_path)
    network = build_network(plan, (5,), 4, RUN)
    layout, mask = network.layout, network.initial.mask
    prunable = int(layout.prunable.sum())
    for number, played in enumerate(rounds(clients, fed, 2), start=1):
        ballots = []
        for node in fed.kits:
            pending = load_pending(tmp_path / str(node) / "state")
            said = decode_attendance(pending.attendance, fed.roster)
            assert said.values == said.votes == int(mask.sum())
            assert int((pending.votes & layout.prunable[mask]).sum()) == int((mask & layout.prunable).sum()) // 2
            ballots.append(pending.votes)
        opened = open_sum(played.aggregate, RUN, number, fed.kits[2], plan, layout)
        assert opened.votes.tolist() == np.sum(ballots, axis=0).tolist()
        elected = np.zeros(layout.size, np.bool_)
        elected[mask] = np.sum(ballots, axis=0) > 2
        state = state_after(played.aggregate, RUN, number, fed.kits[2], plan, network)
        assert state.mask.tolist() == elected.tolist()
        assert 0 < int((elected & layout.prunable).sum()) < int((mask & layout.prunable).sum())
        assert elected[~layout.prunable].all()
        mask = elected
    answers = reports(clients, fed, played.aggregate).values()
    assert len({answer.frames["model"] for answer in answers}) == 1
    for answer in answers:
        assert figures_of(answer).kept == len(clients) * int((mask & layout.prunable).sum())
        assert figures_of(answer).parameters == len(clients) * prunable


# --- personal weights ---------------------------------------------------------------------------


def share_of(fed: Federation, node: int) -> Share:
    data, position = tiny.data(), list(fed.kits).index(node)
    rows = partition("group", data.train_y, data.groups, len(fed.kits), fed.plan.seed)[position]
    return part(data, rows, position, len(fed.kits))


def personal_after_training(
    fed: Federation, node: int, round_: int, before: Mapping[str, np.ndarray] | None, thresholds: Vector
) -> tuple[Vector, dict[str, np.ndarray]]:
    """What a node's round must come to, from the toy's own functions: trained thresholds, and what is kept."""
    network: Network = build_network(fed.plan, (5,), 4, RUN)
    model, method = network.model, network.method
    own = method.personal(model)
    with torch.no_grad():
        for name, array in (before or {}).items():
            own[name].copy_(torch.from_numpy(array))
    method.absorb(model, {"threshold": torch.from_numpy(thresholds.copy())})
    seed = training_seed(fed.plan, Call(RUN, round_, 1), node)
    local_update(network, np.ones(6, np.bool_), share_of(fed, node), fed.plan, seed)
    kept = {name: tensor.numpy().copy() for name, tensor in method.personal(model).items()}
    return extract(network), kept


def test_only_thresholds_travel_and_every_node_keeps_weights_of_its_own(tmp_path: Path) -> None:
    plan = tiny_plan(method=PersonalWeights.name, rounds=2)
    fed = federation(plan)
    clients = fed.clients(tmp_path)
    network = build_network(plan, (5,), 4, RUN)
    assert [tensor.name for tensor in network.layout.tensors] == ["threshold"]
    thresholds = network.initial.vector
    kept: dict[int, dict[str, np.ndarray]] = {}
    for number, played in enumerate(rounds(clients, fed, 2), start=1):
        for node, sent in played.sent.items():
            folder = tmp_path / str(node) / "state"
            trained, expected = personal_after_training(fed, node, number, kept.get(node), thresholds)
            assert load_pending(folder).values.tobytes() == trained.tobytes()
            assert checkpoint.load(personal_file(tmp_path, node, number)) == checkpoint.Checkpoint(expected, {})
            kept[node] = expected
            assert len(sent.frames["contribution"]) == contribution_length(6, 0, 4, plan.parameters)
        thresholds = state_after(played.aggregate, RUN, number, fed.kits[2], plan, network).vector
        assert thresholds.any()
    assert len({weights["body.fc1.weight"].tobytes() for weights in kept.values()}) == 4
    answers = reports(clients, fed, played.aggregate)
    assert len({answer.frames["model"] for answer in answers.values()}) == 1
    assert len({load_pending(tmp_path / str(node) / "state").measured.test_loss for node in clients}) == 4


def test_scoring_leaves_personal_weights_as_they_are(tmp_path: Path) -> None:
    fed = federation(tiny_plan(method=PersonalWeights.name, rounds=1))
    clients = fed.clients(tmp_path)
    aggregate = play_round(clients, fed, 1, b"").aggregate
    file = personal_file(tmp_path, 2, 1)
    before = file.read_bytes()
    scores = play_round(clients, fed, 2, aggregate).aggregate
    frames = {"aggregate": aggregate, "scores": scores}
    one, other = (clients[2].report(Call(RUN, 2, 1), frames) for _ in range(2))
    assert file.read_bytes() == before
    assert one == other


def test_personal_weights_are_this_users_alone(tmp_path: Path) -> None:
    fed = federation(tiny_plan(method=PersonalWeights.name))
    client = fed.clients(tmp_path)[2]
    client.train(Call(RUN, 1, 1), invitation(fed.kits))
    file = personal_file(tmp_path, 2, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_another_run_begins_with_fresh_weights_and_not_with_those_of_the_last_one(tmp_path: Path) -> None:
    fed = federation(tiny_plan(method=PersonalWeights.name))
    used, fresh = fed.clients(tmp_path / "used")[2], fed.clients(tmp_path / "fresh")[2]
    used.train(Call(RUN, 1, 1), invitation(fed.kits))
    used.train(Call(bytes(16), 1, 1), invitation(fed.kits))
    fresh.train(Call(bytes(16), 1, 1), invitation(fed.kits))
    files = [personal_file(tmp_path / name, 2, 1, bytes(16)) for name in ("used", "fresh")]
    assert list(files[0].parent.iterdir()) == files[:1]
    assert checkpoint.load(files[0]) == checkpoint.load(files[1])
