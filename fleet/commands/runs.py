"""`pruneseal run` and `pruneseal open`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.filesize import decimal

from edge_client.learning import data as datasets
from edge_client.learning import models, partition
from edge_client.sparsify import METHODS, complete, method_named
from fleet.commands.errors import exit_on_error
from fleet.results import finish as result
from fleet.results.open_run import open_run
from fleet.results.personal_models import CLIENTS
from fleet.results.summary import Summary
from fleet.running import local
from protocol.errors import ConfigError
from protocol.plan import GRANULARITIES, Plan, plan_from_config

_DEFAULT = Plan()
_NAMES: Final = {"prox": "proximal", "allocation_": "allocation", "partition_": "partition"}
"""What the parameters are called in the plan, where the names differ."""


def _option(name: str) -> str:
    """The help of a method's option."""
    return next(kind.declared()[name].help for kind in METHODS.values() if name in kind.declared())


def run(  # noqa: PLR0913, PLR0917  # one parameter per option
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything that the run writes.")],
    clients: Annotated[int, typer.Option(help="Clients that the data is divided among.")] = 10,
    rounds: Annotated[int, typer.Option(help="Number of rounds.")] = _DEFAULT.rounds,
    method: Annotated[
        str, typer.Option(help=f"One of {', '.join(METHODS)}; `pruneseal methods` describes them.")
    ] = _DEFAULT.method,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help=f"Final share of zero parameters (of dead filters), in [0, 1); {_DEFAULT.sparsity} by default. "
            f"Not for {' and '.join(name for name, kind in METHODS.items() if not kind.has_target)}.",
        ),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help=f"What is removed: {' or '.join(GRANULARITIES)}. Filters make training faster too.")
    ] = _DEFAULT.granularity,
    allocation_: Annotated[str | None, typer.Option("--allocation", help=_option("allocation"))] = None,
    layer_floor: Annotated[float | None, typer.Option(help=_option("layer-floor"))] = None,
    powerprop: Annotated[float | None, typer.Option(help=_option("powerprop"))] = None,
    data: Annotated[str, typer.Option(help=f"One of {datasets.FORMS}.")] = _DEFAULT.data,
    partition_: Annotated[
        str, typer.Option("--partition", help=f"How the data is divided: one of {partition.FORMS}.")
    ] = _DEFAULT.partition,
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(models.names())}, or package.module:function.")
    ] = _DEFAULT.model,
    bits: Annotated[int, typer.Option(help="Bits of the grid on which values are summed exactly.")] = _DEFAULT.bits,
    fraction: Annotated[float, typer.Option(help="Fraction of the clients asked in each round.")] = _DEFAULT.fraction,
    min_cohort: Annotated[
        int, typer.Option(help="Smallest number of clients whose sum may be opened.")
    ] = _DEFAULT.min_cohort,
    epochs: Annotated[int, typer.Option(help="Local epochs per round.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Samples per training step.")] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of SGD.")] = _DEFAULT.learning_rate,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = _DEFAULT.momentum,
    prox: Annotated[float, typer.Option(help="Weight mu of FedProx's proximal term; 0 for none.")] = _DEFAULT.proximal,
    seed: Annotated[
        int, typer.Option(help="Seed of everything random except keys, nonces and encryption.")
    ] = _DEFAULT.seed,
    drop: Annotated[
        float,
        typer.Option(
            help="Probability that a client vanishes after it has trained, at one of the two messages that follow."
        ),
    ] = 0.0,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any field of the plan or option of the method, such as deadline=60 or exponent=2.0; `pruneseal "
            "methods` lists the options. May be repeated.",
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every decrypted sum against the clear sum.")] = False,
    workers: Annotated[int, typer.Option(help="Client processes; 0 means one per processor.")] = 0,
    engine: Annotated[
        local.Engine,
        typer.Option(
            help="What carries the messages: `local` (a pool of processes), or `flower` (SuperLink, nodes and apps as "
            "processes of their own, with TLS)."
        ),
    ] = local.Engine.LOCAL,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the folder.")] = False,
) -> None:
    """Run everything on this machine: train, prune, aggregate encrypted, export, check, report.

    Ctrl-C ends cleanly; `--resume` goes on from the last complete round, with the settings that the run began with.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    console = Console()
    with exit_on_error():
        if resume:
            _require_same(out, given, _fields(more))
        else:
            flags = {
                "method": method,
                "sparsity": sparsity,
                "granularity": granularity,
                "allocation": allocation_,
                "layer-floor": layer_floor,
                "powerprop": powerprop,
                "rounds": rounds,
                "fraction": fraction,
                "min-cohort": min_cohort,
                "max-cohort": local.largest_cohort(clients, fraction),
                "bits": bits,
                "model": model,
                "data": data,
                "partition": partition_,
                "epochs": epochs,
                "batch-size": batch_size,
                "learning-rate": learning_rate,
                "momentum": momentum,
                "proximal": prox,
                "seed": seed,
            }
            chosen = {name: value for name, value in flags.items() if value is not None}
            plan = _plan({**chosen, **_fields(more)})
            local.start(out, plan, local.Options(clients, drop, verify, workers, engine))
        try:
            summary = local.go(out, console)
        except KeyboardInterrupt:
            console.print(f"stopped; resume with: pruneseal run --out {out} --resume", highlight=False, soft_wrap=True)
            raise
        _show(console, out, summary)


def _plan(given: Mapping[str, object]) -> Plan:
    """The plan of fields of it and options of its method, by name; the rest is at its default.

    Raises:
        ConfigError: A name is neither, or a value does not fit.
    """
    fields: dict[str, object] = {**_DEFAULT.to_config()}
    kind = method_named(str(given["method"]))
    options = {name: value for name, value in given.items() if name not in fields}
    if unknown := sorted(options.keys() - kind.declared().keys()):
        raise ConfigError(
            f"neither the plan nor {kind.name} has {', '.join(unknown)}; the plan has {', '.join(fields)}; "
            f"{kind.name} has {', '.join(kind.declared()) or 'no options'}"
        )
    if not kind.has_target:
        if "sparsity" in given:
            raise ConfigError(f"{kind.name} has no target sparsity: leave sparsity out")
        fields["sparsity"] = 0.0
    fields |= {name: value for name, value in given.items() if name in fields}
    return complete(plan_from_config({**fields, "options": options}))


def _fields(more: list[str] | None) -> dict[str, object]:
    """The settings that were given by name: values in TOML, or else texts."""
    found: dict[str, object] = {}
    for text in more or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, such as rounds=10 or model=lenet5, not {text}")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _require_same(out: Path, flags: Mapping[str, object], more: Mapping[str, object]) -> None:
    """Refuse settings that contradict those that a run began with."""
    plan, options = local.stored_run(out)
    stored = {name.removeprefix("options."): value for name, value in plan.to_config().items()} | vars(options)
    if unknown := sorted(more.keys() - stored.keys()):
        raise ConfigError(f"the run in {out} has no setting {', '.join(unknown)}")
    asked = {
        _NAMES.get(flag, flag.replace("_", "-")): (f"--{flag.rstrip('_').replace('_', '-')}", value)
        for flag, value in flags.items()
    }
    for name, value in more.items():
        asked[name] = (name if name in dict(plan.options) else f"--{name}", value)
    for name, (label, value) in asked.items():
        if name in stored and stored[name] != value:
            raise ConfigError(
                f"the run in {out} began with {label} {stored[name]}, not {value}; leave it out to resume"
            )


def _show(console: Console, out: Path, summary: Summary) -> None:
    verified, work = summary.verified, summary.multiply_accumulates_left
    own = f"{CLIENTS}/node-*" if summary.own_models else ""
    for name, text in (
        ("accuracy", f"{summary.accuracy:.4f} (ONNX {summary.onnx_accuracy:.4f})"),
        ("sparsity", f"{summary.sparsity:.4f} ({summary.kept:,} of {summary.parameters:,} parameters left)"),
        (
            "uplink",
            f"{decimal(summary.uplink_bytes)}, "
            f"{summary.uplink_bytes / summary.dense_fedavg_uplink_bytes:.3f} of dense float32 FedAvg; "
            f"{summary.uplink_bytes_per_value:.2f} bytes per value",
        ),
        (
            "ONNX file",
            f"{_size(summary.onnx_bytes, summary.dense_onnx_bytes)}; "
            f"at most {summary.onnx_max_abs_diff:.2g} from torch; {summary.onnx_speed:.2f}x as fast as dense",
        ),
        (
            "int8 file",
            f"none: {summary.int8_refused}"
            if summary.int8_onnx_bytes is None
            else f"{_size(summary.int8_onnx_bytes, summary.dense_onnx_bytes)}; "
            f"accuracy {summary.int8_accuracy:.4f}; {summary.int8_speed:.2f}x as fast as dense",
        ),
        ("recommended", str(out / own / summary.recommended)),
        ("work left", f"{work:.4f} of the multiply-accumulates" if work is not None else "cannot be counted"),
        (
            "sums verified",
            f"{verified.values:,} integers in {verified.rounds} rounds" if verified else "no (--verify)",
        ),
        ("report", str(out / result.REPORT_FILE)),
    ):
        console.print(f"{name:<20}{text}", highlight=False, markup=False, soft_wrap=True)


def _size(coded: float, dense: int) -> str:
    return f"{decimal(round(coded))}, {dense / coded:.1f}x smaller than dense"


def open_(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The aggregator's folder of the run, or a copy.")],
    kit: Annotated[Path, typer.Option(help="The operator's kit: cohort.secret and operator.pub.")],
    roster: Annotated[Path, typer.Option(help="The federation's roster.json.")],
    config: Annotated[Path, typer.Option(help="The Flower app's pyproject.toml, which holds the plan.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, ONNX file, summary and report.")],
    data: Annotated[str | None, typer.Option(help="Data that score the result; by default the plan's.")] = None,
) -> None:
    """Open the newest stored aggregate of a run, without any client."""
    with exit_on_error():
        _show(Console(), out, open_run(run_folder, kit, roster, config, data, out))
