"""``export.encode``: pruned networks of over a million parameters shrink and run as the dense ones do."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edge_client.learning import models
from export.convert import convert
from export.encode import encode
from tests.export.coding import operators, same_bits, session


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """The dense files of the networks over a million parameters."""
    torch.manual_seed(5)
    return {
        name: convert(models.build(name, (3, 32, 32), 10), (3, 32, 32), {})
        for name in ("cifar-cnn", "vgg9", "resnet18")
    }


def pruned(data: bytes, sparsities: Sequence[float], alike: bool) -> Iterator[bytes]:
    """The file with new weights and one magnitude threshold for all; ``alike`` gives all layers the same density."""
    model = onnx.load_model_from_string(data)
    rng = np.random.default_rng(6)
    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    weights = [rng.standard_normal(tuple(kernel.dims), np.float32) for kernel in kernels]
    if not alike:
        weights = [weight * np.float32(np.prod(weight.shape[1:]) ** -0.25) for weight in weights]
    magnitudes = np.sort(np.concatenate([np.abs(weight).ravel() for weight in weights]))
    for sparsity in sparsities:
        threshold = magnitudes[int(sparsity * len(magnitudes))]
        for kernel, weight in zip(kernels, weights, strict=True):
            kernel.CopyFrom(numpy_helper.from_array(weight * (np.abs(weight) >= threshold), kernel.name))
        yield bytes(model.SerializeToString())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "alike"), [("cifar-cnn", True), ("vgg9", True), ("vgg9", False), ("resnet18", True)])
def test_a_pruned_network_of_a_million_parameters_shrinks_by_an_order_of_magnitude(
    large: dict[str, bytes], name: str, alike: bool
) -> None:
    ratios = (7.8, 14.0, 55.0)
    for dense, ratio in zip(pruned(large[name], (0.9, 0.95, 0.99), alike), ratios, strict=True):
        assert len(dense) / len(encode(dense).model) >= ratio


@pytest.mark.slow
def test_a_pruned_resnet_runs_the_graph_and_the_bits_of_the_dense_one(large: dict[str, bytes], tmp_path: Path) -> None:
    (dense,) = pruned(large["resnet18"], [0.95], alike=False)
    coded = encode(dense).model
    x = np.random.default_rng(9).standard_normal((1, 3, 32, 32)).astype(np.float32)
    assert operators(coded, tmp_path) == operators(dense, tmp_path)
    assert same_bits(session(dense).run(None, {"input": x})[0], session(coded).run(None, {"input": x})[0])
