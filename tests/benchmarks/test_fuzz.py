"""``benchmarks.fuzz``: what it finds, that it can be repeated, and a slice of it over every reader."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import attempt, main, mutation, run
from benchmarks.fuzz_reader import Reader
from benchmarks.fuzz_readers import readers
from protocol.errors import MalformedMessage

pytestmark = pytest.mark.slow

SEED = 20
SLICE, SLOW = 50, {"model tried": 2}
"""How often each reader is tried; one starts a process each time."""
SOME_REFUSED = {"contribution", "describe", "roster", "roster serial"}
"""Readers with seeds that are refused."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("fuzz"))}


def test_every_reader_takes_what_it_is_for(known: dict[str, Reader]) -> None:
    for name in known.keys() - SOME_REFUSED:
        for data in known[name].seeds:
            known[name].read(data)


@pytest.mark.usefixtures("traced")
def test_no_reader_fails_or_takes_more_memory_than_it_may(known: dict[str, Reader]) -> None:
    every = [attempt(reader, SEED, i) for name, reader in known.items() for i in range(SLOW.get(name, SLICE))]
    assert [found for found in every if found is not None] == []


def test_mutations_follow_from_seed_reader_and_number(known: dict[str, Reader]) -> None:
    reader = known["aggregate"]
    first = [mutation(reader, 1, index) for index in range(20)]
    assert first == [mutation(reader, 1, index) for index in range(20)]
    assert len({*first, *(mutation(reader, 2, index) for index in range(20))}) > 30


def hoards(data: bytes) -> object:
    return bytes(20 * len(data) + (1 << 19))


def raises(error: Exception) -> Callable[[bytes], object]:
    def read(_: bytes) -> object:
        raise error

    return read


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("read", "what"),
    [
        (hoards, "bytes of memory for"),
        (raises(KeyError("x")), "KeyError"),
        (raises(MalformedMessage("")), "without a word"),
    ],
)
def test_memory_a_foreign_error_and_one_without_words_are_findings(read: Callable[[bytes], object], what: str) -> None:
    reader = Reader("bad", [b"seed"], read)
    found = attempt(reader, 1, 0)
    assert found is not None
    assert what in found.what
    assert (found.reader, found.index, found.data) == ("bad", 0, mutation(reader, 1, 0))


@pytest.mark.usefixtures("traced")
def test_an_error_of_ours_is_none() -> None:
    assert attempt(Reader("good", [b"seed"], raises(MalformedMessage("no"))), 1, 0) is None


def test_readers_are_tried_in_turn_until_the_time_is_up() -> None:
    counts, found = run([Reader(name, [b"seed"], len) for name in ("a", "b")], 1, 2.5, 1 << 30)
    assert found is None
    assert min(counts["a"], counts["b"]) > 10


def test_a_reader_that_ends_the_process_is_named_with_its_bytes() -> None:
    fatal = Reader("fatal", [b"seed"], lambda _: os._exit(9))
    counts, found = run([Reader("fine", [b"seed"], len), fatal], 1, 60, 1 << 30)
    assert found is not None
    assert (found.reader, found.index, found.data) == ("fatal", 0, mutation(fatal, 1, 0))
    assert "ends with 9" in found.what
    assert counts["fine"] > 0


def test_a_finding_is_printed_in_hex_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Reader("bad", [b"seed"], raises(KeyError("x")))

    def two(_: Path) -> list[Reader]:
        return [bad, Reader("fine", [b"seed"], len)]

    monkeypatch.setattr(fuzz, "readers", two)
    assert main(["--seconds", "60", "--seed", "7"]) == 1
    told = capsys.readouterr().out
    assert "bad, seed 7, mutation 0: KeyError: 'x'" in told
    assert mutation(bad, 7, 0).hex() in told
    assert main(["--seconds", "1", "--reader", "fine"]) == 0
    assert "bad" not in capsys.readouterr().out
