"""What reads bytes of others, and genuine bytes for each: frames and files of the tests, and their bad vectors."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import numpy as np

from aggregator.journal import AGGREGATE_FILE, ATTEMPT_FILE, RUN_FILE, Attempt, Journal
from aggregator.records import METRICS_FILE, RECORD_FILE, read_records
from aggregator.status import STATUS_FILE, Status, read_status
from aggregator.summation import MaskedSum, PartSum
from benchmarks.fuzz_frames import VECTORS, dealt_to_the_first, of_frames
from benchmarks.fuzz_models import of_files, of_serving
from benchmarks.fuzz_reader import Reader, from_file
from edge_client.bundle import BUNDLES_FILE, accepted
from edge_client.enrollment import ENROLLMENT_FILE, enroll, read_enrollment
from edge_client.keys import COHORT_FILE, PLAN_FILE, ROSTER_FILE, SEAL_FILE, SIGN_FILE, load_kit
from edge_client.ledger import LEDGER_FILE, Ledger, Sent
from edge_client.state import PENDING_FILE, Measured, Pending, accept_roster, load_pending, save_pending
from fleet.provisioning.federation import Federation
from fleet.provisioning.kits import plan_from_toml, write_own_keys, write_shared_keys
from fleet.provisioning.site_file import read_site
from protocol.attendance import SHARE_BYTES
from protocol.call import Call
from protocol.npz import read_arrays
from protocol.plan import plan_from_config
from protocol.roster import OPERATOR_PUBLIC_FILE, load_roster
from tests import factories
from tests.protocol import frames

_OF_TOML: Final = 600
"""What tomllib makes of a dotted name; the operator's own files, and of a bounded length."""
_OF_JSON: Final = 40
"""What Python makes of an empty list; our own files, and of a bounded length."""
_OWN_JSON: Final = frozenset(
    {
        *("kit roster.json", "roster", "plan config", "pending notes", "run.json", "export.json", "federation.json"),
        *(RECORD_FILE, METRICS_FILE, STATUS_FILE, LEDGER_FILE, "ledger body", ATTEMPT_FILE),
    }
)


def readers(folder: Path) -> list[Reader]:
    """All readers.

    Args:
        folder: An empty folder for the files that they read.
    """
    every = [*of_frames(), *_of_keys(folder), *_of_runs(folder), *of_files(folder), *of_serving(folder)]
    return [replace(reader, times=_OF_JSON) if reader.name in _OWN_JSON else reader for reader in every]


# --- keys, rosters, plans --------------------------------------------------------------------------


def _of_keys(folder: Path) -> Iterator[Reader]:
    kit, plan = folder / "kit", factories.plan()
    kit.mkdir()
    roster = factories.roster((1, 2, 3))
    write_own_keys(kit, factories.sign_key(1), factories.seal_key(1))
    write_shared_keys(kit, factories.SECRET, plan, roster, factories.OPERATOR)
    for name in (COHORT_FILE, SIGN_FILE, SEAL_FILE, PLAN_FILE, ROSTER_FILE, OPERATOR_PUBLIC_FILE):
        genuine = (kit / name).read_bytes()
        yield Reader(f"kit {name}", [genuine], _restored(kit / name, genuine, lambda: load_kit(kit)))
    rosters = [path.read_bytes() for path in sorted(VECTORS.glob("*roster*.json"))]
    lone = folder / "roster"
    lone.mkdir()
    (lone / OPERATOR_PUBLIC_FILE).write_text(factories.OPERATOR_PUBLIC)
    yield Reader(
        "roster", [(kit / ROSTER_FILE).read_bytes(), *rosters], from_file(lone / "r", lambda: load_roster(lone / "r"))
    )
    bundles = folder / BUNDLES_FILE
    yield Reader("bundles", [b"0f" * 32 + b"\n" + b"a1" * 32], from_file(bundles, lambda: accepted(folder)))
    serial = folder / f"roster-{roster.cohort_id.hex()}.serial"
    yield Reader(
        "roster serial", [b"1", b"7"], from_file(serial, lambda: accept_roster(folder, replace(roster, serial=7)))
    )
    configs = [json.dumps(plan.to_config()).encode()]
    yield Reader("plan config", configs, _of_json(plan_from_config))
    settings = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plan.to_config().items()).encode()
    app, site = folder / "pyproject.toml", folder / "site.toml"
    yield Reader(
        "app's plan",
        [b"[tool.flwr.app.config]\n" + settings],
        from_file(app, lambda: plan_from_toml(app)),
        times=_OF_TOML,
    )
    clients = "".join(f'[[clients]]\nname = "site-{number}"\ndata = "digits"\n' for number in range(3)).encode()
    named = b'[aggregator]\nhosts = ["a.example"]\nport = 443\n' + clients + b"[plan]\nrounds = 20\n"
    yield Reader("site", [named], from_file(site, lambda: read_site(site)), times=_OF_TOML)


def _restored(path: Path, genuine: bytes, read: Callable[[], object]) -> Callable[[bytes], object]:
    """A reader of a folder in which one file is another for the time of the call."""

    def from_folder(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return read()
        finally:
            path.write_bytes(genuine)

    return from_folder


def _of_json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """A reader of objects from one of their JSON; what is no JSON object is passed over."""

    def from_json(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return read(value) if isinstance(value, dict) else None

    return from_json


# --- state and records -------------------------------------------------------------------------------


def _of_runs(folder: Path) -> Iterator[Reader]:
    state, run, plan = folder / "state", folder / "run", factories.plan()
    pending = Pending(
        attendance=frames.ATTENDANCES[0],
        dealt=bytes(4 * SHARE_BYTES),
        secrets=factories.secrets(1),
        invited=frozenset(frames.KITS),
        values=np.ones(7, np.float32),
        votes=np.ones(7, np.bool_),
        step=np.ones(7),
        sealed=factories.SEALED,
        measured=Measured(loss=0.5, tested=3),
        state=bytes(32),
        cohort=frames.ATTENDANCES[0],
        shares=(bytes(64), None),
    )
    save_pending(state, pending)
    saved = (state / PENDING_FILE).read_bytes()
    arrays = read_arrays(saved)
    place = from_file(state / PENDING_FILE, lambda: load_pending(state))
    yield Reader("pending", [saved], place)
    yield Reader("pending notes", [arrays["notes"].tobytes()], lambda data: place(_npz({**arrays, "notes": data})))
    yield Reader("pending values", [_npy(arrays["values"])], lambda data: place(_npz(arrays, values=data)))

    call = Call(factories.RUN, 2, 1)
    given = [
        Sent(factories.RUN, 1, 1, bytes(32), bytes(range(32)), frozenset({1, 2, 300}), frozenset({frozenset({1, 2})}))
    ]
    Ledger(state, {call.run: (2, 1)}, given).save()
    kept = (state / LEDGER_FILE).read_bytes()
    ledger = from_file(state / LEDGER_FILE, lambda: Ledger.open(state, call, None, 1))
    yield Reader(LEDGER_FILE, [kept], ledger)
    outer = json.loads(kept)

    def whole(body: bytes) -> bytes:
        text = body.decode("latin-1")
        return json.dumps({**outer, "sha256": sha256(text.encode()).hexdigest(), "body": text}).encode()

    yield Reader("ledger body", [outer["body"].encode()], lambda body: ledger(whole(body)))

    journal = Journal(run, plan)
    sets = ((1, 2), (3, 300))
    attempt = Attempt(round=1, attempt=3, invited=(1, 2, 3, 300), announced=True, spoiled=sets, sums=sets)
    journal.begin(attempt)
    begun = (run / ATTEMPT_FILE).read_bytes()
    yield Reader(ATTEMPT_FILE, [begun], from_file(run / ATTEMPT_FILE, journal.begun))
    record = factories.record(1)
    journal.save(b"sum", record, attempt)
    journal.publish(record)
    newest = run / "rounds" / "round-000001"
    name = (run / RUN_FILE).read_bytes()
    yield Reader("run.json", [name], _restored(run / RUN_FILE, name, lambda: Journal(run, plan)))
    yield from _of_a_sum()
    line = (newest / RECORD_FILE).read_bytes()
    yield Reader(RECORD_FILE, [line], _restored(newest / RECORD_FILE, line, journal.last))
    metrics = (run / METRICS_FILE).read_bytes()
    yield Reader(
        METRICS_FILE, [metrics, metrics * 3], _restored(run / METRICS_FILE, metrics, lambda: read_records(run))
    )
    status = Status(run="ab" * 16, plan="cd" * 32, method="fedavg", rounds=3, refused={"Duplicate": 1}).to_json()
    yield Reader(STATUS_FILE, [status], from_file(run / STATUS_FILE, lambda: read_status(run)))
    federation = Federation(
        plan="ab" * 32, hosts=("a.example",), port=443, numbers={"a": 0, "b": 1}, enrolled=("b",)
    ).to_json()
    yield Reader("federation.json", [federation], lambda data: Federation.parse(data, "it"))
    enroll(run / "enrolled")
    enrollment = (run / "enrolled" / ENROLLMENT_FILE).read_bytes()
    path = run / ENROLLMENT_FILE
    yield Reader(ENROLLMENT_FILE, [enrollment], from_file(path, lambda: read_enrollment(path)))
    assert (newest / AGGREGATE_FILE).exists()


def _of_a_sum() -> Iterator[Reader]:
    """Sums that wait to be released, of small halves, as a file and by what it holds."""
    halves, seeds = (np.arange(8, dtype=np.uint64).reshape(1, 8),) * 2, (factories.dummy_seeds(2),)
    cohort, roster = frames.DIVIDED, frames.ROSTER
    parts = tuple(PartSum(group, nodes, halves, seeds) for group, nodes in enumerate(cohort.parts))
    saved = MaskedSum(1, cohort.nodes, cohort, dealt_to_the_first(), parts).to_bytes()
    arrays = read_arrays(saved)

    def read(data: bytes) -> object:
        return MaskedSum.from_bytes(data, roster)

    def of_member(name: str) -> Callable[[bytes], object]:
        return lambda data: read(_npz(arrays, **{name: data}))

    yield Reader("masked", [saved], read)
    for name in ("attempt", "groups", "nodes-0", "seeds-1"):
        yield Reader(f"masked {name}", [_npy(arrays[name])], of_member(name))


def _npy(array: Any) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(arrays: dict[str, Any], **members: bytes) -> bytes:
    """An archive of arrays, of which some are given as bytes of their own, and some as whole members."""
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            given = np.frombuffer(array, np.uint8) if isinstance(array, bytes) else array
            archive.writestr(f"{name}.npy", members.get(name, _npy(given)))
    return file.getvalue()
