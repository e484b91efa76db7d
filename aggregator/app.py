"""The Flower `ServerApp`: reads the plan, the roster and the journal, and runs the rounds."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.journal import Journal
from aggregator.logs import json_logs
from aggregator.observer import Observer
from aggregator.rounds import Run
from aggregator.settings import AggregatorSettings, read_settings
from aggregator.status import StatusWriter
from protocol.plan import Plan, plan_from_config
from protocol.roster import load_roster

Audience = Callable[[AggregatorSettings, Plan, Journal], AbstractContextManager[Observer]]
"""Makes the observer of a run; its context is open while the rounds go on, and sees how they end."""


@contextmanager
def log_and_status(settings: AggregatorSettings, plan: Plan, journal: Journal) -> Iterator[Observer]:
    """The audience of a deployed run: a log of JSON lines, and a status file."""
    writer = StatusWriter(settings.state, plan, journal, load_roster(settings.roster))
    with json_logs(settings.state, journal.run.hex()), writer:
        yield writer


def server_app(settings: Callable[[], AggregatorSettings], audience: Audience) -> ServerApp:
    """The server app with its private settings and its audience.

    Args:
        settings: Called when a run starts.
        audience: Called when a run starts; makes who is told how it goes.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        private, plan = settings(), plan_from_config(context.run_config)
        roster, journal = load_roster(private.roster), Journal(private.state, plan)
        with journal.held(), audience(private, plan, journal) as observer:
            Run(grid, plan, roster, journal, observer).run()

    return made


app = server_app(lambda: read_settings(os.environ), log_and_status)
