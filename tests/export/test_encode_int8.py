"""``export.encode``: int8 weights are coded and still run in integer kernels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.helper import make_node

from export.encode import Form, encode
from tests.export.coding import file_of, operators, same_bits, session


def quantised(density: float) -> bytes:
    """Quantise, convolve, requantise, multiply: int8 weights by channel, int32 biases, in QDQ form."""
    rng = np.random.default_rng(7)

    def weight(*shape: int) -> np.ndarray:
        return (rng.integers(-127, 127, shape) * (rng.random(shape) < density)).astype(np.int8)

    constants: dict[str, Any] = {
        "s": np.float32(0.05).reshape(()),
        "z": np.uint8(128).reshape(()),
        "kernel": weight(32, 16, 3, 3),
        "kernel_scale": np.full(32, 0.01, np.float32),
        "kernel_zero": np.zeros(32, np.int8),
        "bias": rng.integers(-500, 500, 32).astype(np.int32),
        "bias_scale": np.full(32, 0.0005, np.float32),
        "bias_zero": np.zeros(32, np.int32),
        "linear": weight(512, 128),
        "linear_scale": np.full(128, 0.01, np.float32),
        "linear_zero": np.zeros(128, np.int8),
    }
    nodes = [
        make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero"], ["k"], axis=0),
        make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b"], axis=0),
        make_node("Conv", ["xd", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        make_node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
        make_node("Flatten", ["cd"], ["f"]),
        make_node("QuantizeLinear", ["f", "s", "z"], ["fq"]),
        make_node("DequantizeLinear", ["fq", "s", "z"], ["fd"]),
        make_node("DequantizeLinear", ["linear", "linear_scale", "linear_zero"], ["l"], axis=1),
        make_node("MatMul", ["fd", "l"], ["m"]),
        make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]),
    ]
    return file_of(nodes, constants, ("batch", 16, 4, 4))


@pytest.mark.parametrize(("density", "form"), [(0.3, Form.BITMAP), (0.05, Form.GAPS8), (0.0, Form.CONSTANT)])
def test_int8_weights_are_coded_and_still_run_in_integer_kernels(density: float, form: Form, tmp_path: Path) -> None:
    dense = quantised(density)
    encoding = encode(dense)
    assert {name for name, size in encoding.tensors.items() if size.form is form} == {"kernel", "linear"}
    assert all(
        encoding.tensors[name].form is Form.DENSE for name in encoding.tensors if name not in {"kernel", "linear"}
    )
    assert operators(encoding.model, tmp_path) == operators(dense, tmp_path)
    assert operators(encoding.model, tmp_path)["QLinearConv"] == 1
    x = np.random.default_rng(8).standard_normal((3, 16, 4, 4)).astype(np.float32)
    assert same_bits(session(dense).run(None, {"x": x})[0], session(encoding.model).run(None, {"x": x})[0])
