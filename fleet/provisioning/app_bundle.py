"""The Flower app bundle of a run: the plan, and no code.

The bundle is a function of the plan alone, so an operator can tell the nodes its SHA-256 before it exists, and a change
of any setting changes it.
"""

import hashlib
from pathlib import Path
from typing import Final

import tomli_w

from fleet.flower import make_bundle
from protocol.files import replace_file
from protocol.plan import Plan

APP_FOLDER: Final = "app"
_LICENSE: Final = "PruneSeal is licensed under the Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"


def app_files(plan: Plan) -> dict[str, bytes]:
    """The files of the Flower app that runs this plan, by name."""
    project = {
        "project": {
            "name": "pruneseal",
            "version": "1.0.0",
            "description": "A PruneSeal plan. Nodes run the packages that are installed on them.",
            "license": {"file": "LICENSE"},
            "dependencies": ["flwr>=1.41.0"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "pruneseal",
                    "fab-format-version": 1,
                    "flwr-version-target": "1.41.0",
                    "components": {"serverapp": "aggregator.app:app", "clientapp": "edge_client.app:app"},
                    "config": _nested(plan),
                }
            }
        },
    }
    return {"pyproject.toml": tomli_w.dumps(project).encode(), "LICENSE": _LICENSE.encode()}


def _nested(plan: Plan) -> dict[str, object]:
    """The plan's run config as a file has it: the options in a table of their own."""
    fields = {name: value for name, value in plan.to_config().items() if "." not in name}
    return {**fields, "options": dict(plan.options)} if plan.options else {**fields}


def write_app(folder: Path, plan: Plan) -> None:
    """Write the app as a folder that `flwr run` takes; what stood there under the same names is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in app_files(plan).items():
        replace_file(folder / name, data)


def bundle_digest(plan: Plan) -> str:
    """The SHA-256, in hex, of the bundle that `flwr run` makes of the app."""
    return hashlib.sha256(make_bundle(app_files(plan))).hexdigest()
