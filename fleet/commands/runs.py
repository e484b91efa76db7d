"""`pruneseal run` and `pruneseal open`."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.filesize import decimal

from edge_client.learning import data as datasets
from edge_client.learning import models, partition
from edge_client.sparsify import METHODS, allocation
from edge_client.sparsify.fedsparsify import OneShot
from edge_client.sparsify.sparsyfed import SparsyFed
from fleet.commands.errors import exit_on_error
from fleet.results import finish as result
from fleet.results.open_run import open_run
from fleet.results.personal_models import CLIENTS
from fleet.running import local
from protocol.errors import ConfigError
from protocol.plan import GRANULARITIES, Plan, plan_from_config

_DEFAULT = Plan()
_ONE_SHOT_TUNING = 10
_BETA = 1.25


def run(  # noqa: PLR0913, PLR0917  # one parameter per option
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything that the run writes.")],
    clients: Annotated[int, typer.Option(help="Clients that the data is divided among.")] = 10,
    rounds: Annotated[int, typer.Option(help="Number of rounds.")] = _DEFAULT.rounds,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = _DEFAULT.method,
    sparsity: Annotated[
        float, typer.Option(help="Final share of zero parameters (of dead filters), in [0, 1).")
    ] = _DEFAULT.sparsity,
    granularity: Annotated[
        str, typer.Option(help=f"What is removed, one of {', '.join(GRANULARITIES)}; filters make training faster too.")
    ] = _DEFAULT.granularity,
    allocation_: Annotated[
        str, typer.Option("--allocation", help=f"How survivors are shared out: {', '.join(allocation.NAMES)}.")
    ] = _DEFAULT.allocation,
    layer_floor: Annotated[
        float, typer.Option(help="Share of every tensor that always stays, in [0, 1).")
    ] = _DEFAULT.layer_floor,
    powerprop: Annotated[
        float | None,
        typer.Option(help=f"Beta of powerpropagation; 1 for none. {_BETA} for sparsyfed, else 1.", show_default=False),
    ] = None,
    data: Annotated[str, typer.Option(help=f"One of {datasets.FORMS}.")] = _DEFAULT.data,
    partition_: Annotated[str, typer.Option("--partition", help=f"One of {partition.FORMS}.")] = _DEFAULT.partition,
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(models.names())}, or package.module:function.")
    ] = _DEFAULT.model,
    bits: Annotated[int, typer.Option(help="Bits of the grid that sums are exact on.")] = _DEFAULT.bits,
    fraction: Annotated[float, typer.Option(help="Fraction of the clients asked in each round.")] = _DEFAULT.fraction,
    min_cohort: Annotated[int, typer.Option(help="Smallest cohort whose sum is released.")] = _DEFAULT.min_cohort,
    epochs: Annotated[int, typer.Option(help="Local epochs per round.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Samples in one step.")] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of SGD.")] = _DEFAULT.learning_rate,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = _DEFAULT.momentum,
    prox: Annotated[float, typer.Option(help="Mu of FedProx; 0 for none.")] = _DEFAULT.proximal,
    seed: Annotated[int, typer.Option(help="Seed of everything random except the keys.")] = _DEFAULT.seed,
    drop: Annotated[
        float, typer.Option(help="Probability that a client vanishes between the two messages of a round.")
    ] = 0.0,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of the plan, as KEY=VALUE in TOML, such as start-sparsity=0.5."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every decrypted sum against the clear sum.")] = False,
    workers: Annotated[int, typer.Option(help="Client processes; 0 means one per processor.")] = 0,
    grid: Annotated[
        local.GridKind, typer.Option(help="`local`, or `flower`: SuperLink, nodes and apps as processes, with TLS.")
    ] = local.GridKind.LOCAL,
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
            _require_same(out, given | {key.replace("-", "_"): value for key, value in _fields(more).items()})
        else:
            plan = Plan(
                method=method,
                sparsity=sparsity,
                granularity=granularity,
                first_prune=max(1, rounds - _ONE_SHOT_TUNING) if method == OneShot.name else _DEFAULT.first_prune,
                allocation=allocation_,
                layer_floor=layer_floor,
                powerprop=_powerprop(method) if powerprop is None else powerprop,
                rounds=rounds,
                fraction=fraction,
                min_cohort=min_cohort,
                max_cohort=local.largest_cohort(clients, fraction),
                bits=bits,
                model=model,
                data=data,
                partition=partition_,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                momentum=momentum,
                proximal=prox,
                seed=seed,
            )
            plan = plan_from_config({**plan.to_config(), **_fields(more)})
            local.start(out, plan, local.Options(clients, drop, verify, workers, grid))
        try:
            summary = local.go(out, console)
        except KeyboardInterrupt:
            console.print(f"stopped; resume with: pruneseal run --out {out} --resume", highlight=False, soft_wrap=True)
            raise
        _show(console, out, summary)


def _powerprop(method: str) -> float:
    """The beta that a method has where none is given."""
    return _BETA if method == SparsyFed.name else _DEFAULT.powerprop


def _fields(more: list[str] | None) -> dict[str, Any]:
    """The fields of a plan that were set by name."""
    try:
        return tomllib.loads("\n".join(more or []))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"--set takes KEY=VALUE with a value in TOML, such as rounds=10 or model='lenet5', not {more}: {error}"
        ) from error


def _require_same(out: Path, given: dict[str, Any]) -> None:
    """Refuse options that contradict those that a run began with."""
    plan, options = local.stored_run(out)
    stored = {**{key.replace("-", "_"): value for key, value in plan.to_config().items()}, **vars(options)}
    stored |= {"partition_": stored["partition"], "allocation_": stored["allocation"], "prox": stored["proximal"]}
    for name, value in given.items():
        if name in stored and stored[name] != value:
            option = f"--{name.rstrip('_').replace('_', '-')}"
            raise ConfigError(
                f"the run in {out} began with {option} {stored[name]}, not {value}; leave it out to resume"
            )


def _show(console: Console, out: Path, summary: dict[str, Any]) -> None:
    verified, work = summary["verified"], summary["multiply_accumulates_left"]
    own = f"{CLIENTS}/node-*" if "own_models" in summary else ""
    for name, text in (
        ("accuracy", f"{summary['accuracy']:.4f} (ONNX {summary['onnx_accuracy']:.4f})"),
        ("sparsity", f"{summary['sparsity']:.4f} ({summary['kept']:,} of {summary['parameters']:,} parameters left)"),
        (
            "uplink",
            f"{decimal(summary['uplink_bytes'])}, "
            f"{summary['uplink_bytes'] / summary['dense_fedavg_uplink_bytes']:.3f} of dense float32 FedAvg; "
            f"{summary['uplink_bytes_per_value']:.2f} bytes per value",
        ),
        (
            "ONNX file",
            f"{_size(summary['onnx_bytes'], summary['dense_onnx_bytes'])}; "
            f"at most {summary['onnx_max_abs_diff']:.2g} from torch; {summary['onnx_speed']:.2f}x as fast as dense",
        ),
        (
            "int8 file",
            f"none: {summary['int8_refused']}"
            if summary["int8_refused"]
            else f"{_size(summary['int8_onnx_bytes'], summary['dense_onnx_bytes'])}; "
            f"accuracy {summary['int8_accuracy']:.4f}; {summary['int8_speed']:.2f}x as fast as dense",
        ),
        ("recommended", str(out / own / summary["recommended"])),
        ("work left", f"{work:.4f} of the multiply-accumulates" if work is not None else "cannot be counted"),
        (
            "sums verified",
            f"{verified['values']:,} integers in {verified['rounds']} rounds" if verified else "no (--verify)",
        ),
        ("report", str(out / result.REPORT_FILE)),
    ):
        console.print(f"{name:<20}{text}", highlight=False, markup=False, soft_wrap=True)


def _size(coded: int, dense: int) -> str:
    return f"{decimal(coded)}, {dense / coded:.1f}x smaller than dense"


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
