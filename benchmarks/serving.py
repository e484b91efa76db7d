"""Micro-batching against serving each request alone: the throughput of `pruneseal serve`, side by side.

Two servers of the same file with the same options but `--max-batch` (32 and 1) take turns under the same load: clients
that each keep one request of one row in flight, in bytes, on a connection of their own. Only one server is loaded at a
time. The ratio is the median over the turns of the ratio within a turn. The processor time that the server spends on a
request is measured as well: other work on the machine hardly touches it.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import uvloop
from torch import nn

from edge_client.learning import models
from export.convert import convert
from export.exporter import export, export_int8
from fleet.results.machine import machine, versions

SHAPE = (3, 32, 32)
TARGET = 2.0
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print, write; 1 if micro-batching misses its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=2000, help="of all clients in one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--wait", type=float, nargs="+", default=[0.0, 1.0], help="milliseconds of --batch-wait")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, data in networks().items():
            file = Path(folder) / f"{name}.onnx"
            file.write_bytes(data)
            for wait in arguments.wait:
                rows += compared(file, wait, arguments)
    table = markdown(rows)
    print(table)
    best = max((row["ratio"] for row in rows if row["clients"] == 16), default=0.0)
    result = {
        "command": " ".join(["python -m benchmarks.serving", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions("onnxruntime", "uvicorn", "starlette", "uvloop", "pruneseal"),
        "target_ratio": TARGET,
        "best_ratio_at_16_clients": best,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table + "\n")
    if best < TARGET:
        print(f"missed: {best:.2f} times is less than {TARGET:g} times")
    return int(best < TARGET)


def networks() -> dict[str, bytes]:
    """The 6-convolution network, dense, and as exported with three quarters of its filters removed: float and int8."""
    torch.manual_seed(0)
    model = models.build("cifar-cnn", SHAPE, 10)
    dense = convert(model, SHAPE, {})
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and len(layer.weight) > 10:
                smallest = layer.weight.flatten(1).norm(dim=1).argsort()[: len(layer.weight) * 3 // 4]
                layer.weight[smallest] = 0
                if layer.bias is not None:
                    layer.bias[smallest] = 0
    inputs = np.random.default_rng(0).random((256, *SHAPE), dtype=np.float32)
    made = export(model, SHAPE, {}, inputs)
    return {"cnn-dense": dense, "cnn-filters-0.75": made.model, "cnn-filters-0.75-int8": export_int8(made, inputs[:64])}


def compared(file: Path, wait: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of clients."""
    options = ("--batch-wait", str(wait))
    with served(file, "--max-batch", "1", *options) as alone, served(file, "--max-batch", "32", *options) as merged:
        rows = []
        for clients in arguments.clients:
            turns: list[dict[str, Load]] = []
            for turn in range(arguments.turns + 1):
                order = (("alone", alone), ("merged", merged))[:: 1 if turn % 2 else -1]
                measured = {name: load(server, file.stem, clients, arguments.requests) for name, server in order}
                turns += [measured] if turn else []  # the first one warms up
            rows.append(
                {
                    "network": file.stem,
                    "batch_wait_ms": wait,
                    "clients": clients,
                    "alone_rps": median(turn["alone"].rps for turn in turns),
                    "merged_rps": median(turn["merged"].rps for turn in turns),
                    "ratio": median(turn["merged"].rps / turn["alone"].rps for turn in turns),
                    "alone_cpu_ms": median(turn["alone"].cpu_ms for turn in turns),
                    "merged_cpu_ms": median(turn["merged"].cpu_ms for turn in turns),
                    "cpu_ratio": median(turn["alone"].cpu_ms / turn["merged"].cpu_ms for turn in turns),
                    "turns": [{name: load._asdict() for name, load in turn.items()} for turn in turns],
                }
            )
            print(f"{file.stem} wait {wait:g} ms, {clients} clients: {rows[-1]['ratio']:.2f}", file=sys.stderr)
    return rows


@contextmanager
def served(file: Path, *options: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a server of the file."""
    program = Path(sys.executable).with_name("pruneseal-serve")
    command = [str(program), str(file), "--port", "0", "--grpc-port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r'"message": "ready".*"port": (\d+)', line):
                yield int(found[1]), process.pid
                break
        else:
            raise RuntimeError("the server does not start")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


class Load(NamedTuple):
    """Requests a second, and the processor time of the server for one of them."""

    rps: float
    cpu_ms: float


def cpu_seconds(process: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(server: tuple[int, int], model: str, clients: int, requests: int) -> Load:
    """What so many clients get answered."""
    port, process = server
    sample = np.random.default_rng(0).random((1, *SHAPE), dtype=np.float32)
    one = {
        "name": "input",
        "datatype": "FP32",
        "shape": list(sample.shape),
        "parameters": {"binary_data_size": sample.nbytes},
    }
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "host: localhost",
        f"inference-header-content-length: {len(head)}",
        f"content-length: {len(head) + sample.nbytes}",
    )
    message = "\r\n".join((*lines, "", "")).encode() + head + sample.tobytes()

    async def client() -> None:
        loop = asyncio.get_running_loop()
        asked = requests // clients
        _, protocol = await loop.create_connection(
            lambda: Client(message, asked, loop.create_future()), "127.0.0.1", port
        )
        await protocol.done

    async def together() -> Load:
        started, cpu, answered = time.perf_counter(), cpu_seconds(process), requests // clients * clients
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - started
        return Load(answered / seconds, 1000 * (cpu_seconds(process) - cpu) / answered)

    return uvloop.run(together())


class Client(asyncio.Protocol):
    """Sends a request, waits for its answer, and sends the next: as little work for this process as can be."""

    def __init__(self, message: bytes, requests: int, done: asyncio.Future[None]) -> None:
        self.message, self.left, self.done, self.answer = message, requests, done, b""

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        """Send the next request once the answer is whole."""
        self.answer += data
        head = self.answer.find(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", self.answer[:head], re.IGNORECASE) if head >= 0 else None
        if length is None or len(self.answer) < head + 4 + int(length[1]):
            return
        if not self.answer.startswith(b"HTTP/1.1 200 "):
            self.done.set_exception(RuntimeError(self.answer.decode(errors="replace")))
            self.transport.close()
            return
        self.answer, self.left = b"", self.left - 1
        if self.left:
            self.transport.write(self.message)
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail where answers are missing."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result as a table."""
    lines = [
        "| network | `--batch-wait` | clients | alone, requests/s | merged, requests/s | ratio "
        "| alone, CPU ms | merged, CPU ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['batch_wait_ms']:g} ms | {row['clients']} | {row['alone_rps']:.0f} | "
        f"{row['merged_rps']:.0f} | {row['ratio']:.2f} | {row['alone_cpu_ms']:.2f} | {row['merged_cpu_ms']:.2f} | "
        f"{row['cpu_ratio']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
