"""How long ONNX files take, side by side.

Files that are compared take turns in one process: in each of several blocks every file runs once unmeasured and then
for an equal share of time, so that whatever else the machine does meets them all. Report the ratio of two figures of
one call, never figures of two calls.

On one thread the ratio is that of the CPU time: what a call costs, and on an idle core its latency; other load on the
machine hardly moves it, while it stretches the wall clock of long calls more than that of short ones. On more threads
it is that of the wall clock.

ONNX Runtime gets a stated number of threads, and an idle session does not spin on the core that the next one needs.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from export.graph import Graph, parse
from export.parity import RUNTIME_ERRORS
from protocol.errors import ExportError

_BLOCKS: Final = (7, 40)
"""At least and at most: short turns keep a disturbance from meeting one file alone."""

_MOST_ELEMENTS: Final = 2**29
"""Of one tensor: 2 GiB in float32."""

_MOST_RUNS: Final = 400
"""Of one file in one block: enough for a median of the fastest."""


@dataclass(frozen=True)
class Latency:
    """What one batch takes.

    Attributes:
        threads: How many ran it.
        median: Seconds by the wall clock.
        p10: What a tenth of the runs stay below.
        p90: What a tenth of the runs stay above.
        cpu: Median CPU seconds, of all threads together.
    """

    threads: int
    median: float
    p10: float
    p90: float
    cpu: float

    def speed(self, other: "Latency") -> float:
        """How many times as fast this is as ``other``, of the same call."""
        return other.cpu / self.cpu if self.threads == 1 else other.median / self.median


def compare(
    files: Mapping[str, bytes], inputs: NDArray[np.float32], threads: int = 1, seconds: float = 1.0
) -> dict[str, Latency]:
    """Time one batch through every file.

    Args:
        files: The files' contents by name, one at least; each has one input, that takes ``inputs``, and any outputs.
        inputs: f32[batch, *input_shape].
        threads: Of ONNX Runtime within one operator.
        seconds: How long to measure altogether; slow files take longer, since each runs in every block.

    Returns:
        The latencies, by the same names.

    Raises:
        ExportError: There is no file, or ONNX Runtime cannot load one or run it on the inputs.
    """
    if not files or threads < 1:
        raise ExportError(f"{len(files)} files on {threads} threads; give one of each at least")
    sessions = {name: _session(name, data, threads) for name, data in files.items()}
    feeds = {name: {session.get_inputs()[0].name: inputs} for name, session in sessions.items()}
    once = {}
    for name, session in sessions.items():
        _run(name, session, feeds[name])  # the first run allocates
        once[name], _ = _run(name, session, feeds[name])
    blocks = int(np.clip(seconds / (2 * sum(once.values())), *_BLOCKS))
    runs = {name: int(np.clip(seconds / (blocks * len(files) * t), 1, _MOST_RUNS)) for name, t in once.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for _ in range(blocks):
        for name, session in sessions.items():
            _run(name, session, feeds[name])
            times[name] += [_run(name, session, feeds[name]) for _ in range(runs[name])]
    return {name: _latency(threads, samples) for name, samples in times.items()}


def check_runnable(onnx_bytes: bytes, batch: int) -> tuple[int, ...]:
    """Refuse a file of unknown origin that would not end, or ask for absurd memory, when it runs.

    Args:
        onnx_bytes: The file's content.
        batch: How many samples it is to take at once.

    Returns:
        The shape of one sample.

    Raises:
        ExportError: It is not valid, has loops or branches, a tensor of 2 GiB or more, or other than one float32 input
            of known shape with that batch.
    """
    model = parse(onnx_bytes)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    if any(attribute.type in kinds for node in nodes for attribute in node.attribute):
        raise ExportError("the file has loops or branches, which might never end; only straight graphs are timed")
    graph = Graph.read(model)
    for name, shape in graph.shapes.items():
        if prod(size if isinstance(size, int) else batch for size in shape) >= _MOST_ELEMENTS:
            raise ExportError(f"the tensor {name!r} of shape {list(shape)} would not fit in memory; the file is absurd")
    inputs = [value for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer}]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ExportError(f"the file has {len(inputs)} inputs; only files with one, of float32, are timed")
    first, *sample = graph.shapes.get(inputs[0].name, (None, None))
    sizes = tuple(size for size in sample if isinstance(size, int) and size > 0)
    if first == batch or not isinstance(first, int):
        if len(sizes) == len(sample):
            return sizes
        raise ExportError(f"the shape of one sample, {sample}, is not known; only the batch may be free")
    raise ExportError(f"the file takes batches of {first} only, not {batch}; export it with a free batch")


def _latency(threads: int, samples: list[tuple[float, float]]) -> Latency:
    wall, cpu = np.array(samples).T
    p10, median, p90 = np.percentile(wall, [10, 50, 90])
    return Latency(threads, float(median), float(p10), float(p90), float(np.median(cpu)))


def _session(name: str, data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot load {name}: {error}") from error
    if len(session.get_inputs()) != 1:
        raise ExportError(f"{name} has {len(session.get_inputs())} inputs; only files with one can be timed")
    return session


def _run(name: str, session: ort.InferenceSession, feed: Mapping[str, Any]) -> tuple[float, float]:
    """Run once; seconds by the wall clock and of the CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    try:
        session.run(None, feed)
    except RUNTIME_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot run {name}: {error}") from error
    return time.perf_counter() - start, time.process_time() - cpu
