"""A federation in real containers: brought up as docker/README.md says, hurt, attacked, opened and served.

One run serves all tests, for images and rounds take minutes. Its faults happen while it goes on; what it must look like
afterwards is what the tests state.
"""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest

from edge_client.enrollment import write_node_key
from edge_client.learning import data as datasets
from protocol import checkpoint
from tests.e2e.conftest import ACCEPTED
from tests.e2e.engine import Site, available, checkout, commands, found

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not available(), reason="no Docker engine")]
ROUNDS, CLIENTS = 20, 3
SECTION = "Everything on one machine"
HOLDERS = ("superlink", "ingress", "app", "service", "nodes")


PATIENCE: Final = 1800.0
"""Seconds: on a busy machine a round of containers takes half a minute."""


@dataclass
class Story:
    """What was seen while the run went on.

    Attributes:
        site: The federation, after its last round.
        traffic: What lay in the SuperLink's database and in the aggregator's folder while clients had contributed.
        waiting: The clear values that waited in the clients' own folders at the same time, float32.
        memory: How many bytes of memory were searched for secrets, and where one was, by container.
        outside: The answers to calls from outside, by path.
    """

    site: Site
    traffic: list[tuple[str, bytes]] = field(default_factory=list)
    waiting: list[np.ndarray[Any, Any]] = field(default_factory=list)
    memory: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)


def secret_forms(site: Site) -> list[bytes]:
    text = (site.folder / "kits" / "operator" / "cohort.secret").read_text().strip()
    return [bytes.fromhex(text), text.encode(), text.upper().encode()]


def look_at_traffic(story: Story) -> None:
    """Note what the server holds and, at the same time, what the clients hold in clear."""
    for number in range(CLIENTS):
        for content in story.site.files(f"trainer-{number}", "/state/pending.npz").values():
            with np.load(BytesIO(content)) as pending:
                story.waiting.append(pending["values"].astype("<f4"))
    for service in ("superlink", "service"):
        story.traffic += story.site.files(service, "/state").items()


def call_from_outside(path: str) -> int:
    done = subprocess.run(
        ["curl", "-ks", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", f"https://127.0.0.1:8443{path}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return int(done.stdout)


def hurt(story: Story) -> None:
    """Let things happen to a run, each in another round."""
    site = story.site

    def wait_for_rounds(more: int, after: str) -> None:
        wanted = len(site.records()) + more
        assert wanted <= ROUNDS, f"the run is over before anything could happen {after}"
        site.wait(f"a round {after}", lambda: len(site.records()) >= wanted, PATIENCE)

    wait_for_rounds(1, "at all")
    look_at_traffic(story)
    # The first process of the container, its child, and while there is a message to answer, a fork of that.
    site.wait("training", lambda: site.processes("trainer-2").count("edge_client.executor") > 2, PATIENCE)
    site.kill("trainer-2")
    for service in HOLDERS:
        story.memory[service] = site.memory(service, secret_forms(site))
    wait_for_rounds(1, "after a client was killed")
    look_at_traffic(story)
    site.wait("the app", lambda: "flwr-serverapp" in site.processes("app"), PATIENCE)
    for line in site.processes("app").splitlines():
        if "flwr-serverapp" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
    wait_for_rounds(1, "after the app was killed")
    site.kill("superlink")
    wait_for_rounds(1, "after the SuperLink was killed")
    node, network = site.container("supernode-1"), "pruneseal-test_outer"
    subprocess.run(["docker", "network", "disconnect", network, node], check=True)
    time.sleep(30)
    subprocess.run(["docker", "network", "connect", network, node], check=True)
    site.wait("the last round", lambda: site.state() == "finished", PATIENCE)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    site = Site(checkout(tmp_path_factory.mktemp("clone")))
    story = Story(site)
    try:
        for block in commands(SECTION)[:2]:
            site.shell(block, timeout=900)
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/docs", "/openapi.json"):
            site.wait("the ingress", lambda: call_from_outside("/") != 0, PATIENCE)
            story.outside[path] = call_from_outside(path)
        hurt(story)
        site.shell(commands(SECTION)[2])
        yield story
    finally:
        print(json.dumps(site.seconds, indent=1))  # noqa: T201  # what took how long, shown where a test fails
        site.compose("down", "--volumes", "--timeout", "2", check=False)


def test_every_round_is_there_once_whatever_happened(story: Story) -> None:
    records = story.site.records()
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    assert {record["cohort"] for record in records} == {CLIENTS}
    for service in ("trainer-2", "superlink"):
        command = ["docker", "inspect", "-f", "{{.RestartCount}}", story.site.container(service)]
        assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) >= 1, service


def test_the_aggregator_says_what_it_went_through(story: Story) -> None:
    assert "the app has ended mid-run; it is started again and resumes" in story.site.logs("service")
    (log,) = story.site.files("service", "/state/log.jsonl").values()
    assert b"resuming after round" in log


def test_what_the_server_holds_contains_no_weight_in_clear(story: Story) -> None:
    assert sum(len(content) for _, content in story.traffic) > 1_000_000
    assert story.waiting
    needles = set()
    for values in story.waiting:
        starts = np.random.default_rng(0).choice(values.size - 4, 200, replace=False)
        needles |= {values[at : at + 4].tobytes() for at in starts if values[at : at + 4].all()}
    assert len(needles) > 300
    assert list(found(story.traffic, needles)) == []
    assert list(found([("control", b"".join(values.tobytes() for values in story.waiting))], needles)) == ["control"]


def test_what_the_server_holds_contains_no_mask(story: Story) -> None:
    tensors = checkpoint.load(story.site.folder / "opened" / "model.safetensors").tensors
    kept = np.concatenate([tensors[name].ravel() != 0 for name in sorted(tensors)])
    needles = set()
    for order in ("big", "little"):
        packed = np.packbits(kept, bitorder=order).tobytes()
        windows = {packed[at : at + 16] for at in range(0, len(packed) - 16, 16)}
        needles |= {window for window in windows if len(set(window)) >= 8}
    assert len(needles) > 50
    final = [item for service in ("superlink", "service") for item in story.site.files(service, "/state").items()]
    assert any(name.endswith("aggregate.bin") for name, _ in final)
    assert list(found([*final, *story.traffic], needles)) == []


def test_no_byte_of_the_cohort_secret_is_with_the_aggregator(story: Story) -> None:
    forms = secret_forms(story.site)
    for service in HOLDERS:
        read, places = story.memory[service]
        assert read > 1_000_000
        assert places == []
        exported = subprocess.run(
            ["docker", "export", story.site.container(service)], capture_output=True, check=True, timeout=120
        ).stdout
        assert list(found([(service, exported)], forms)) == []
        assert list(found(story.site.files(service, "/state").items(), forms)) == []


def test_the_search_of_memory_finds_what_is_there(story: Story) -> None:
    _, places = story.site.memory("service", [b"/run/federation/roster.json"])
    assert {place.split()[0] for place in places} == {"environment", "memory"}


def test_only_the_api_of_the_nodes_passes_the_ingress(story: Story) -> None:
    assert set(story.outside.values()) == {403}
    assert 'refused "POST /v1/control/list-runs HTTP/1.1" 403' in story.site.logs("ingress")


def test_containers_are_what_the_readme_says(story: Story) -> None:
    services = story.site.compose("ps", "--services").split()
    for service in services:
        inspected = json.loads(
            subprocess.run(
                ["docker", "inspect", story.site.container(service)], capture_output=True, text=True, check=True
            ).stdout
        )[0]
        host = inspected["HostConfig"]
        assert inspected["Config"]["User"] == "49999", service
        assert host["ReadonlyRootfs"], service
        assert host["Init"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["RestartPolicy"]["Name"] == "always", service
        mounted = {mount["Destination"] for mount in inspected["Mounts"]}
        assert ("/run/kit" in mounted) == ("/data" in mounted) == service.startswith("trainer"), service
        assert ("/run/node" in mounted) == service.startswith("supernode"), service


def test_a_trainer_has_no_way_out(story: Story) -> None:
    script = "import socket\nsocket.setdefaulttimeout(3)\ntry:\n    socket.create_connection(('ingress', 9443))\n"
    assert story.site.inside("trainer-0", script + "except OSError as error:\n    print('no way', error)").startswith(
        "no way"
    )


def test_the_opened_model_is_served(story: Story) -> None:
    digits = datasets.load("digits")
    rows = digits.test_x[:32]
    body = {"inputs": [{"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]}
    request = Request(
        "http://127.0.0.1:8080/v2/models/digits/infer",
        json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=30) as answer:  # noqa: S310
        (output,) = json.load(answer)["outputs"]
    logits = np.array(output["data"], np.float32).reshape(output["shape"])
    folder = story.site.folder / "models" / "digits"
    path = folder / json.loads((folder / "export.json").read_text())["recommended"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(logits, session.run(None, {"input": rows})[0], rtol=1e-4, atol=1e-5)
    summary = json.loads((story.site.folder / "opened" / "summary.json").read_text())
    assert summary["accuracy"] > 0.8
    assert summary["sparsity"] >= 0.8


def test_every_client_leaves_the_final_model_its_onnx_file_and_a_report(story: Story) -> None:
    opened = checkpoint.load(story.site.folder / "opened" / "model.safetensors").tensors
    folders = [story.site.folder / "site" / f"client-{number}" / "out" for number in range(CLIENTS)]
    story.site.wait("the exports", lambda: all((out / "export.json").exists() for out in folders), 120)
    for out in folders:
        own = checkpoint.load(out / "model.safetensors").tensors
        assert {name: array.tobytes() for name, array in own.items()} == {
            name: array.tobytes() for name, array in opened.items()
        }
        exported = json.loads((out / "export.json").read_text())
        content = (out / "model.onnx").read_bytes()
        assert exported["files"]["model.onnx"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert exported["files"]["model.onnx"]["max_abs_diff"] < 1e-4
        assert 3 * len(content) < exported["dense_bytes"]
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        rows = datasets.load("digits")
        logits = session.run(None, {"input": rows.test_x})[0]
        assert float(np.mean(np.argmax(logits, axis=1) == rows.test_y)) > 0.8
        assert "figure.svg" in (out / "model_card.md").read_text()
        assert "recommended: /out/model.onnx" in (out / "export.log").read_text()


def test_a_changed_bundle_is_refused_by_every_client(story: Story) -> None:
    script = (
        "import pathlib, shutil\n"
        "from aggregator.service import FlowerControl\n"
        "shutil.copytree('/run/federation/app', '/tmp/app')\n"
        "file = pathlib.Path('/tmp/app/pyproject.toml')\n"
        "file.write_text(file.read_text().replace('A PruneSeal plan.', 'Another plan.'))\n"
        "print(FlowerControl(pathlib.Path('/tmp/app'), 'aggregator').submit())\n"
    )
    story.site.inside("nodes", script)
    trainers = [f"trainer-{number}" for number in range(CLIENTS)]
    story.site.wait(
        "the refusal", lambda: all("is not on this node's" in story.site.logs(name) for name in trainers), 120
    )


def test_a_node_that_nobody_knows_is_refused(story: Story, tmp_path: Path) -> None:
    write_node_key(tmp_path)
    (tmp_path / "flower.key").chmod(0o644)
    tmp_path.chmod(0o755)  # for the user of the container
    authority = story.site.folder / "site" / "client-0" / "node" / "ca.crt"
    done = subprocess.run(
        [
            *("docker", "run", "--rm", "--network", "pruneseal-test_outer", "--read-only", "--tmpfs", "/tmp"),  # noqa: S108
            *("--tmpfs", "/run/home:uid=49999", "-v", f"{tmp_path}:/run/node:ro", "-v", f"{authority}:/run/ca.crt:ro"),
            *("pruneseal-edge", "flower-supernode", "--superlink", "ingress:9443", "--root-certificates"),
            *("/run/ca.crt", "--auth-supernode-private-key", "/run/node/flower.key", "--max-retries", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "2004" in done.stdout + done.stderr or "305" in done.stdout + done.stderr


def test_a_revoked_node_is_refused_the_others_are_not_and_a_new_one_has_its_own_keys(story: Story) -> None:
    site = story.site
    file, image = site.folder / "docker" / "site.toml", "docker run --rm --network none"
    told = site.shell(
        f'{image} --user 0 -v "$PWD/site:/here" pruneseal-edge python3 -m edge_client.enrollment /here/client-3'
    )
    text, enrollment = file.read_text(), 'enrollment = "../site/client-3/enrollment.json"'
    new = f'[[clients]]\nname = "client-3"\n{enrollment}\n'
    file.write_text(text.replace('[[clients]]\nname = "client-2"\n', new))
    before = (site.folder / "kits" / "client-0.tar.gz").read_bytes()
    printed = site.shell(
        ".venv/bin/pruneseal provision docker/site.toml --out kits --amend\n"
        ".venv/bin/pruneseal provision --check kits\n"
        "tar -xzf kits/aggregator.tar.gz -C site\n"
        "tar -xzf kits/client-3.tar.gz -C site\n"
        f'{image} -v "$PWD/site/client-3/kit:/kit:ro" pruneseal-edge python3 -c '
        "\"import pathlib, edge_client.keys as keys; print('node', keys.load_kit(pathlib.Path('/kit')).node)\""
    )
    assert "revoked: client-2" in printed
    fingerprint = next(line.strip() for line in told.splitlines() if line.startswith("    "))
    assert f"client-3.tar.gz (enrolled, {fingerprint})" in printed
    assert "enrolled clients: 1; none of their own keys is here" in printed
    assert "node 3" in printed
    assert (site.folder / "kits" / "client-0.tar.gz").read_bytes() == before
    site.wait("the revocation", lambda: "node client-2 is revoked" in site.logs("nodes"), 60)
    # Before their keys are registered all SuperNodes are refused, so what counts is what the logs say from now on.
    refused = "Exit Code: 305"
    revoked, other = (site.logs(name) for name in ("supernode-2", "supernode-0"))
    site.compose("restart", "--timeout", "30", "supernode-2", "supernode-0")
    site.wait("the refusal", lambda: site.logs("supernode-2").count(refused) > revoked.count(refused), 120)
    site.wait("the other node", lambda: site.logs("supernode-0").count(ACCEPTED) > other.count(ACCEPTED), 120)
    assert site.logs("supernode-2").count(ACCEPTED) == revoked.count(ACCEPTED)
    assert site.logs("supernode-0").count(refused) == other.count(refused)
