"""A whole run on this machine: provision, train, prune, aggregate encrypted, open, export, check, report."""

import json
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final

from flwr.app import Context, RecordDict
from rich.console import Console

from aggregator.app import server_app
from aggregator.journal import Journal, Record
from aggregator.settings import Settings
from edge_client import data as datasets
from edge_client.client import build_network
from edge_client.keys import ROSTER_FILE
from edge_client.partition import partition
from fleet.grid import LocalGrid
from fleet.progress import Progress
from fleet.provision import AGGREGATOR, provision
from fleet.result import finish
from fleet.verify import Verifier
from protocol.cohort import Cohort
from protocol.errors import ConfigError
from protocol.files import replace_file
from protocol.plan import Plan, plan_from_config

OPTIONS_FILE: Final = "options.json"


@dataclass(frozen=True)
class Options:
    """What a local run is given besides its plan.

    Attributes:
        clients: How many clients the data is divided among.
        drop: The probability that a client vanishes between the two messages.
        verify: Whether every sum is also computed in the clear and compared.
        workers: Client processes; 0 for one a processor.
    """

    clients: int
    drop: float
    verify: bool
    workers: int

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ConfigError(f"clients must be 1 or more, not {self.clients}")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop must be a probability in [0, 1), not {self.drop}")
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 or more, not {self.workers}")


def largest_cohort(clients: int, fraction: float) -> int:
    """The cohort that this part of the clients makes."""
    return ceil(fraction * clients)


def start(out: Path, plan: Plan, options: Options) -> None:
    """Prepare the folder of a new run: options, kits. Nothing is written unless every client could begin.

    Raises:
        ConfigError: The folder already holds a run, or the plan and the options cannot work.
        DataError: The data cannot be read or divided like this.
    """
    if (out / OPTIONS_FILE).exists():
        raise ConfigError(f"{out} already holds a run: go on with --resume, or choose another --out")
    data = datasets.load(plan.data)
    partition(plan.partition, data.train_y, data.groups, options.clients, plan.seed)
    build_network(plan, data.input_shape, data.classes)
    out.mkdir(parents=True, exist_ok=True)
    provision(out / "kits", options.clients, plan)
    stored = {"plan": plan.to_config(), "options": asdict(options)}
    replace_file(out / OPTIONS_FILE, json.dumps(stored, indent=1).encode())


def stored_run(out: Path) -> tuple[Plan, Options]:
    """The plan and options of a run that was started in this folder.

    Raises:
        ConfigError: There is none.
    """
    try:
        stored = json.loads((out / OPTIONS_FILE).read_text())
        return plan_from_config(stored["plan"]), Options(**stored["options"])
    except FileNotFoundError:
        raise ConfigError(f"{out} holds no run that could be resumed; start one without --resume") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out / OPTIONS_FILE} is damaged: {error}") from error


def go(out: Path, console: Console) -> dict[str, Any]:
    """Run, or go on with, what :func:`start` has prepared; the summary, which is also written.

    Raises:
        PruneSealError: What the run met; it can be resumed.
    """
    plan, options = stored_run(out)
    kits = out / "kits"
    data = datasets.load(plan.data)
    network = build_network(plan, data.input_shape, data.classes)
    for note in network.method.notes():
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    verifier = Verifier(out, kits, plan, network.layout) if options.verify else None
    settings = Settings(kits / AGGREGATOR / ROSTER_FILE, out)
    journal = Journal(out, plan)
    environment = {"PRUNESEAL_KITS": str(kits.resolve())}
    with (
        LocalGrid(
            options.clients,
            plan.to_config(),
            environment,
            workers=options.workers or None,
            drop=options.drop,
            seed=plan.seed,
        ) as grid,
        Progress(plan.rounds, console, resumed_at=max(0, journal.last().round - 1)) as progress,
    ):
        context = Context(1, 1, {}, RecordDict(), dict(plan.to_config()))
        server_app(lambda: settings, _Desk(progress, verifier))(grid, context)
    return finish(out, plan, options.clients, network, data, verifier.summary() if verifier else None)


class _Desk:
    """Shows a run to its operator, and lets the verifier see every sum."""

    def __init__(self, progress: Progress, verifier: Verifier | None) -> None:
        self._progress, self._verifier = progress, verifier

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        self._progress.phase(round_, name, done, total)

    def summed(self, round_: int, attempt: int, cohort: Cohort, aggregate: bytes) -> None:
        if self._verifier is not None:
            self._verifier.check(round_, attempt, cohort, aggregate)

    def round_done(self, record: Record) -> None:
        self._progress.round_done(record)

    def message(self, text: str) -> None:
        self._progress.message(text)
