"""The cells of `benchmarks/accuracy.py`: what a run is, and the plan that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.tasks import TASKS
from edge_client.sparsify import complete
from protocol.errors import ConfigError
from protocol.plan import Plan, Scalar

_OWN_RATES: Final = {"sparsyfed": 0.5, "spafl": 0.02}
"""Powerpropagation shortens steps, so the rate of SparsyFed's authors is large. SpaFL's thresholds move at the rate of
the weights, so that of its authors is small (0.001 with momentum 0.9)."""

OWN_RATES: Final[Mapping[str, Mapping[str, float]]] = {"fashion": _OWN_RATES, "fashion-validation": _OWN_RATES}
"""By task: the learning rates of the methods that do not take the task's."""

HEADLINE: Final = (
    ("fedavg", 0.0, "iid", ""),
    ("fedsparsify-global", 0.95, "iid", ""),
    ("fedsparsify-global", 0.95, "iid", "erk"),
    ("fedsparsify-local", 0.95, "iid", ""),
    ("sparsyfed", 0.95, "dirichlet:0.1", ""),
    ("topk", 0.95, "dirichlet:0.1", ""),
    ("spafl", 0.0, "iid", ""),
)
"""Method, sparsity, division and allocation of the cells that ``--headline`` runs with all seeds."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: Which of `TASKS`.
        method: The sparsifier.
        sparsity: Its target; 0 where it has none.
        partition: How the data is divided.
        seed: What everything random is drawn from.
        rounds: How many.
        encrypted: Whether the product itself runs.
        powerprop: Beta of powerpropagation; 0 for the method's own.
        allocation: How the survivors are shared out over the tensors; empty for the method's default.
        learning_rate: That of SGD; 0 for the task's.
    """

    task: str
    method: str
    sparsity: float
    partition: str
    seed: int
    rounds: int
    encrypted: bool = False
    powerprop: float = 0.0
    allocation: str = ""
    learning_rate: float = 0.0

    @property
    def variant(self) -> str:
        """What the method is given beyond its own settings; empty where that is nothing."""
        return ", ".join(filter(None, (self.allocation, f"beta {self.powerprop:g}" if self.powerprop else "")))

    @property
    def name(self) -> str:
        """The name of its file."""
        division = self.partition.replace(":", "-")
        method = "-".join([self.method, *self.variant.replace(" ", "").split(",")]).removesuffix("-")
        rate = f"-lr{self.learning_rate:g}" if self.learning_rate else ""
        kind = "-encrypted" if self.encrypted else ""
        return f"{self.task}-{division}-{method}-{self.sparsity:g}{rate}-r{self.rounds}-s{self.seed}{kind}"

    def plan(self, data: str | None) -> Plan:
        """The plan of the run.

        Raises:
            ConfigError: The task needs data that is not named.
        """
        task = TASKS[self.task]
        if (source := task.data or data) is None:
            raise ConfigError(f"{task.label} needs --data")
        rate = self.learning_rate or OWN_RATES.get(self.task, {}).get(self.method)
        options: tuple[tuple[str, Scalar], ...] = ()
        if self.powerprop:
            options += (("powerprop", self.powerprop),)
        if self.allocation:
            options += (("allocation", self.allocation),)
        return complete(
            Plan(
                method=self.method,
                sparsity=self.sparsity,
                rounds=self.rounds,
                max_cohort=task.clients,
                model=task.model,
                data=source,
                partition=self.partition,
                seed=self.seed,
                options=options,
                **{**task.settings, **({"learning_rate": rate} if rate else {})},
            )
        )
