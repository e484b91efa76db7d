"""The Flower `ServerApp`: reads the plan, the roster and the journal, and runs the rounds."""

import logging
import os
from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.journal import Journal, Record
from aggregator.rounds import Observer, Run
from aggregator.settings import Settings, read_settings
from protocol.cohort import Cohort
from protocol.plan import plan_from_config
from protocol.roster import load_roster

_log = logging.getLogger("pruneseal.aggregator")


class LogObserver:
    """Tells the log."""

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        """Debug: who has answered."""
        _log.debug("round %d: %s %d of %d", round_, name, done, total)

    def summed(self, round_: int, attempt: int, cohort: Cohort, aggregate: bytes) -> None:
        """Info: a sum is complete."""
        _log.info("round %d, attempt %d: added %d clients", round_, attempt, len(cohort.members))
        _log.debug("the aggregate takes %d bytes", len(aggregate))

    def round_done(self, record: Record) -> None:
        """Info: a round's metrics."""
        _log.info("round %d: %s", record["round"], record)

    def message(self, text: str) -> None:
        """Warning: what an operator wants to know."""
        _log.warning("%s", text)


def server_app(settings: Callable[[], Settings], observer: Observer) -> ServerApp:
    """The server app with its private settings and its audience.

    Args:
        settings: Called when a run starts.
        observer: Who is told how the run goes.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        private, plan = settings(), plan_from_config(context.run_config)
        Run(grid, plan, load_roster(private.roster), Journal(private.state, plan), observer).run()

    return made


app = server_app(lambda: read_settings(os.environ), LogObserver())
