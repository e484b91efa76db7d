"""Hostile bytes against everything that reads bytes: ``python -m benchmarks.fuzz --seconds 600``.

Frames and files that are genuine, or known to be refused, are mutated and handed to the reader that they are for. A
reader may accept what it gets, or refuse it with an error of ours; any other exception, more memory than 20 times the
bytes (and a constant), a crash or a reader that does not come back is a *finding*. It is printed with the reader, the
seed and the bytes in hex, and the exit code is 1.

What mutation a reader gets as its i-th is a function of the seed, the reader's name and i: a finding can be repeated
with ``--seed`` and ``--reader``, whatever the machine's speed. The readers are tried in turn, each for an equal time,
in a child process: one that crashes is named too.

NumPy and Python tell tracemalloc what they take; the C++ of ONNX and protobuf does not, and is held by a limit of the
child's address space alone.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.fuzz_mutations import mutated
from benchmarks.fuzz_reader import Reader
from benchmarks.fuzz_readers import readers
from protocol.errors import PruneSealError

_SLICE_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 120.0
_ADDRESS_SPACE: Final = 4 << 30
_FILES: Final = "/dev/shm"  # noqa: S108  # a folder in memory; what stands in it is made of this program's seed


@dataclass(frozen=True)
class Finding:
    """What a reader must not do, and the bytes at which it does."""

    reader: str
    index: int
    data: bytes
    what: str


def mutation(reader: Reader, seed: int, index: int) -> bytes:
    """The bytes that a reader gets as its ``index``-th."""
    rng = Random(f"{seed} {reader.name} {index}")  # noqa: S311  # to be repeated, not to be secret
    data = mutated(reader.seeds, rng)
    return reader.mend(data) if reader.mend is not None and rng.random() < 0.5 else data


def attempt(reader: Reader, seed: int, index: int) -> Finding | None:
    """Give a reader one mutation; tracemalloc must have been started."""
    data = mutation(reader, seed, index)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    what = ""
    try:
        reader.read(data)
    except PruneSealError as error:
        if not str(error):
            what = "it refuses without a word"
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
    taken = tracemalloc.get_traced_memory()[1] - before
    if not what and taken > reader.times * len(data) + reader.slack:
        what = f"it takes {taken} bytes of memory for {len(data)}"
    return Finding(reader.name, index, data, what) if what else None


def search(readers: Sequence[Reader], seed: int, seconds: float, told: Any) -> Iterator[Finding]:
    """Try the readers in turn until the time is up.

    Args:
        readers: The readers.
        seed: Of the mutations.
        seconds: How long.
        told: How often each reader was tried, and at the end which is tried now: a shared array.
    """
    end = time.monotonic() + seconds
    tracemalloc.start()
    try:
        while time.monotonic() < end:
            for place, reader in enumerate(readers):
                told[-1], stop = place, min(end, time.monotonic() + _SLICE_SECONDS)
                while True:
                    found = attempt(reader, seed, told[place])
                    told[place] += 1
                    if found is not None:
                        yield found
                        return
                    if time.monotonic() > stop:
                        break
    finally:
        tracemalloc.stop()


def run(
    readers: Sequence[Reader], seed: int, seconds: float, address_space: int
) -> tuple[Counter[str], Finding | None]:
    """Search in a child process; how often each reader was tried, and what was found.

    Args:
        readers: The readers.
        seed: Of the mutations.
        seconds: How long.
        address_space: Bytes that the child may map in addition.
    """
    context = multiprocessing.get_context("fork")
    told = context.Array("q", len(readers) + 1, lock=False)
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + address_space,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        logging.disable()  # a damaged ledger is told of each time
        sender.send(next(search(readers, seed, seconds, told), None))

    child = context.Process(target=work)
    child.start()
    sender.close()  # so that the pipe ends with the child
    before, since = list(told), time.monotonic()
    while not receiver.poll(1.0):
        if (now := list(told)) != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            child.kill()
    try:
        found = receiver.recv()
        child.join()
    except EOFError:
        child.join()
        reader, index = readers[told[-1]], told[told[-1]]
        found = Finding(reader.name, index, mutation(reader, seed, index), f"the process ends with {child.exitcode}")
    counts = Counter({reader.name: told[place] for place, reader in enumerate(readers)})
    return counts, found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description="Mutated frames and files against all readers.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--reader", action="append", help="this reader alone; may be given again")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=_FILES if Path(_FILES).is_dir() else None) as folder:
        known = [one for one in readers(Path(folder)) if not options.reader or one.name in options.reader]
        counts, found = run(known, options.seed, options.seconds, _ADDRESS_SPACE)
    for name, count in counts.items():
        print(f"{name:<24}{count:>10}")
    print(f"{'all':<24}{counts.total():>10}")
    if found is None:
        return 0
    print(f"\n{found.reader}, seed {options.seed}, mutation {found.index}: {found.what}\n{found.data.hex()}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
