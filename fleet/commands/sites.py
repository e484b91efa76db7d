"""`pruneseal enroll`, `provision` and `status`: what clients and operators do without any model."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from edge_client.enrollment import advice
from edge_client.enrollment import enroll as make_own_keys
from fleet.commands.errors import exit_on_error
from fleet.provisioning.check import check_kits
from fleet.provisioning.kits import plan_from_toml
from fleet.provisioning.kits import provision as make_kits
from fleet.provisioning.site import provision_site
from fleet.provisioning.site_file import read_site
from fleet.running import status as watch
from protocol.errors import ConfigError
from protocol.plan import Plan

_MADE_HERE: Final = "its keys were made here, for a trial; better have it enroll"


def provision(
    site: Annotated[
        Path | None, typer.Argument(help="A site file; without it, kits for a trial on one machine.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the kits; empty unless --amend is given.")] = None,
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
    """Make the keys of a federation: one kit per client, one for the aggregator, one for the operator.

    With a site file each kit is what one machine needs to run in containers; docker/README.md goes on from there.
    """
    with exit_on_error():
        if check is not None:
            for line in check_kits(check):
                typer.echo(line)
        elif out is None:
            raise ConfigError("name a folder for the kits with --out, or one to check with --check")
        elif site is None:
            plan = _proved(plan_from_toml(config) if config else Plan())
            make_kits(out, clients, plan)
            typer.echo(f"{clients} kits for the plan {plan.digest.hex()[:16]} in {out}, with all keys: for a trial")
        else:
            wanted = read_site(site)
            _proved(wanted.plan)
            changes = provision_site(out, wanted, amend=amend)
            for client in changes.added:
                keys = f"enrolled, {client.enrollment.fingerprint}" if client.enrollment else _MADE_HERE
                typer.echo(f"new: {out / client.name}.tar.gz ({keys})")
            for name in changes.revoked:
                typer.echo(f"revoked: {name}")
            typer.echo(
                f"{out / 'aggregator'}.tar.gz admits {len(wanted.clients)} clients to the plan "
                f"{wanted.plan.digest.hex()[:16]}"
            )


def enroll(
    folder: Annotated[Path, typer.Argument(help="Where this node's kit is to be; made if it is absent.")],
) -> None:
    """Make a node's own keys, on its machine, and enrollment.json for the operator of the federation.

    Nobody else ever has the keys. The operator's kit, which lacks nothing but these, is unpacked over the folder; until
    then compare the fingerprint that is printed, over another channel.
    """
    with exit_on_error():
        typer.echo(advice(folder.absolute(), make_own_keys(folder)))


def _proved(plan: Plan) -> Plan:
    """The plan, once its method is known to take its options: kits for one that no client can run are of no use."""
    from edge_client.sparsify import sparsifier  # noqa: PLC0415  # imports torch, which neither status nor help needs

    sparsifier(plan)
    return plan


def status(
    where: Annotated[str, typer.Argument(help="The run's folder, or http://host:port of the aggregator's endpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """Show how a run is going: state, nodes, last rounds, what was refused and why."""
    with exit_on_error():
        found = watch.look(where)
        if as_json:
            typer.echo(found.to_json(indent=1).decode())
        else:
            watch.show(Console(), found)
