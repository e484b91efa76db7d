"""The `pruneseal` command."""

import json
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from click.core import ParameterSource
from rich.console import Console

from edge_client import data as datasets
from edge_client import models, partition
from edge_client.sparsify import METHODS, allocation
from edge_client.sparsify.fedsparsify import OneShot
from edge_client.sparsify.sparsyfed import SparsyFed
from export.serve.cli import serve
from fleet import local, release, result, watch
from fleet.bench import counts
from fleet.bench import run as run_bench
from fleet.inspect import describe_file
from fleet.kits import check_kits
from fleet.opening import open_run
from fleet.own import CLIENTS
from fleet.provision import plan_from_toml
from fleet.provision import provision as make_kits
from fleet.site import provision_site, read_site
from fleet.units import human_bytes
from protocol.errors import ConfigError, PruneSealError
from protocol.plan import GRANULARITIES, Plan, plan_from_config

app = typer.Typer(
    help="Federated training that prunes as it goes, aggregates what it cannot read, and exports to ONNX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEFAULT = Plan()
_ONE_SHOT_TUNING = 10
_BETA = 1.25


@contextmanager
def _errors() -> Iterator[None]:
    """Turn our errors into one line and exit code 1, Ctrl-C into exit code 130."""
    try:
        yield
    except PruneSealError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pruneseal {version('pruneseal')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated training that prunes as it goes, aggregates what it cannot read, and exports to ONNX."""


@app.command()
def run(  # noqa: PLR0913, PLR0917  # one parameter an option
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything that the run writes.")],
    clients: Annotated[int, typer.Option(help="Clients that the data is divided among.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = _DEFAULT.rounds,
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
    fraction: Annotated[float, typer.Option(help="Part of the clients asked each round.")] = _DEFAULT.fraction,
    min_cohort: Annotated[int, typer.Option(help="Smallest cohort whose sum is released.")] = _DEFAULT.min_cohort,
    epochs: Annotated[int, typer.Option(help="Local epochs a round.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Samples in one step.")] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of SGD.")] = _DEFAULT.learning_rate,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = _DEFAULT.momentum,
    prox: Annotated[float, typer.Option(help="Mu of FedProx; 0 for none.")] = _DEFAULT.proximal,
    seed: Annotated[int, typer.Option(help="Of everything that is random but the keys.")] = _DEFAULT.seed,
    drop: Annotated[
        float, typer.Option(help="Probability that a client vanishes between the two messages of a round.")
    ] = 0.0,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of the plan, as KEY=VALUE in TOML, such as start-sparsity=0.5."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every decrypted sum against the clear sum.")] = False,
    workers: Annotated[int, typer.Option(help="Client processes; 0 for one a processor.")] = 0,
    grid: Annotated[
        local.GridKind, typer.Option(help="`local`, or `flower`: SuperLink, nodes and apps as processes, with TLS.")
    ] = local.GridKind.LOCAL,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
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
    with _errors():
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
            console.print(f"stopped; go on with: pruneseal run --out {out} --resume", highlight=False, soft_wrap=True)
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
            f"{human_bytes(summary['uplink_bytes'])}, "
            f"{summary['uplink_bytes'] / summary['dense_fedavg_uplink_bytes']:.3f} of dense float32 FedAvg; "
            f"{summary['uplink_bytes_per_value']:.2f} bytes a value",
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
    return f"{human_bytes(coded)}, {dense / coded:.1f}x smaller than dense"


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A model.safetensors that a run has written.")],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files, export.json, the model card and its figure.")],
    calibration: Annotated[
        str | None,
        typer.Option(help=f"Data that set and score the int8 file: {datasets.FORMS}. Without: no int8 file."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="The accuracy that int8 may lose, in [0, 1].")] = release.TOLERANCE,
    model: Annotated[
        str | None, typer.Option(help="package.module:function, where the checkpoint names a network of your own.")
    ] = None,
) -> None:
    """Turn a checkpoint into small, fast ONNX files, and prove that they compute the same."""
    with _errors():
        data = None if calibration is None else datasets.load(calibration)
        made = release.release(checkpoint, out, data, tolerance, model)
        for line in release.told(out, made):
            typer.echo(line)


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[Path | None, typer.Option(help="The file to compare with, such as the dense one.")] = None,
    threads: Annotated[str, typer.Option(help="Thread counts, separated by commas.")] = "1,2",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,32",
) -> None:
    """Time ONNX files side by side in one process: median, 10th and 90th percentile, ratio."""
    with _errors():
        for line in run_bench(model, against, counts("threads", threads), counts("batch", batch)):
            typer.echo(line)


@app.command("open")
def open_(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The aggregator's folder of the run, or a copy.")],
    kit: Annotated[Path, typer.Option(help="The operator's kit: cohort.secret and operator.pub.")],
    roster: Annotated[Path, typer.Option(help="The federation's roster.json.")],
    config: Annotated[Path, typer.Option(help="The Flower app's pyproject.toml, which holds the plan.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, ONNX file, summary and report.")],
    data: Annotated[str | None, typer.Option(help="Data that score the result; by default the plan's.")] = None,
) -> None:
    """Open the newest stored aggregate of a run, without any client."""
    with _errors():
        _show(Console(), out, open_run(run_folder, kit, roster, config, data, out))


@app.command()
def status(
    where: Annotated[str, typer.Argument(help="The run's folder, or http://host:port of the aggregator's endpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """Show how a run is going: state, nodes, last rounds, what was refused and why."""
    with _errors():
        found = watch.look(where)
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            watch.show(Console(), found)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A message, aggregate, checkpoint or ONNX file.")],
) -> None:
    """Describe a file as JSON, without any key."""
    with _errors():
        typer.echo(json.dumps(describe_file(file), indent=1))


@app.command()
def provision(
    site: Annotated[
        Path | None, typer.Argument(help="A site file; without it, kits for a trial on one machine.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the kits; must be empty, but for --amend.")] = None,
    amend: Annotated[
        bool, typer.Option("--amend", help="Add the site file's new clients, revoke those it no longer names.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option(help="Prove that kits are complete and that the aggregator's opens nothing.")
    ] = None,
    clients: Annotated[int, typer.Option(help="How many clients a trial has.")] = 10,
    config: Annotated[
        Path | None, typer.Option(help="A pyproject.toml whose tool.flwr.app.config is the trial's plan.")
    ] = None,
) -> None:
    """Make the keys of a federation: one kit a client, one for the aggregator, one for the operator.

    With a site file each kit is what one machine needs to run in containers; docker/README.md goes on from there.
    """
    with _errors():
        if check is not None:
            for line in check_kits(check):
                typer.echo(line)
        elif out is None:
            raise ConfigError("name a folder for the kits with --out, or one to look at with --check")
        elif site is None:
            plan = plan_from_toml(config) if config else _DEFAULT
            make_kits(out, clients, plan)
            typer.echo(f"{clients} kits for the plan {plan.digest.hex()[:16]} in {out}")
        else:
            wanted = read_site(site)
            changes = provision_site(out, wanted, amend=amend)
            for name in changes.added:
                typer.echo(f"new: {out / name}.tar.gz")
            for name in changes.revoked:
                typer.echo(f"revoked: {name}")
            typer.echo(
                f"{out / 'aggregator'}.tar.gz admits {len(wanted.clients)} clients to the plan "
                f"{wanted.plan.digest.hex()[:16]}"
            )


app.command()(serve)


if __name__ == "__main__":  # pragma: no cover
    sys.exit(app())
