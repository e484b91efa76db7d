"""What Prometheus is told, in a registry of this server's own.

Labels hold only names of models that are or were loaded, never what a client sent: a client cannot make series.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.batcher import Batcher
from serve.repository import Key

_MODEL = ("model", "version")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All series of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pruneseal_requests",
            "Inference requests by outcome: ok, or why not",
            (*_MODEL, "protocol", "outcome"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "pruneseal_request_seconds",
            "Time of an answered inference request, from its last byte to its answer",
            (*_MODEL, "protocol"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "pruneseal_batch_rows", "Rows that ran together", _MODEL, buckets=_ROWS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "pruneseal_batch_seconds", "Time that a batch ran", _MODEL, buckets=_SECONDS, registry=self.registry
        )
        self._queue_rows = Gauge("pruneseal_queue_rows", "Rows that wait", _MODEL, registry=self.registry)
        self._loaded = Gauge("pruneseal_model_loaded", "1 while the version is served", _MODEL, registry=self.registry)
        self._loads = Counter(
            "pruneseal_model_loads", "Attempts to load a version", (*_MODEL, "outcome"), registry=self.registry
        )

    def request(self, key: Key, protocol: str, outcome: str, seconds: float) -> None:
        """A request has been answered or refused; the key is ("", "") where it named no model that is served."""
        self._requests.labels(*key, protocol, outcome).inc()
        if outcome == "ok":
            self._seconds.labels(*key, protocol).observe(seconds)

    def observer(self, key: Key) -> "BatchObserver":
        """Who a version's batcher tells of its batches."""
        return BatchObserver(self._batch_rows.labels(*key), self._batch_seconds.labels(*key))

    def watch_queue(self, key: Key, batcher: Batcher) -> None:
        """Read a version's queue whenever the metrics are read."""
        self._queue_rows.labels(*key).set_function(lambda: batcher.waiting)

    def loaded(self, key: Key) -> None:
        """A version serves from now on."""
        self._loads.labels(*key, "ok").inc()
        self._loaded.labels(*key).set(1)

    def refused(self, key: Key) -> None:
        """A version could not be loaded."""
        self._loads.labels(*key, "refused").inc()

    def removed(self, key: Key) -> None:
        """A version is gone."""
        self._loaded.labels(*key).set(0)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class BatchObserver:
    """Counts the batches of one version."""

    def __init__(self, rows: Histogram, seconds: Histogram) -> None:
        self._rows, self._seconds = rows, seconds

    def batch(self, rows: int, seconds: float) -> None:
        """A batch of so many rows has run for so long."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)
