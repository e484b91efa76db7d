"""``edge_client.sparsify.powerprop``: the parametrisation, its gradient, and that any model and method can wear it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.learning.network import build_network, insert
from edge_client.sparsify import sparsifier
from edge_client.sparsify.powerprop import Powerprop, reparametrise
from protocol.layout import unflatten
from tests.edge_client import tiny
from tests.edge_client.federation import RUN, tiny_plan
from tests.edge_client.sparsify.side_by_side import encrypted

BETAS = (1.0, 1.25, 2.0)


def nested() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Flatten(), nn.Linear(18, 3)))


@pytest.mark.parametrize("beta", BETAS)
def test_the_weight_is_a_signed_power_and_its_inverse_gives_theta_back(beta: float) -> None:
    theta = torch.tensor([-2.0, -0.5, 0.0, 0.25, 1.0])
    weight = Powerprop(beta)(theta)
    torch.testing.assert_close(weight, torch.sign(theta) * theta.abs() ** beta)
    torch.testing.assert_close(Powerprop(beta).right_inverse(weight), theta)


@pytest.mark.parametrize("beta", BETAS)
def test_the_gradient_is_that_of_the_formula(beta: float) -> None:
    theta = torch.tensor([-2.0, -0.5, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Powerprop(beta), theta)


@pytest.mark.parametrize(("beta", "gradient"), [(1.0, 1.0), (1.25, 0.0), (2.0, 0.0)])
def test_a_zero_has_no_gradient_unless_beta_is_one(beta: float, gradient: float) -> None:
    theta = torch.zeros(3, requires_grad=True)
    Powerprop(beta)(theta).sum().backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [gradient] * 3


def test_every_linear_and_convolutional_weight_wears_it_and_begins_as_it_was() -> None:
    plain, worn = nested(), nested()
    reparametrise(worn, 1.25)
    names = {name for name, _ in worn.named_parameters() if "parametrizations" in name}
    assert names == {"0.parametrizations.weight.original", "2.1.parametrizations.weight.original"}
    inputs = torch.randn(4, 1, 5, 5)
    torch.testing.assert_close(worn(inputs), plain(inputs))


@pytest.mark.parametrize("method", ["fedavg", "fedsparsify-global", "fedsparsify-local"])
def test_it_can_be_worn_under_another_method_and_shed_at_the_end(method: str, tmp_path: Path) -> None:
    plan = tiny_plan(method=method, powerprop=1.25, rounds=3)
    ours = encrypted(plan, tmp_path, 3)
    kept = 64 if method == "fedavg" else 16
    assert int(ours.states[-1].mask.sum()) == kept
    network, theta = build_network(plan, (5,), 4, RUN), ours.states[-1].vector
    insert(network, theta)
    inputs = torch.randn(8, 5)
    logits = network.model.eval()(inputs)
    shed = network.method.shed(network.model)
    assert set(shed.state_dict()) == set(tiny.build((5,), 4).state_dict())
    torch.testing.assert_close(shed(inputs), logits)
    weight = shed.get_parameter("fc1.weight").detach().numpy()
    cuts = unflatten(theta, network.layout)
    np.testing.assert_array_equal(weight == 0, cuts["fc1.parametrizations.weight.original"] == 0)


def test_without_it_the_model_is_trained_as_it_is() -> None:
    model = nested()
    assert sparsifier(tiny_plan()).wear(model) is model
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
