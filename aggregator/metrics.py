"""What Prometheus is told: a pure function of the run's folder, so that no figure is lost with a process.

Counters are sums over the rounds of the run's journal and its status; they go on where they were after any crash.
"""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aggregator.absences import read_absences
from aggregator.journal import is_held
from aggregator.records import PhaseSeconds, read_records
from aggregator.status import FAILED, FINISHED, RUNNING, STOPPED, read_status


class RunCollector(Collector):
    """The metrics of one run's folder, read when they are asked for.

    Args:
        folder: The run's folder; where it is still empty, there are few metrics.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the folder."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All metrics as they are now."""
        yield _gauge("up", "1 while a process runs the rounds", float(is_held(self._folder)))
        if self._folder.exists():
            free = shutil.disk_usage(self._folder).free
            yield _gauge("disk_free_bytes", "Free space on the disk of the run's folder", float(free))
        yield from self._of_the_status()
        yield from self._of_the_rounds()

    def _of_the_status(self) -> Iterable[Metric]:
        status = read_status(self._folder)
        if status is None:
            return
        info = GaugeMetricFamily("pruneseal_run_info", "The run", labels=["run", "plan", "method"])
        info.add_metric([status.run, status.plan[:16], status.method], 1)
        yield info
        state = GaugeMetricFamily("pruneseal_run_state", "1 for the state that the run is in", labels=["state"])
        for name in (RUNNING, FINISHED, FAILED, STOPPED):
            state.add_metric([name], float(status.state == name))
        yield state
        yield _gauge("rounds_planned", "Rounds of the plan", status.rounds)
        yield _gauge("round", "The round under way", status.round)
        yield _gauge("phase_asked", "Clients asked in the phase under way", status.asked)
        yield _gauge("phase_answered", "Clients that have answered in it", status.answered)
        online = sum(node.online for node in status.nodes.values())
        yield _gauge("nodes_online", "Nodes that were there as the last round began", online)
        yield _gauge("status_age_seconds", "Since the status was written last", max(0.0, time.time() - status.updated))
        yield _counter("starts", "How often the run was started or resumed", status.starts)
        yield _counter("client_errors", "Answers of nodes that were errors", status.failed)
        refused = CounterMetricFamily("pruneseal_refused", "Messages that did not count", labels=["reason"])
        for reason, count in sorted(status.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        out = GaugeMetricFamily(
            "pruneseal_left_out", "1 for a node that is left out of the round under way", labels=["node", "reason"]
        )
        for name, absence in sorted(read_absences(self._folder).items()):
            if absence.until >= status.round:
                out.add_metric([name, absence.reason], 1)
        yield out

    def _of_the_rounds(self) -> Iterable[Metric]:
        records = read_records(self._folder)
        yield _counter("rounds", "Complete rounds", len(records))
        yield _counter("attempts", "Attempts at complete rounds", sum(record.attempts for record in records))
        yield _counter(
            "dropped_clients", "Clients asked that are not in the sum", sum(record.dropped for record in records)
        )
        yield _counter(
            "uplink_bytes", "Bytes of frames from the clients", sum(record.uplink_bytes for record in records)
        )
        yield _counter(
            "downlink_bytes", "Bytes of frames to the clients", sum(record.downlink_bytes for record in records)
        )
        yield _counter("values", "Values that travelled up", sum(record.values for record in records))
        phases = CounterMetricFamily("pruneseal_seconds", "Time by phase", labels=["phase"])
        for phase in sorted(PhaseSeconds.model_fields):
            phases.add_metric([phase], sum(record.seconds.by_phase()[phase] for record in records))
        yield phases
        for name, text in (
            ("cohort", "Clients in the last sum"),
            ("loss", "Their mean training loss"),
            ("accuracy", "Accuracy of the last model that clients have scored"),
            ("sparsity", "Its share of zero parameters"),
        ):
            known = [value for record in records if (value := getattr(record, name)) is not None]
            if known:
                yield _gauge(name, text, known[-1])


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pruneseal_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"pruneseal_{name}", text, value=value)
