"""What the aggregator keeps on disk: the last aggregate, and a line of metrics for every round.

``rounds/round-000007/`` holds ``aggregate.bin``, the whole state of the run, and ``record.json``, the round's metrics
so far. The folder is written under a temporary name, synced and renamed, so it exists complete or not at all; a killed
aggregator resumes from the newest. ``metrics.jsonl`` gets a round's line once the next message has told how its model
does.
"""

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.errors import CheckpointError, ConfigError
from protocol.files import replace_file, sync_directory
from protocol.plan import Plan

AGGREGATE_FILE: Final = "aggregate.bin"
RECORD_FILE: Final = "record.json"
METRICS_FILE: Final = "metrics.jsonl"
RUN_FILE: Final = "run.json"
_ROUNDS = "rounds"
_KEPT = 2

Record = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A completed round as it was found on disk.

    Attributes:
        round: Its number; 0 where there is none.
        aggregate: Its encoded aggregate; empty where there is none.
        record: Its metrics so far.
    """

    round: int
    aggregate: bytes
    record: Record


class Journal:
    """The folder of one run.

    Args:
        folder: Made if it is absent.
        plan: The plan of the run.

    Raises:
        ConfigError: The folder belongs to a run of another plan, or cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        try:
            (folder / _ROUNDS).mkdir(parents=True, exist_ok=True)
            for torn in (folder / _ROUNDS).glob(".*"):
                shutil.rmtree(torn)  # what a killed run was about to write
            path = folder / RUN_FILE
            if not path.exists():
                run = {"run": secrets.token_hex(16), "plan": plan.digest.hex()}
                replace_file(path, json.dumps(run).encode())
            stored = json.loads(path.read_text())
            name, digest = bytes.fromhex(stored["run"]), str(stored["plan"])
        except OSError as error:
            raise ConfigError(f"the state folder {folder} cannot be written: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} does not name a run ({error}): choose another folder") from error
        if digest != plan.digest.hex():
            raise ConfigError(
                f"{folder} holds a run of another plan ({digest[:16]}; this one is {plan.digest.hex()[:16]}): "
                "choose another folder, or start with the settings of that run"
            )
        self.run = name
        """The run's name, 16 random bytes."""

    def last(self) -> Stored:
        """The newest complete round.

        Raises:
            CheckpointError: Its files are damaged.
        """
        folders = sorted((self._folder / _ROUNDS).glob("round-*"))
        if not folders:
            return Stored(0, b"", {})
        try:
            record = json.loads((folders[-1] / RECORD_FILE).read_text())
            return Stored(int(record["round"]), (folders[-1] / AGGREGATE_FILE).read_bytes(), record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folders[-1]} is damaged ({error}); remove it to go on from the round before"
            ) from error

    def save(self, aggregate: bytes, record: Record) -> None:
        """Write a completed round durably, and forget all but the newest few."""
        rounds = self._folder / _ROUNDS
        temporary = rounds / f".{secrets.token_hex(8)}"
        temporary.mkdir()
        try:
            replace_file(temporary / AGGREGATE_FILE, aggregate)
            replace_file(temporary / RECORD_FILE, json.dumps(record).encode())
            temporary.replace(rounds / f"round-{record['round']:06d}")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_directory(rounds)
        for old in sorted(rounds.glob("round-*"))[:-_KEPT]:
            shutil.rmtree(old)

    def publish(self, record: Record) -> None:
        """Append a round's line to ``metrics.jsonl``; what a killed run left of this round or later goes."""
        path = self._folder / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _round_of(line, record["round"]) < record["round"]]
        if kept == lines:
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        else:
            replace_file(path, "".join(f"{line}\n" for line in [*kept, json.dumps(record)]).encode())


def _round_of(line: str, torn: int) -> int:
    """The round that a line of metrics is of; ``torn`` for the part of a line that a crash has left."""
    try:
        return int(json.loads(line)["round"])
    except ValueError:
        return torn
