"""An operator opens the aggregator's stored aggregate alone: the cohort secret and the run's folder are enough."""

from pathlib import Path

from aggregator.journal import RUN_FILE, Journal
from edge_client.keys import load_operator_kit
from edge_client.learning import data as datasets
from edge_client.learning.network import build_network
from fleet.provisioning.kits import plan_from_toml
from fleet.results.finish import finish
from fleet.results.opened_run import OpenedRun
from fleet.results.summary import Summary
from protocol.errors import ConfigError


def open_run(run: Path, kit: Path, roster: Path, config: Path, data: str | None, out: Path) -> Summary:
    """Open the newest complete round of a run and write checkpoint, ONNX file, summary and report.

    Args:
        run: The aggregator's folder of the run, or a copy of it; nothing in it is changed.
        kit: The operator's kit.
        roster: The roster's file.
        config: The Flower app's pyproject.toml, which holds the plan.
        data: Data that score the result; by default the plan's.
        out: Where to write.

    Returns:
        The summary.

    Raises:
        ConfigError: The folder holds no run, or one of another plan.
        KeyFileError: The kit is not that of the roster.
        RosterRefused: The roster is not signed by this operator.
        CheckpointError: No round is complete.
        MalformedMessage, PeerMismatch: The aggregate is damaged, or was made with another secret.
    """
    if not (run / RUN_FILE).is_file():
        raise ConfigError(f"{run} is not the folder of a run: it holds no {RUN_FILE}")
    opener, plan = load_operator_kit(kit, roster), plan_from_toml(config)
    rows = datasets.load(data or plan.data)
    network = build_network(plan, rows.input_shape, rows.classes, Journal(run, plan).run)
    out.mkdir(parents=True, exist_ok=True)
    return finish(OpenedRun(run, opener, plan, len(opener.roster.nodes), network, rows), out, None)
