"""What the tests of the vectors have in common: reading the files, and what they hold in hex."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from protocol.bits import Words
from protocol.figures import Figures
from protocol.grid import Grid
from protocol.parameters import Parameters
from protocol.roster import Roster, load_roster
from tests.vectors import regenerate

FOLDER = Path(regenerate.__file__).parent
Case = dict[str, Any]


def read(name: str) -> Any:
    """The content of a file of vectors."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def roster() -> Roster:
    """The roster against which all signed vectors verify."""
    return load_roster(FOLDER / "roster.json")


def words(numbers: list[int]) -> Words:
    """u64[...] of numbers."""
    return np.array(numbers, np.uint64)


def blake2b(data: bytes) -> str:
    """What names data that is too long for a vector."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def fields(message: object) -> Case:
    """The fields of a message that JSON can hold, bytes in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else asdict(value) if isinstance(value, Figures) else value
        for name, value in vars(message).items()
        if isinstance(value, bytes | int | Figures)
    }


def parameters(case: Case) -> Parameters:
    """The parameters of encryption that a case was made under."""
    return Parameters(Grid(case["bits"], case["clients_at_most"]))
