"""The aggregator as a process of its own: it imports nothing that trains or decrypts, and its memory holds no key."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aggregator.journal import Journal
from edge_client.keys import COHORT_FILE, Kit, load_kit, load_operator_key
from fleet.provisioning.kits import AGGREGATOR, OPERATOR, kit_name, provision
from tests.aggregator.stub_grid import CONTRIBUTE, RELEASE, REPORT, TRAIN, StubClient, small_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NODES, ROUNDS = 3, 2
FORBIDDEN = {"torch", "edge_client", "export", "fleet", "onnx", "onnxruntime", "onnxscript", "safetensors"}
LOOKED_AT = {CONTRIBUTE: "contribution", RELEASE: "consent"}
CHUNK = 1 << 24
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)")


def memory(pid: int) -> Iterator[bytes]:
    """All that a process can read of its own memory, in pieces that overlap."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = MAPPING.match(line)
            if found is None or found[3].startswith(("[vvar", "[vsyscall")):
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            for at in range(start, end, CHUNK):
                file.seek(at)
                try:
                    yield file.read(min(CHUNK + 4096, end - at))
                except OSError:  # a mapping beyond the end of its file
                    break


def found_in(pid: int, needles: Mapping[str, bytes]) -> set[str]:
    """The names of the byte strings that lie somewhere in the memory of a process."""
    return {name for piece in memory(pid) for name, needle in needles.items() if needle in piece}


@dataclass
class Observed:
    """What was seen of an aggregator that has finished its run and still lives.

    ``seeds`` are those of the masks that a sum is opened without: by the round's number and the node's.
    """

    modules: list[str] = field(default_factory=list)
    secrets: dict[str, bytes] = field(default_factory=dict)
    public: dict[str, bytes] = field(default_factory=dict)
    seeds: dict[str, bytes] = field(default_factory=dict)
    found: dict[str, set[str]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def look(self, when: str, pid: int) -> None:
        self.found[when] = found_in(pid, self.secrets | self.public | self.seeds)


def in_both_forms(name: str, value: bytes) -> dict[str, bytes]:
    return {name: value, f"{name} in hex": value.hex().encode()}


def private_keys(kit: Kit) -> dict[str, bytes]:
    forms: dict[str, bytes] = {}
    for name, key in (("signature", kit.sign_key), ("sealing", kit.seal_key)):
        forms |= in_both_forms(f"the {name} key of node {kit.node}", key.private_bytes_raw())
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        forms[f"the {name} key of node {kit.node} in PEM"] = base64.b64encode(der)
    return forms


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("isolation")
    plan = small_plan(rounds=ROUNDS)
    provision(folder / "kits", NODES, plan)
    kits = [load_kit(folder / "kits" / kit_name(node)) for node in range(NODES)]
    clients = [StubClient(kit, plan) for kit in kits]
    secret = bytes.fromhex((folder / "kits" / OPERATOR / COHORT_FILE).read_text())
    signing = load_operator_key(folder / "kits" / OPERATOR).private_bytes_raw()
    seen = Observed(
        secrets=in_both_forms("the cohort secret", secret) | in_both_forms("the operator's key", signing),
        public={"the cohort id": kits[0].roster.cohort_id},
    )
    for kit in kits:
        seen.secrets |= private_keys(kit)
        for peer in kits[: kit.node]:
            seen.secrets |= in_both_forms(f"what {kit.node} and {peer.node} share", kit.pair_secret(peer.node))
    address = str(folder / "socket")
    roster, names = folder / "kits" / AGGREGATOR / "roster.json", ",".join(map(kit_name, range(NODES)))
    arguments = [address, json.dumps(plan.to_config()), roster, folder / "run", names]
    with Listener(address) as listener:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.aggregator.isolated", *map(str, arguments)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with listener.accept() as pipe:
                while isinstance(request := pipe.recv(), tuple):
                    kind, node, call, frames = request
                    client = clients[node]
                    answer = {
                        TRAIN: client.train,
                        CONTRIBUTE: client.contribute,
                        RELEASE: client.release,
                        REPORT: client.report,
                    }[kind]
                    reply = answer(call, frames)
                    if kind == TRAIN:
                        seed = client.kit.secret.bfv_seed(call.run, call.round)
                        seen.secrets |= in_both_forms(f"the key seed of round {call.round}", seed)
                        assert client.pending is not None
                        made, whose = client.pending.secrets, f"of {node} in round {call.round}"
                        seen.secrets |= in_both_forms(f"the exchange key {whose}", made.exchange)
                        if client.pending.values.size:
                            seen.secrets[f"the update {whose}"] = client.pending.values.tobytes()
                        seen.seeds[f"the seed {whose}"] = made.seed
                        seen.public["the run"] = call.run
                        seen.public[f"the attendance {whose}"] = reply["attendance"]
                    if kind in LOOKED_AT and node == NODES - 1:
                        seen.look(f"before the last {LOOKED_AT[kind]} of round {call.round}", child.pid)
                    pipe.send(reply)
                seen.modules = request
                seen.look("at the end", child.pid)
                pipe.send("that is all")
            _, errors = child.communicate(timeout=30)
            assert child.returncode == 0, errors
        finally:
            child.kill()
            child.wait()
    assert Journal(folder / "run", plan).run == seen.public["the run"]
    seen.metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return seen


def test_the_aggregator_runs_on_its_own(observed: Observed) -> None:
    assert [line["round"] for line in observed.metrics] == [1, 2]
    assert [line["cohort"] for line in observed.metrics] == [NODES, NODES]
    assert "aggregator.rounds" in observed.modules


def test_it_has_imported_nothing_that_trains_or_decrypts(observed: Observed) -> None:
    assert {name.split(".")[0] for name in observed.modules} & FORBIDDEN == set()


def test_the_service_and_the_superlink_import_nothing_of_it_either() -> None:
    code = "import sys, aggregator.service, aggregator.superlink, flwr.superlink.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "aggregator.endpoint" in modules
    assert {name.split(".")[0] for name in modules} & FORBIDDEN == set()


def test_what_is_public_is_found_in_its_memory(observed: Observed) -> None:
    assert {"the cohort id", "the run"} <= observed.found["before the last contribution of round 1"]
    assert {"the cohort id", "the run"} <= observed.found["at the end"]
    for number in (1, 2):
        when, attendances = f"before the last contribution of round {number}", range(NODES)
        assert {f"the attendance of {n} in round {number}" for n in attendances} <= observed.found[when]


def test_no_key_and_no_update_is_found_in_its_memory(observed: Observed) -> None:
    assert len(observed.found) == 1 + 2 * (ROUNDS + 1)
    assert len(observed.secrets) == 2 + 2 + NODES * 6 + 3 * 2 + (ROUNDS + 1) * (2 + 2 * NODES) + ROUNDS * NODES
    for when, found in observed.found.items():
        assert found & set(observed.secrets) == set(), when


@pytest.mark.parametrize("number", [1, 2])
def test_no_seed_of_a_mask_is_in_it_before_a_quorum_has_consented(observed: Observed, number: int) -> None:
    seeds = {f"the seed of {node} in round {number}" for node in range(NODES)}
    assert seeds <= set(observed.seeds)
    for when in LOOKED_AT.values():
        assert observed.found[f"before the last {when} of round {number}"] & seeds == set()


def test_a_secret_would_be_found_if_it_were_there() -> None:
    secret = b"PruneSeal " + bytes(range(200, 222))
    code = f"import sys; key = bytes.fromhex('{secret.hex()}'); print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    found = found_in(child.pid, in_both_forms("planted", secret) | {"absent": secret[::-1]})
    child.communicate()
    assert found == {"planted", "planted in hex"}
