"""The exported files run, with equal outputs, in three runtimes that hold no code of ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from export.exporter import export, export_int8
from export.parity import infer, open_session
from export.scaling import Scaling

SHAPE = (1, 12, 12)
RAW = np.random.default_rng(0).integers(0, 256, (32, *SHAPE)).astype(np.float32)

NODE = shutil.which("node")
SCRIPT = """
const ort = require('onnxruntime-node'), fs = require('fs');
const [file, inputs, shape] = process.argv.slice(1);
const bytes = fs.readFileSync(inputs);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
ort.InferenceSession.create(file, {logSeverityLevel: 4}).then(async session => {
  const feeds = {input: new ort.Tensor('float32', values, JSON.parse(shape))};
  const {logits} = await session.run(feeds);
  console.log(JSON.stringify({dims: logits.dims, data: Array.from(logits.data)}));
});
"""


def _node(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Node, with the packages of the folder ``PRUNESEAL_NODE_MODULES`` if it is set."""
    environment = {**os.environ, "NODE_PATH": os.environ.get("PRUNESEAL_NODE_MODULES", "")}
    assert NODE is not None
    return subprocess.run([NODE, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)


def _missing() -> str:
    """What is missing to run onnxruntime-node, or an empty text."""
    if NODE is None:
        return "Node is not installed"
    found = _node("-e", "require.resolve('onnxruntime-node')").returncode == 0
    return "" if found else "npm install onnxruntime-node, and name its node_modules in PRUNESEAL_NODE_MODULES"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 64),
            nn.Linear(64, 10),
        ),
    )
    for name, density in (("4.weight", 0.05), ("8.weight", 0.2), ("9.weight", 0.05)):
        weight = model.get_parameter(name)
        weight.data.mul_(torch.rand_like(weight) < density)
    model.get_parameter("0.weight").data[3] = 0
    made = export(model.eval(), SHAPE, {}, RAW, Scaling(255.0))
    return {"model.onnx": made.model, "model.int8.onnx": export_int8(made, RAW)}


def close(actual: np.ndarray, data: bytes, name: str) -> None:
    """Floats agree to float rounding; int8 may differ where a rounding falls the other way, by a step or two."""
    expected = infer(open_session(data), RAW)
    scale = float(np.abs(expected).max())
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=(1e-5 if name == "model.onnx" else 0.02) * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_the_reference_evaluator_computes_the_same(files: dict[str, bytes], name: str) -> None:
    (actual,) = ReferenceEvaluator(onnx.load_from_string(files[name])).run(None, {"input": RAW})
    close(np.asarray(actual), files[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_onnxruntime_for_node_computes_the_same(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    if reason := _missing():
        pytest.skip(reason)
    (tmp_path / name).write_bytes(files[name])
    (tmp_path / "inputs").write_bytes(RAW.tobytes())
    done = _node("-e", SCRIPT, str(tmp_path / name), str(tmp_path / "inputs"), json.dumps(RAW.shape))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    close(np.array(result["data"], np.float32).reshape(result["dims"]), files[name], name)
