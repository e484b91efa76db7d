"""The pair save_personal / load_personal: what a method keeps on its node from round to round.

Law: ``load_personal(folder, run, t, …)`` gives what was saved for the last round before t, also after a crash, after a
repeated attempt, and after an aggregator that has gone back a round: a round's training always begins from what the
rounds before it have left, never from its own outcome.

There is one file per round (mode 0600, in a folder that others cannot enter), written before the round is answered; the
newest few are kept. Another run's files are never read and go with the first round that is saved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from protocol import checkpoint
from protocol.errors import CheckpointError

PERSONAL_FOLDER: Final = "personal"
_KEPT = 3


def load_personal(folder: Path, run: bytes, round_: int, own: Mapping[str, torch.Tensor]) -> None:
    """Put what this node kept before a round into the tensors, in place; where it has none yet, they stay.

    Args:
        folder: The node's state folder.
        run: The run's name.
        round_: The round that begins, from 1.
        own: The personal tensors of the model, by name.

    Raises:
        CheckpointError: A file is damaged, or what this node keeps is all of this round or later.
    """
    if not own:
        return
    files = _files(folder, run)
    earlier = [number for number in files if number < round_]
    if not earlier and len(files) == _KEPT and min(files) > 1:
        raise CheckpointError(
            f"{folder / PERSONAL_FOLDER} holds rounds {min(files)} and later, and round {round_} begins: the "
            "run has gone back further than this node can follow; start a new run"
        )
    if earlier:
        with torch.no_grad():
            for name, array in checkpoint.load(files[max(earlier)]).tensors.items():
                own[name].copy_(torch.from_numpy(array))


def save_personal(folder: Path, run: bytes, round_: int, own: Mapping[str, torch.Tensor]) -> None:
    """Keep the personal tensors after a round's training, durably."""
    if not own:
        return
    where = folder / PERSONAL_FOLDER
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _path(folder, run, round_)
    checkpoint.save(path, checkpoint.Checkpoint({name: tensor.detach().numpy() for name, tensor in own.items()}, {}))
    path.chmod(0o600)
    files = _files(folder, run)
    keep = {files[number] for number in sorted(files)[-_KEPT:]}
    for old in where.iterdir():
        if old not in keep:
            old.unlink()


def _path(folder: Path, run: bytes, round_: int) -> Path:
    return folder / PERSONAL_FOLDER / f"{run.hex()}-{round_:06d}.safetensors"


def _files(folder: Path, run: bytes) -> dict[int, Path]:
    """What is kept of a run, by round."""
    found = (folder / PERSONAL_FOLDER).glob(f"{run.hex()}-*.safetensors")
    return {int(path.stem.rpartition("-")[2]): path for path in found}
