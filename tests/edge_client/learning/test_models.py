"""``edge_client.learning.models``: the sizes of the literature, one initial model per seed, and reasoned refusals."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edge_client.learning.models import build, names
from protocol.errors import ConfigError

DIGIT, GREY, COLOUR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
IMAGE_NETWORKS = ("cifar-cnn", "lenet5", "resnet18", "vgg9")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_the_names_are_sorted_and_all_build() -> None:
    assert names() == ("cifar-cnn", "digits-mlp", "fashion-mlp", "lenet5", "resnet18", "vgg9")


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "count"),
    [
        ("digits-mlp", DIGIT, 10, 17_226),
        ("fashion-mlp", GREY, 10, 118_282),
        ("lenet5", GREY, 10, 61_706),
        ("cifar-cnn", COLOUR, 10, 1_609_930),
        ("vgg9", COLOUR, 10, 3_491_530),
        ("resnet18", COLOUR, 10, 11_173_962),
        ("resnet18", COLOUR, 100, 11_220_132),
    ],
)
def test_a_network_has_exactly_the_published_number_of_parameters(
    name: str, input_shape: tuple[int, ...], classes: int, count: int
) -> None:
    assert parameters(build(name, input_shape, classes)) == count


def test_cifar_cnn_carries_the_papers_384_batch_norm_statistics() -> None:
    buffers = build("cifar-cnn", COLOUR, 10).named_buffers()
    assert sum(buffer.numel() for name, buffer in buffers if "running" in name) == 384


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "input_shape"),
    [(name, shape) for name in names() for shape in (GREY, COLOUR, (2, 13, 20))]
    + [(name, DIGIT) for name in names() if name != "lenet5"]
    + [("lenet5", (1, 12, 12)), ("digits-mlp", (6,)), ("fashion-mlp", (6, 128))],
)
def test_a_network_maps_a_batch_to_logits_and_learns_from_it(name: str, input_shape: tuple[int, ...]) -> None:
    model = build(name, input_shape, 7)
    logits = model(torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", names())
def test_the_same_torch_seed_gives_the_same_initial_model(name: str) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return dict(build(name, COLOUR, 10).state_dict())

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["out.weight"], other["out.weight"])


@pytest.mark.parametrize("name", ["fashion-mlp", "cifar-cnn", "vgg9"])
def test_fedsparsify_networks_start_as_glorot_and_vgg9_as_he_with_zero_biases(name: str) -> None:
    layers = [layer for layer in build(name, COLOUR, 10).modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        outputs, inputs = layer.weight.shape[:2]
        fans = inputs if name == "vgg9" else inputs + outputs
        bound = (6 / (layer.weight[0, 0].numel() * fans)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
        assert layer.bias is not None
        assert not layer.bias.any()


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
@pytest.mark.parametrize("shape", [(64,), (6, 128), (1, 7, 28), (1, 28, 7), (1, 1, 28, 28)])
def test_an_image_network_says_which_shapes_it_takes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"{name} takes images of shape \(channels, height, width\) with sides of"):
        build(name, shape, 10)


def test_lenet5_refuses_digits_that_its_second_convolution_cannot_take() -> None:
    with pytest.raises(ConfigError, match="sides of 12 or more"):
        build("lenet5", DIGIT, 10)


@pytest.mark.parametrize(("shape", "classes"), [((), 10), ((0, 8, 8), 10), ((1, 8, -8), 10), ((1, 8, 8), 1)])
def test_shapes_and_class_counts_that_no_network_takes_are_refused(shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(ConfigError, match="no network takes"):
        build("digits-mlp", shape, classes)


def test_an_import_path_builds_the_users_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_network.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "def linear(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))\n"
        "def nothing(shape, classes): return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("my_network:linear", (2, 3), 5)(torch.zeros(4, 2, 3)).shape == (4, 5)
    with pytest.raises(ConfigError, match=r"returned NoneType; it must return a torch\.nn\.Module"):
        build("my_network:nothing", (2, 3), 5)


@pytest.mark.parametrize("spec", ["", "resnet", "no.such.module:network", "edge_client.app:absent", "not a path:f"])
def test_an_unknown_model_is_refused_with_the_known_names(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"known networks: cifar-cnn, .*, or package\.module:function"):
        build(spec, GREY, 10)
