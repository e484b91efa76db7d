"""A run and what it takes to open it: the one argument of whatever reads a run's models."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aggregator.journal import Journal
from edge_client.keys import Opener
from edge_client.learning.data import DataSet
from edge_client.learning.network import Network
from edge_client.sparsify import GlobalState
from edge_client.sums import state_after
from protocol.plan import Plan


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run in a folder, open to whoever holds the cohort secret.

    Attributes:
        folder: The aggregator's folder of the run, or a copy; of a local run it holds the kits of all nodes as well.
        opener: Opens its sums.
        plan: Its plan.
        clients: How many clients it has.
        network: The plan's network.
        data: The plan's data, or others like them; the test part scores what is left behind.
    """

    folder: Path
    opener: Opener
    plan: Plan
    clients: int
    network: Network
    data: DataSet

    @cached_property
    def journal(self) -> Journal:
        """What the aggregator keeps of it.

        Raises:
            ConfigError: The folder belongs to a run of another plan, or cannot be used.
        """
        return Journal(self.folder, self.plan)

    def state(self) -> GlobalState:
        """The state that its clients derive from the newest complete round; before the first, the initial one.

        Raises:
            CheckpointError: The files of that round are damaged.
            MalformedMessage, PeerMismatch: The aggregate is damaged, or was made with another secret.
        """
        stored = self.journal.last()
        if not stored.round:
            return self.network.initial
        run = self.journal.run
        return state_after(stored.aggregate, run, stored.round, self.opener, self.plan, self.network)
