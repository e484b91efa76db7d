"""``export.latency``: files take turns, and a file that must not be run is refused before it is."""

import time
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from torch import nn

import export.latency as module
from export.convert import convert
from export.latency import Latency, check_runnable, compare
from protocol.errors import ExportError

X = np.ones((2, 6), np.float32)


def linear(width: int = 8) -> bytes:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)), (6,), {})


def graph(*nodes: onnx.NodeProto, shape: tuple[Any, ...] = ("batch", 6), **constants: np.ndarray) -> bytes:
    """A file with the input ``x`` and the output ``y``."""
    values = [make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [make_tensor_value_info("y", TensorProto.FLOAT, ("n", "m"))]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = make_model(
        make_graph(nodes, "g", values, outputs, initializers), opset_imports=[make_opsetid("", 20)], ir_version=10
    )
    return bytes(made.SerializeToString())


ABSURD = {
    "would not fit in memory": graph(make_node("Relu", ["x"], ["y"]), shape=("batch", 1 << 40)),
    "would not fit": graph(make_node("Expand", ["x", "s"], ["y"]), shape=("batch", 1), s=np.array([1, 1 << 40])),
    "takes batches of 8 only, not 1": graph(make_node("Relu", ["x"], ["y"]), shape=(8, 6)),
    "only the batch may be free": graph(make_node("Relu", ["x"], ["y"]), shape=("batch", "width")),
    "not a valid ONNX file": b"garbage",
}


@pytest.mark.slow
def test_every_file_is_timed_in_order_of_its_percentiles() -> None:
    found = compare({"small": linear(), "large": linear(4000)}, X, seconds=0.05)
    assert list(found) == ["small", "large"]
    assert all(0 < t.p10 <= t.median <= t.p90 for t in found.values())
    assert found["small"].cpu < found["large"].cpu
    assert found["small"].speed(found["large"]) == found["large"].cpu / found["small"].cpu


def test_speed_is_that_of_the_cpu_on_one_thread_and_of_the_clock_on_more() -> None:
    def latency(threads: int, median: float, cpu: float) -> Latency:
        return Latency(threads, median, median, median, cpu)

    assert latency(1, median=9.0, cpu=1.0).speed(latency(1, median=9.0, cpu=4.0)) == 4
    assert latency(2, median=1.0, cpu=9.0).speed(latency(2, median=3.0, cpu=9.0)) == 3


@pytest.mark.slow
def test_files_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(name: str, session: object, feed: object) -> tuple[float, float]:
        seen.append(name)
        return 0.004, 0.004

    monkeypatch.setattr(module, "_run", run)
    compare({"a": linear(), "b": linear()}, X, seconds=0.16)
    assert seen[4:] == ["a", "a", "a", "b", "b", "b"] * 10, "one run that is not measured, two that are"


@pytest.mark.slow
def test_measuring_ends_soon_after_the_time_that_it_is_given() -> None:
    files = {"a": linear(), "b": linear()}
    start = time.process_time()  # not the wall clock: other programs may run as well
    compare(files, X, seconds=0.2)
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ExportError, match="0 files on 1 threads"):
        compare({}, X)
    with pytest.raises(ExportError, match="cannot load broken"):
        compare({"broken": b"none"}, X)
    with pytest.raises(ExportError, match="cannot run a"):
        compare({"a": linear()}, np.ones((2, 5), np.float32))


@pytest.mark.slow
def test_a_plain_file_may_run_and_its_sample_is_known() -> None:
    assert check_runnable(linear(), 32) == (6,)


def test_a_loop_without_an_end_is_refused() -> None:
    condition, rows = (TensorProto.BOOL, ()), (TensorProto.FLOAT, ("n", 6))
    inner = [make_tensor_value_info("i", TensorProto.INT64, ())]
    inner += [make_tensor_value_info("go", *condition), make_tensor_value_info("v", *rows)]
    outer = [make_tensor_value_info("again", *condition), make_tensor_value_info("w", *rows)]
    body = make_graph([make_node("Identity", ["go"], ["again"]), make_node("Relu", ["v"], ["w"])], "b", inner, outer)
    data = graph(make_node("Loop", ["", "true", "x"], ["y"], body=body), true=np.array(True))
    with pytest.raises(ExportError, match="loops or branches"):
        check_runnable(data, 1)


@pytest.mark.parametrize("told", ABSURD)
def test_absurd_or_unknown_shapes_are_refused(told: str) -> None:
    with pytest.raises(ExportError, match=told):
        check_runnable(ABSURD[told], 1)


def test_files_with_other_inputs_are_refused() -> None:
    model = onnx.load_from_string(graph(make_node("Relu", ["x"], ["y"])))
    model.graph.input.append(make_tensor_value_info("z", TensorProto.FLOAT, (1,)))
    data = model.SerializeToString()
    with pytest.raises(ExportError, match="2 inputs"):
        check_runnable(data, 1)
    with pytest.raises(ExportError, match="2 inputs"):
        compare({"two": data}, X)
