"""``edge_client.personal``: what a node keeps, whatever happens between two rounds."""

from pathlib import Path

import pytest
import torch

from edge_client.personal import load_personal, save_personal
from protocol.errors import CheckpointError

RUN, OTHER = bytes(range(16)), bytes(16)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "batches": torch.tensor(int(value))}


def loaded(folder: Path, round_: int, run: bytes = RUN) -> float:
    """The value found before a round; -1 where nothing was kept."""
    own = tensors(-1)
    load_personal(folder, run, round_, own)
    assert len({*own["weight"].ravel().tolist(), float(own["batches"])}) == 1
    return own["weight"][0, 0].item()


def names(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[2] for path in (folder / "personal").iterdir())


def test_a_round_begins_from_what_the_round_before_has_left(tmp_path: Path) -> None:
    assert loaded(tmp_path, 1) == -1
    for round_ in (1, 2, 3):
        save_personal(tmp_path, RUN, round_, tensors(round_))
        assert loaded(tmp_path, round_ + 1) == round_


def test_a_round_that_is_trained_again_does_not_begin_from_its_own_outcome(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 1, tensors(1))
    save_personal(tmp_path, RUN, 2, tensors(2))
    assert loaded(tmp_path, 2) == 1
    assert loaded(tmp_path, 1) == -1


def test_a_node_that_has_missed_rounds_goes_on_from_the_last_that_it_was_in(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 4, tensors(4))
    assert loaded(tmp_path, 9) == 4


def test_the_newest_three_rounds_are_kept(tmp_path: Path) -> None:
    for round_ in range(1, 7):
        save_personal(tmp_path, RUN, round_, tensors(round_))
    assert names(tmp_path) == ["000004.safetensors", "000005.safetensors", "000006.safetensors"]
    with pytest.raises(CheckpointError, match="holds rounds 4 and later, and round 3 begins: the run has gone back"):
        loaded(tmp_path, 3)


def test_another_runs_tensors_are_not_read_and_go(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 5, tensors(5))
    assert loaded(tmp_path, 6, OTHER) == -1
    save_personal(tmp_path, OTHER, 1, tensors(1))
    assert names(tmp_path) == ["000001.safetensors"]


def test_what_a_crash_has_left_half_written_is_not_read_and_goes(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 1, tensors(1))
    (tmp_path / "personal" / f".{RUN.hex()}-000002.safetensors.00.tmp").write_bytes(b"half")
    assert loaded(tmp_path, 3) == 1
    save_personal(tmp_path, RUN, 2, tensors(2))
    assert names(tmp_path) == ["000001.safetensors", "000002.safetensors"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 1, tensors(1))
    (path,) = (tmp_path / "personal").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        loaded(tmp_path, 2)


def test_a_method_that_keeps_nothing_leaves_nothing(tmp_path: Path) -> None:
    save_personal(tmp_path, RUN, 1, {})
    load_personal(tmp_path, RUN, 2, {})
    assert list(tmp_path.iterdir()) == []
