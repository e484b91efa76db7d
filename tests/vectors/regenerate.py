"""Write the golden vectors, or with ``--check`` say which of them differ from what the code makes and exit with 1.

Run from the root of the checkout: ``python -m tests.vectors.regenerate [--check]``. Randomness is readable: seeds and
nonces count up, keys are made of a node's number. Only ``sum_0.json`` cannot be made again, since encryption is random:
it was recorded once, is written only where it is missing, and must decrypt for ever.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests import factories
from tests.vectors.bad import bad_vectors
from tests.vectors.golden import ARITHMETIC
from tests.vectors.golden_keys import KEYS
from tests.vectors.golden_messages import MESSAGES
from tests.vectors.recorded import record_sum
from tests.vectors.scene import KITS

FOLDER: Final = Path(__file__).parent
GOLDEN: Final = ARITHMETIC | KEYS | MESSAGES
RECORDED: Final = "sum_0"
ROSTER, OPERATOR_PUBLIC = "roster.json", "operator.pub"


def texts() -> dict[str, str]:
    """The text of every file but the recorded one, by its name."""
    made: dict[str, Any] = {name: vectors() for name, vectors in GOLDEN.items()}
    files = {f"{name}.json": _text(vector) for name, vector in (made | bad_vectors()).items()}
    return files | {ROSTER: factories.signed_roster(KITS[1].roster), OPERATOR_PUBLIC: factories.OPERATOR_PUBLIC}


def _text(vector: object) -> str:
    """JSON with every list of numbers on one line."""
    text = json.dumps(vector, indent=1)
    return re.sub(r"\[\s+([^][{}\"]+?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text) + "\n"


def differences(expected: Mapping[str, str]) -> list[str]:
    """What is wrong with the files in the folder, one line each."""
    present = {path.name: path.read_text() for pattern in ("*.json", "*.pub") for path in FOLDER.glob(pattern)}
    recorded = {f"{RECORDED}.json"}
    return (
        [f"{name} is missing" for name in sorted((set(expected) | recorded) - set(present))]
        + [f"{name} is no vector of this program" for name in sorted(set(present) - set(expected) - recorded)]
        + [f"{name} differs" for name in sorted(expected) if present.get(name, expected[name]) != expected[name]]
    )


def main(arguments: Sequence[str]) -> int:
    """Write or check; the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    expected = texts()
    if parser.parse_args(arguments).check:
        wrong = differences(expected)
        sys.stderr.writelines(f"{line}\n" for line in wrong)
        return 1 if wrong else 0
    for path in FOLDER.glob("*.json"):
        if path.name not in {*expected, f"{RECORDED}.json"}:
            path.unlink()
    for name, text in expected.items():
        (FOLDER / name).write_text(text)
    if not (FOLDER / f"{RECORDED}.json").exists():
        (FOLDER / f"{RECORDED}.json").write_text(_text(record_sum()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
