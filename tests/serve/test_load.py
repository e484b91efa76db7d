"""Many clients at once: no request is lost, none gets another's answer, whatever is loaded meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from tests.serve.serving import expected, linear, request, rows, save, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

Array = NDArray[Any]

CLIENTS, REQUESTS = 16, 2000


def ask(module: Any, address: str, samples: Array, first: int) -> list[tuple[int, str, Array]]:
    """Send every 16th sample, from ``first`` on; which it was, the version that answered, and the answer."""
    answers = []
    with module.InferenceServerClient(address) as client:
        for k in range(first, len(samples), CLIENTS):
            tensor = module.InferInput("input", [1, *samples.shape[1:]], "FP32")
            tensor.set_data_from_numpy(samples[k : k + 1])
            result = client.infer("m", [tensor])
            response = result.get_response()
            version = response["model_version"] if isinstance(response, dict) else response.model_version
            answers.append((k, version, result.as_numpy("logits")))
    return answers


def from_all(module: Any, address: str, samples: Array) -> list[tuple[int, str, Array]]:
    """The answers that 16 clients get at the same time."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = pool.map(lambda first: ask(module, address, samples, first), range(CLIENTS))
        return [answer for part in parts for answer in part]


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_every_request_of_sixteen_clients_is_answered_as_if_it_were_alone(tmp_path: Path, module: Any) -> None:
    model, samples = linear(), rows(REQUESTS)
    with serving(save(model, tmp_path / "m.onnx"), "--batch-wait", "20") as server:
        answers = from_all(module, server.http if module is tritonclient.http else server.grpc, samples)
        metrics = server.call("GET", "/metrics")[1].decode()
    assert sorted(k for k, _, _ in answers) == [*range(REQUESTS)]
    wanted = expected(model, samples)
    assert all(np.allclose(answer[0], wanted[k], rtol=1e-5, atol=1e-5) for k, _, answer in answers)
    counted = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line[0] != "#"}
    batches = counted['pruneseal_batch_rows_count{model="m",version="1"}']
    assert counted['pruneseal_batch_rows_sum{model="m",version="1"}'] == REQUESTS
    assert batches < REQUESTS / 2, "requests that came together did not run together"


def changing(root: Path, ended: threading.Event, loaded: Callable[[str], bool]) -> None:
    """Add versions, replace one, add a broken one, and remove the first, while requests run."""
    for version in ("2", "3"):
        save(linear(seed=int(version)), root / f"{version}.tmp").rename(folder(root, version) / "model.onnx")
        wait_for(lambda version=version: loaded(version) or ended.is_set())  # type: ignore[misc]
    (folder(root, "4") / "model.onnx").write_bytes(b"broken")
    (root / "m" / "1" / "model.onnx").unlink()


def folder(root: Path, version: str) -> Path:
    path = root / "m" / version
    path.mkdir()
    return path


def test_new_versions_during_the_load_lose_no_request(tmp_path: Path) -> None:
    samples, ended = rows(REQUESTS), threading.Event()
    save(linear(seed=1), tmp_path / "m" / "1" / "model.onnx")
    with serving(tmp_path) as server:

        def loaded(version: str) -> bool:
            return any(line["version"] == version for line in server.events("a model is loaded"))

        changer = threading.Thread(target=changing, args=(tmp_path, ended, loaded))
        changer.start()
        answers: list[tuple[int, str, Array]] = []
        rounds = 0
        while rounds == 0 or changer.is_alive():
            answers += from_all(tritonclient.http, server.http, samples)
            rounds += 1
        ended.set()
        changer.join()
        wait_for(lambda: bool(server.events("a model is removed")) and bool(server.events("a model is not loaded")))
        answers += from_all(tritonclient.http, server.http, samples[:CLIENTS])
        ready = server.json("/v2/models/m")
    assert ready["versions"] == ["2", "3"]
    assert len(answers) == rounds * REQUESTS + CLIENTS
    wanted = {str(version): expected(linear(seed=version), samples) for version in (1, 2, 3)}
    assert all(np.allclose(answer[0], wanted[version][k], rtol=1e-5, atol=1e-5) for k, version, answer in answers)
    assert {version for _, version, _ in answers} == {"1", "2", "3"}


def test_what_has_arrived_is_answered_before_the_server_ends(tmp_path: Path) -> None:
    model, sample = linear(), rows(1)
    with serving(save(model, tmp_path / "m.onnx"), "--batch-wait", "3000") as server, ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(ask, module, address, sample, 0)
            for module, address in ((tritonclient.http, server.http), (tritonclient.grpc, server.grpc))
        ]
        both = b'pruneseal_queue_rows{model="m",version="1"} 2.0'
        wait_for(lambda: both in server.call("GET", "/metrics")[1])
        server.process.terminate()
        answers = [one.result() for one in asked]
    assert all(np.allclose(answer[0][2], expected(model, sample), rtol=1e-5) for answer in answers)


def test_a_full_queue_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    options = ("--batch-wait", "2000", "--max-batch", "8", "--queue", "8")
    with serving(save(linear(), tmp_path / "linear.onnx"), *options) as server, ThreadPoolExecutor(6) as pool:
        statuses = [*pool.map(lambda _: server.infer(request(rows(3)))[0], range(6))]
        assert server.infer(request(rows(3)))[0] == 200
    assert set(statuses) == {200, 503}
