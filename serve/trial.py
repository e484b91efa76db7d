"""The trial of an ONNX file, in a process that may fail without harm.

A file that wants memory without end, never finishes or crashes the runtime must not take the server with it. So a child
process parses the file, refuses external data and ill-formed graphs, opens it in ONNX Runtime and runs batches of one
and two zeros, under limits of memory and time that the kernel enforces. Whatever becomes of the child, crashing and
hanging included, is a ``ModelError`` here; only a file that has passed is opened in the server.
"""

import math
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from protocol.errors import ModelError
from serve.model import Model, check, open_model

_REFUSED: Final = 3
"""The child's exit status for a file that it can say something about."""


@dataclass(frozen=True)
class Limits:
    """What a model file may take before it is refused.

    Attributes:
        file_bytes: The file itself.
        memory_bytes: Address space that loading and running it may add to a process.
        seconds: For loading it and running it twice.
    """

    file_bytes: int = 1 << 30
    memory_bytes: int = 4 << 30
    seconds: float = 60.0


def load(file: Path, threads: int, limits: Limits) -> Model:
    """Read a file, try it apart, and open it.

    Args:
        file: A self-contained ONNX file.
        threads: Threads that one inference uses.
        limits: What the trial may take.

    Raises:
        ModelError: The file cannot be read or served.
    """
    try:
        size = file.stat().st_size
        if size > limits.file_bytes:
            raise ModelError(f"{file} has {size} bytes, more than the {limits.file_bytes} that this server loads")
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    try:
        _attempt(data, limits)
        return open_model(data, threads)
    except ModelError as error:
        raise ModelError(f"{file} cannot be served: {error}") from error


def _attempt(data: bytes, limits: Limits) -> None:
    """Load and run the content of a file in a child process."""
    command = [sys.executable, "-P", "-m", __name__, str(limits.memory_bytes), str(math.ceil(limits.seconds))]
    try:
        child = subprocess.run(  # noqa: S603  # this module, in this interpreter
            command, input=data, capture_output=True, timeout=limits.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"loading and running it takes longer than {limits.seconds:g} s") from None
    if child.returncode == _REFUSED:
        raise ModelError(child.stdout.decode(errors="replace").strip())
    if child.returncode:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
        raise ModelError(
            f"its trial ended with {how}: it is damaged, or takes more than {limits.memory_bytes >> 20} MiB or "
            f"{limits.seconds:g} s"
        )


def main() -> None:
    """Read the file's content from standard input; exit with 0, or with a status and the reason on standard output."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    data = sys.stdin.buffer.read()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_AS, mapped + memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    try:
        check(data)
        _run(open_model(data, threads=1))
    except ModelError as error:
        sys.stdout.write(str(error))
        sys.exit(_REFUSED)
    except MemoryError:
        sys.stdout.write(f"it takes more than {memory >> 20} MiB of memory")
        sys.exit(_REFUSED)


def _run(model: Model) -> None:
    """Compute a few rows of zeros, and see that the outputs have as many rows."""
    for rows in (1, 2):
        zeros = {
            tensor.name: np.zeros([rows, *(abs(side) for side in tensor.shape[1:])], tensor.dtype)
            for tensor in model.inputs.values()
        }
        try:
            outputs = model.run(zeros)
        except RuntimeError as error:
            if any(-1 in tensor.shape[1:] for tensor in model.inputs.values()):
                return  # another axis than the batch is free as well, and 1 may be no size that the model takes
            raise ModelError(f"it cannot compute {rows} rows of zeros: {error}") from error
        for tensor, output in zip(model.outputs, outputs, strict=True):
            if output.shape[:1] != (rows,):
                raise ModelError(
                    f"its output {tensor.name!r} has the shape {list(output.shape)} for {rows} rows, so that rows "
                    "cannot be told apart; export it with a free batch axis on every input and output"
                )


if __name__ == "__main__":
    main()
