"""``aggregator.endpoint`` and ``aggregator.metrics``: what is asked over HTTP is read from the run's folder."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aggregator.app import log_and_status
from aggregator.endpoint import endpoint, hindrances
from aggregator.journal import Journal
from aggregator.rounds import Run
from aggregator.settings import AggregatorSettings
from aggregator.status import STATUS_FILE
from protocol.errors import ConfigError, QuorumError
from tests.aggregator.stub_grid import TRAIN, Scene, make_scene, sends_nothing, small_plan
from tests.factories import write_roster

Samples = dict[tuple[str, str], float]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = make_scene(tmp_path / "run", monkeypatch, small_plan(rounds=2), 4)
    write_roster(tmp_path, made.roster)
    return made


@pytest.fixture
def settings(scene: Scene) -> AggregatorSettings:
    return AggregatorSettings(scene.folder.parent / "roster.json", scene.folder)


@pytest.fixture
def trouble() -> list[str]:
    """What the service finds wrong."""
    return []


@pytest.fixture
def url(settings: AggregatorSettings, trouble: list[str]) -> Iterator[str]:
    with endpoint("127.0.0.1", 0, settings, lambda: trouble) as port:
        yield f"http://127.0.0.1:{port}"


def run(scene: Scene, settings: AggregatorSettings) -> None:
    journal = Journal(scene.folder, scene.plan)
    with journal.held(), log_and_status(settings, scene.plan, journal) as observer:
        Run(scene.grid, scene.plan, scene.roster, journal, observer).run()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # our own endpoint
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code), error.read().decode()


def scrape(url: str) -> Samples:
    """The samples by name and by the value of their only label, if any."""
    text = get(f"{url}/metrics")[1]
    families = text_string_to_metric_families(text)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_before_a_run_it_is_alive_ready_and_has_counted_nothing(url: str) -> None:
    assert get(f"{url}/live") == (200, "alive\n")
    assert get(f"{url}/ready") == (200, "ready\n")
    assert json.loads(get(f"{url}/status")[1]) == {
        "status": None,
        "held": False,
        "trouble": [],
        "rounds": [],
        "absences": {},
    }
    samples = scrape(url)
    assert samples["pruneseal_up", ""] == 0
    assert samples["pruneseal_rounds_total", ""] == 0


def test_the_metrics_are_those_of_the_journal(scene: Scene, settings: AggregatorSettings, url: str) -> None:
    scene.grid.when(TRAIN, sends_nothing, 5, round=2)
    run(scene, settings)
    records = [json.loads(line) for line in (scene.folder / "metrics.jsonl").read_text().splitlines()]
    samples = scrape(url)
    assert samples["pruneseal_rounds_total", ""] == samples["pruneseal_rounds_planned", ""] == 2
    assert samples["pruneseal_cohort", ""] == records[-1]["cohort"] == 3
    assert samples["pruneseal_dropped_clients_total", ""] == 1
    assert samples["pruneseal_refused_total", "MalformedMessage"] == 1
    for name in ("uplink_bytes", "downlink_bytes"):
        assert samples[f"pruneseal_{name}_total", ""] == sum(record[name] for record in records)
    for phase in ("train", "contribute", "add"):
        spent = sum(record["seconds"][phase] for record in records)
        assert samples["pruneseal_seconds_total", phase] == pytest.approx(spent)
    assert samples["pruneseal_run_state", "finished"] == 1
    assert samples["pruneseal_run_state", "running"] == 0
    assert samples["pruneseal_nodes_online", ""] == 4
    assert samples["pruneseal_disk_free_bytes", ""] > 0


def test_while_a_process_holds_the_run_it_is_up(scene: Scene, url: str) -> None:
    with Journal(scene.folder, scene.plan).held():
        assert scrape(url)["pruneseal_up", ""] == 1
    assert scrape(url)["pruneseal_up", ""] == 0


def test_a_second_process_cannot_run_the_same_rounds(
    scene: Scene, settings: AggregatorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.journal._LOCK_SECONDS", 0.1)
    with Journal(scene.folder, scene.plan).held(), pytest.raises(ConfigError, match="another process runs the rounds"):
        run(scene, settings)


def test_a_failed_run_is_alive_but_not_ready_and_says_what_to_do(
    scene: Scene, settings: AggregatorSettings, url: str, trouble: list[str]
) -> None:
    scene.grid.when(TRAIN, sends_nothing, 2, 3, 5, 8)
    with pytest.raises(QuorumError):
        run(scene, settings)
    code, text = get(f"{url}/ready")
    assert code == 503
    assert "resume the run" in text
    trouble.append("the SuperLink is away")
    assert "the SuperLink is away" in get(f"{url}/ready")[1]
    assert get(f"{url}/live")[0] == 200
    found = json.loads(get(f"{url}/status")[1])
    assert found["status"]["state"] == "failed"
    assert found["trouble"] == ["the SuperLink is away"]


def test_what_hinders_it_is_named(
    settings: AggregatorSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert hindrances(settings) == []
    assert "cannot be read" in hindrances(replace(settings, roster=tmp_path / "none.json"))[0]
    (tmp_path / "file").write_text("")
    assert "cannot be used" in hindrances(replace(settings, state=tmp_path / "file"))[0]
    monkeypatch.setattr("aggregator.endpoint.SPARE_BYTES", 1 << 62)
    assert "make space" in hindrances(settings)[0]


def test_a_damaged_status_is_an_error_of_the_endpoint_not_its_end(scene: Scene, url: str) -> None:
    scene.folder.mkdir()
    (scene.folder / STATUS_FILE).write_text("{")
    for path in ("status", "metrics"):
        code, text = get(f"{url}/{path}")
        assert code == 500
        assert "is damaged" in text
    assert get(f"{url}/ready")[0] == 503
    assert get(f"{url}/live")[0] == 200


def test_other_paths_and_methods_are_not_served(url: str) -> None:
    assert get(f"{url}/v1/control")[0] == 404
    request = urllib.request.Request(f"{url}/metrics", data=b"x", method="POST")  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="501") as refused:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310
    refused.value.close()


def test_an_address_in_use_is_a_clear_error(settings: AggregatorSettings, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with (
        pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"),
        endpoint("127.0.0.1", port, settings, list),
    ):
        raise AssertionError("it listens twice")
