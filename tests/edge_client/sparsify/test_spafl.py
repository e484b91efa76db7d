"""``edge_client.sparsify.spafl``: against a naive twin of the paper's method; every client has a model of its own."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.learning.network import build_network, extract, network_of
from edge_client.sparsify import sparsifier
from edge_client.sparsify.spafl import Gate, SpaFL
from edge_client.state import load_pending
from protocol import checkpoint
from protocol.attendance import decode_attendance
from protocol.errors import ConfigError
from protocol.plan import Plan
from protocol.wire import contribution_length
from tests.edge_client import tiny
from tests.edge_client.federation import RUN, federation, figures_of, reports, tiny_plan
from tests.edge_client.sparsify import spafl_twin
from tests.edge_client.sparsify.side_by_side import encrypted

INPUTS = torch.randn(16, 5, generator=torch.Generator().manual_seed(3))


def plan_of(**changes: object) -> Plan:
    return tiny_plan(**{"method": "spafl", "threshold_penalty": 0.1, **changes})


def worn(build: str = "build", **changes: object) -> tuple[SpaFL, nn.Module]:
    network = build_network(plan_of(model=f"tests.edge_client.tiny:{build}", **changes), (5,), 4, RUN)
    assert isinstance(network.method, SpaFL)
    return network.method, network.model


def gates(model: nn.Module) -> list[Gate]:
    return [module for module in model.modules() if isinstance(module, Gate)]


@pytest.mark.slow
def test_three_encrypted_rounds_give_the_thresholds_masks_and_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    plan = plan_of(bits=20, seed=11)
    ours = encrypted(plan, tmp_path, 3)
    layout = ours.network.layout
    assert [tensor.name for tensor in layout.tensors] == [f"fc{i}.parametrizations.weight.0.threshold" for i in (1, 2)]
    plain = ours.network.method.shed(copy.deepcopy(ours.network.model))
    settings = spafl_twin.Settings(0.1, 3, plan.epochs, plan.batch_size, 0.1, plan.momentum)
    twin = spafl_twin.train(plain, ours.learners, settings, ours.seed_of)
    off = 0
    for round_, ((tau, trained), state, tolerance) in enumerate(
        zip(twin, ours.states, ours.tolerances, strict=True), start=1
    ):
        assert tolerance < 1e-4
        expected = np.concatenate([tau[name].numpy() for name in spafl_twin.LAYERS])
        np.testing.assert_allclose(state.vector, expected, rtol=0, atol=tolerance)
        for node, own in zip(ours.clients, trained, strict=True):
            path = tmp_path / str(node) / "state" / "personal" / f"{RUN.hex()}-{round_:06d}.safetensors"
            kept = checkpoint.load(path).tensors
            for name in spafl_twin.LAYERS:
                weight = kept[f"{name}.parametrizations.weight.original"]
                bias = kept[f"{name}.parametrizations.bias.original"]
                np.testing.assert_allclose(weight, own[f"{name}.w"], rtol=0, atol=tolerance)
                np.testing.assert_allclose(bias, own[f"{name}.b"], rtol=0, atol=tolerance)
                on = np.abs(weight).mean(axis=1) > tau[name].numpy()
                assert on.tolist() == (own[f"{name}.w"].abs().mean(dim=1) > tau[name]).tolist()
                off += int((~on).sum())
    assert off > 0


def test_every_client_weighs_the_same_and_sends_its_thresholds_alone(tmp_path: Path) -> None:
    ours = encrypted(plan_of(), tmp_path, 1)
    pending = load_pending(tmp_path / "2" / "state")
    said = decode_attendance(pending.attendance, federation(plan_of()).roster)
    assert (said.samples, said.values, said.votes) == (1, 10, 0)
    assert ours.network.layout.size == 10


def test_the_uplink_is_less_than_a_hundredth_of_dense_fedavgs() -> None:
    network = build_network(plan_of(model="fashion-mlp"), (1, 28, 28), 10, RUN)
    own, _ = network.method.sizes(network.model, network.layout, network.initial)
    assert (own, network.layout.size) == (118_282, 266)
    parameters = plan_of(max_cohort=10).parameters
    assert contribution_length(266, 0, 200, parameters) + 240 < own * 4 / 100


def test_a_filter_is_off_with_its_bias_where_its_weights_are_smaller_than_its_threshold() -> None:
    _, model = worn()
    first = gates(model)[0]
    with torch.no_grad():
        first.threshold[:3] = 1.0
    hidden = model.get_submodule("fc1")(INPUTS)
    assert not hidden[:, :3].any()
    assert hidden[:, 3:].all()


def test_the_identity_lets_the_loss_move_thresholds_and_the_clipped_estimator_does_not_near_zero() -> None:
    moved = {}
    for estimator in ("identity", "clipped"):
        _, model = worn(threshold_estimator=estimator)
        model(INPUTS).square().sum().backward()
        moved[estimator] = [bool(gate.threshold.grad.any()) for gate in gates(model) if gate.threshold.grad is not None]
    assert moved == {"identity": [True, True], "clipped": [False, False]}


def test_a_dying_layer_gets_its_thresholds_back() -> None:
    _, model = worn()
    first = gates(model)[0]
    with torch.no_grad():
        first.threshold.fill_(5.0)
    assert model(INPUTS).std(dim=0).any()
    assert first.threshold.tolist() == [0.0] * 6


def test_thresholds_are_sent_within_their_limits() -> None:
    method, model = worn()
    with torch.no_grad():
        gates(model)[1].threshold.copy_(torch.tensor([-9.0, 9.0, 0.0, 1.0]))
    network = build_network(plan_of(), (5,), 4, RUN)
    trained = extract(network_of(model, method))
    values, votes = method.submit(trained, network.layout, network.initial, lambda: pytest.fail("not needed"))
    assert values[6:].tolist() == [-5.0, 5.0, 0.0, 1.0]
    assert votes.size == 0


def test_a_client_that_has_missed_rounds_moves_its_weights_by_all_that_it_has_missed() -> None:
    method, model = worn()
    direct, stepwise = copy.deepcopy(model), copy.deepcopy(model)
    names = list(method.travelling(model))
    sizes = dict(zip(names, (6, 4), strict=True))
    first, second = ({name: torch.full((size,), tau) for name, size in sizes.items()} for tau in (0.001, 0.003))
    method.absorb(direct, second)
    method.absorb(stepwise, first)
    method.absorb(stepwise, second)
    for name, tensor in direct.state_dict().items():
        torch.testing.assert_close(stepwise.state_dict()[name], tensor)
    before, after = (m.get_parameter("fc1.parametrizations.weight.original") for m in (model, direct))
    torch.testing.assert_close(after, before - (0.003 * before.sum(dim=1).sign() / 5)[:, None])


def test_sizes_count_the_filters_that_are_on_with_their_biases() -> None:
    method, model = worn("normed")
    network = build_network(plan_of(), (5,), 4, RUN)
    whole = 64 + 12
    assert method.sizes(model, network.layout, network.initial) == (whole, whole)
    with torch.no_grad():
        gates(model)[0].threshold[:2] = 1.0
    assert method.sizes(model, network.layout, network.initial) == (whole, whole - 2 * (5 + 1))


def test_a_shed_model_is_plain_and_computes_the_same() -> None:
    method, model = worn("normed")
    with torch.no_grad():
        gates(model)[0].threshold[:2] = 1.0
    logits = model.eval()(INPUTS)
    plain = method.shed(model)
    assert set(plain.state_dict()) == set(tiny.normed((5,), 4).state_dict())
    torch.testing.assert_close(plain(INPUTS), logits)
    assert not plain.get_parameter("fc1.weight")[:2].any()
    assert not plain.get_parameter("fc1.bias")[:2].any()


def test_after_the_run_every_client_has_its_own_model_in_its_state_folder(tmp_path: Path) -> None:
    ours = encrypted(plan_of(), tmp_path, 3)
    files, left = {}, []
    answers = reports(ours.clients, ours.fed, ours.aggregate)
    for node in ours.clients:
        path = tmp_path / str(node) / "state" / "model.safetensors"
        assert path.stat().st_mode & 0o777 == 0o600
        files[node] = checkpoint.load(path)
        kept = sum(int(np.count_nonzero(array)) for array in files[node].tensors.values())
        left.append(kept)
        assert files[node].metadata["sparsity"] == f"{1 - kept / 64:.6f}"
        assert (files[node].metadata["input_shape"], files[node].metadata["classes"]) == ("[5]", "4")
        assert set(files[node].tensors) == set(tiny.build((5,), 4).state_dict())
    assert len({stored.tensors["fc1.weight"].tobytes() for stored in files.values()}) == 4
    assert {figures_of(answer).kept for answer in answers.values()} == {sum(left)}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold_estimator": "straight"}, "no threshold-estimator 'straight'; known are identity, clipped"),
        ({"powerprop": 1.25}, "spafl has no option powerprop; its options are threshold-penalty, threshold-estimator"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        sparsifier(plan_of(**changes))
