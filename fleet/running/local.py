"""A whole run on this machine: provision, train, prune, aggregate encrypted, open, export, check, report."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Final

from flwr.app import Context, RecordDict
from rich.console import Console

from aggregator.app import server_app
from aggregator.journal import Journal
from aggregator.observer import refusal
from aggregator.records import MaskFigures, Record
from aggregator.settings import AggregatorSettings
from aggregator.summation import MaskedSum
from edge_client.keys import ROSTER_FILE, load_kit
from edge_client.learning import data as datasets
from edge_client.learning.network import build_network
from edge_client.learning.partition import partition
from fleet.provisioning.kits import AGGREGATOR, kit_name, provision
from fleet.results.finish import finish
from fleet.results.opened_run import OpenedRun
from fleet.results.summary import Summary, Verified
from fleet.running.deployed_run import follow
from fleet.running.deployment import Deployment, prepare
from fleet.running.local_grid import LocalGrid
from fleet.running.mask_figures import MaskWatch
from fleet.running.progress import Progress
from fleet.running.verify import Verifier
from protocol.errors import ConfigError, PeerError
from protocol.files import replace_file
from protocol.frame import RUN_BYTES
from protocol.plan import Plan, plan_from_config

OPTIONS_FILE: Final = "options.json"


class Engine(StrEnum):
    """What carries the messages of a run on this machine."""

    LOCAL = "local"
    """A pool of worker processes."""
    FLOWER = "flower"
    """Flower's own services, one process each, with TLS and authenticated nodes."""


@dataclass(frozen=True)
class Options:
    """What a local run is given besides its plan.

    Attributes:
        clients: How many clients the data is divided among.
        drop: The probability that a client that has attended misses one of the two messages that follow.
        verify: Whether every sum is also computed in the clear and compared.
        workers: Client processes; 0 for one per processor.
        engine: What carries the messages.
    """

    clients: int
    drop: float
    verify: bool
    workers: int
    engine: Engine = Engine.LOCAL

    def __post_init__(self) -> None:
        if self.engine == Engine.FLOWER and (self.drop or self.verify or self.workers):
            raise ConfigError("drop, verify and workers are for the local engine; leave them out with --engine flower")
        if self.clients < 1:
            raise ConfigError(f"clients must be 1 or more, not {self.clients}")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop must be a probability in [0, 1), not {self.drop}")
        if self.workers < 0:
            raise ConfigError(f"workers must be 0 or more, not {self.workers}")


def run_name(plan: Plan) -> bytes:
    """The name of a run whose clients are all here, 16 bytes: it follows from the plan, so a run can be repeated.

    A deployed run has a random name. Keys are new in either case.
    """
    return hashlib.blake2b(plan.digest, digest_size=RUN_BYTES, person=b"pruneseal local").digest()


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
        raise ConfigError(f"{out} already holds a run: resume it with --resume, or choose another --out")
    data = datasets.load(plan.data)
    partition(plan.partition, data.train_y, data.groups, options.clients, plan.seed)
    build_network(plan, data.input_shape, data.classes, run_name(plan))
    out.mkdir(parents=True, exist_ok=True)
    provision(out / "kits", options.clients, plan)
    if options.engine == Engine.FLOWER:
        prepare(out, plan, options.clients)
    stored = {"plan": plan.to_config(), "options": asdict(options)}
    replace_file(out / OPTIONS_FILE, json.dumps(stored, indent=1).encode())


def stored_run(out: Path) -> tuple[Plan, Options]:
    """The plan and options of a run that was started in this folder.

    Raises:
        ConfigError: There is none.
    """
    try:
        stored = json.loads((out / OPTIONS_FILE).read_text())
        options = {**stored["options"], "engine": Engine(stored["options"]["engine"])}
        return plan_from_config(stored["plan"]), Options(**options)
    except FileNotFoundError:
        raise ConfigError(f"{out} holds no run that could be resumed; start one without --resume") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out / OPTIONS_FILE} is damaged: {error}") from error


def go(out: Path, console: Console) -> Summary:
    """Run, or go on with, what :func:`start` has prepared; the summary, which is also written.

    Raises:
        PruneSealError: What the run met; it can be resumed.
    """
    plan, options = stored_run(out)
    data = datasets.load(plan.data)
    journal = Journal(out, plan, run_name(plan) if options.engine == Engine.LOCAL else None)
    network = build_network(plan, data.input_shape, data.classes, journal.run)
    for note in network.method.notes():
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    run = OpenedRun(out, load_kit(out / "kits" / kit_name(0)), plan, options.clients, network, data)
    done = max(0, journal.last().round - 1)
    with Progress(plan.rounds, console, resumed_at=done) as progress:
        if options.engine == Engine.FLOWER:
            with Deployment(out, options.clients) as deployment:
                follow(deployment, progress)
            verified = None
        else:
            verified = _run_here(run, options, progress)
    return finish(run, out, verified)


def _run_here(run: OpenedRun, options: Options, progress: Progress) -> Verified | None:
    """Run the rounds in this process, over a pool of client processes; what the verifier found, if there is one."""
    out, plan, kits = run.folder, run.plan, run.folder / "kits"
    verifier = Verifier(out, kits, plan, run.network.layout) if options.verify else None
    settings = AggregatorSettings(kits / AGGREGATOR / ROSTER_FILE, out)
    environment = {"PRUNESEAL_KITS": str(kits.resolve())}
    with LocalGrid(
        options.clients,
        plan.to_config(),
        environment,
        workers=options.workers or None,
        drop=options.drop,
        seed=plan.seed,
    ) as grid:
        context = Context(1, 1, {}, RecordDict(), dict(plan.to_config()))
        observer = _LocalObserver(progress, verifier, MaskWatch(run))
        server_app(lambda: settings, lambda *_: nullcontext(observer))(grid, context)
    return verifier.summary() if verifier else None


class _LocalObserver:
    """Shows a run to its operator, lets the verifier see every sum, and adds what the masks tell."""

    def __init__(self, progress: Progress, verifier: Verifier | None, watch: MaskWatch) -> None:
        self._progress, self._verifier, self._watch = progress, verifier, watch

    def online(self, round_: int, nodes: Mapping[int, str]) -> None:
        """On one machine all nodes are always there."""

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        self._progress.phase(round_, name, done, total)

    def refused(self, round_: int, node: int, error: PeerError) -> None:  # noqa: ARG002  # the error names the node
        self._progress.message(refusal(round_, error))

    def failed(self, round_: int, node: int, reason: str) -> None:
        """The round's own message names the reasons."""

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        if self._verifier is not None:
            self._verifier.check(round_, total, aggregate)
        return self._watch.figures(round_, aggregate)

    def round_done(self, record: Record) -> None:
        self._progress.round_done(dict(record))

    def message(self, text: str) -> None:
        self._progress.message(text)
