"""``benchmarks.accuracy``: cells that are kept, groups over seeds, checks, pages."""

import json
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import accuracy, tasks
from benchmarks.accuracy import Options, report, restore, run_all, run_cell
from benchmarks.accuracy_report import Group, checks, groups, pairs
from benchmarks.cells import HEADLINE, Cell
from benchmarks.tasks import TASKS, Task
from edge_client.learning.data import DataSet
from protocol.errors import ConfigError, DataError
from tests.edge_client.federation import TINY_DATA, TINY_MODEL
from tests.waiting import wait_for

TINY = Task("tiny", TINY_DATA, TINY_MODEL, 4, {"group": "a group per client"}, {"epochs": 1, "batch_size": 8})
CELL = Cell("tiny", "fedsparsify-local", 0.5, "group", 3, rounds=3)


@pytest.fixture(autouse=True)
def tiny_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "tiny", TINY)


def options(tmp_path: Path) -> Options:
    return Options(None, (), 1, 0, tmp_path / "work", tmp_path / "out", "the command")


def test_a_cell_is_run_once_and_then_read(tmp_path: Path) -> None:
    found = run_cell(CELL, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-group-fedsparsify-local-0.5-r3-s3.json"]
    assert len(found["accuracy"]) == len(found["sparsity"]) == len(found["uplink"]) == 3
    assert found["sparsity"][-1] >= 0.5
    assert found["vote_bytes"][0] == 0 < found["vote_bytes"][1]
    assert run_cell(CELL, None, tmp_path) == json.loads(json.dumps(found))


def test_a_cell_of_another_plan_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cell(CELL, None, tmp_path)
    monkeypatch.setitem(TASKS, "tiny", replace(TINY, settings={"epochs": 2, "batch_size": 8}))
    with pytest.raises(ConfigError, match="was made under another plan"):
        run_cell(CELL, None, tmp_path)


def test_settings_that_plans_have_gained_since_count_as_their_defaults(tmp_path: Path) -> None:
    run_cell(CELL, None, tmp_path)
    (file,) = tmp_path.iterdir()
    stored = json.loads(file.read_text())
    del stored["plan"]["granularity"]
    file.write_text(json.dumps(stored))
    assert run_cell(CELL, None, tmp_path)["accuracy"] == stored["accuracy"]


def cell_run(cell: Cell, data: str | None, work: Path) -> None:
    """Stands for a cell, in a process of the pool: says that it has begun, and fails if it is the first."""
    (work / str(cell.seed)).touch()
    if cell.seed == 0:
        raise DataError("no rows")
    wait_for((work.parent / "all are cancelled").exists)


@pytest.mark.slow
def test_after_a_cell_that_fails_few_others_are_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "run_cell", cell_run)
    made = replace(options(tmp_path), cells=tuple(replace(CELL, seed=seed) for seed in range(12)))
    made.work.mkdir()
    cancelled: list[Future[None]] = []
    cancel = Future.cancel

    def noted(future: Future[None]) -> bool:
        cancelled.append(future)
        if len(cancelled) == len(made.cells):
            (tmp_path / "all are cancelled").touch()
        return cancel(future)

    monkeypatch.setattr(Future, "cancel", noted)
    with pytest.raises(DataError, match="no rows"):
        run_all(made)
    assert len(list(made.work.iterdir())) <= 4, "but for those that were on their way to the process"


def test_the_page_names_every_cell_and_is_made_of_all_files(tmp_path: Path) -> None:
    made = options(tmp_path)
    with pytest.raises(ConfigError, match="holds no cells yet"):
        report(made)
    for cell in (CELL, replace(CELL, seed=4), replace(CELL, method="fedavg", sparsity=0.0)):
        run_cell(cell, None, made.work)
    result = report(made)
    page = (made.out / "accuracy.md").read_text()
    assert "## tiny, a group per client, 3 rounds" in page
    assert "## The 3 cells" in page
    assert all(f"* {path.stem}\n" in page for path in made.work.iterdir())
    row = next(line for line in page.splitlines() if line.startswith("| fedsparsify-local | 0.5 |"))
    assert row.endswith("| 2 |")
    assert json.loads((made.out / "accuracy.json").read_text())["cells"] == result["cells"]
    assert all((made.out / f"accuracy-{kind}.svg").stat().st_size > 1000 for kind in ("sparsity", "uplink"))


def test_cells_that_the_results_hold_are_not_run_again(tmp_path: Path) -> None:
    made = options(tmp_path)
    found = run_cell(CELL, None, made.work)
    report(made)
    (file,) = made.work.iterdir()
    content = file.read_bytes()
    elsewhere = replace(made, work=tmp_path / "elsewhere")
    restore(elsewhere)
    (restored,) = elsewhere.work.iterdir()
    assert (restored.name, restored.read_bytes()) == (file.name, content)
    assert run_cell(CELL, None, elsewhere.work) == json.loads(json.dumps(found))
    restored.write_text("mine")
    restore(elsewhere)
    assert restored.read_text() == "mine"
    restore(replace(made, out=tmp_path / "nowhere"))


def option(cell: Cell, name: str) -> object:
    return dict(cell.plan(None).options)[name]


def synthetic(cell: Cell, accuracies: list[float], uplink: float = 100, **more: Any) -> dict[str, Any]:
    rounds = len(accuracies)
    return {
        "cell": asdict(cell), "accuracy": accuracies, "sparsity": [0.0] * rounds, "uplink": [uplink] * rounds,
        "dense_uplink": 400 * rounds, **more,
    }  # fmt: skip


def test_cells_are_grouped_over_seeds_with_the_accuracy_of_the_last_round() -> None:
    cells = [synthetic(replace(CELL, seed=seed), [0.1, seed / 10]) for seed in (5, 3)]
    (group,) = groups(cells).values()
    assert group == Group((0.3, 0.5), 0.0, 200.0, 800.0, 0.0, None, (3, 5))
    assert group.mean == pytest.approx(0.4)


def test_cells_of_different_rounds_are_never_one_group() -> None:
    cells = [synthetic(replace(CELL, rounds=rounds), [0.5] * rounds) for rounds in (2, 3)]
    assert [(key.rounds, group.seeds) for key, group in groups(cells).items()] == [(2, (3,)), (3, (3,))]


def test_a_cell_with_another_beta_is_a_group_of_its_own_and_says_so() -> None:
    cell = replace(CELL, powerprop=1.5)
    assert cell.name == "tiny-group-fedsparsify-local-beta1.5-0.5-r3-s3"
    assert (option(CELL, "powerprop"), option(cell, "powerprop")) == (1.0, 1.5)
    assert option(replace(CELL, method="sparsyfed"), "powerprop") == 1.25
    found = groups([synthetic(CELL, [0.5]), synthetic(cell, [0.6])])
    assert [key.label for key in found] == ["fedsparsify-local", "fedsparsify-local, beta 1.5"]
    given = ["--data", "idx:x", "--headline", "--methods", "fedsparsify-global", "--powerprop", "1.25"]
    assert {cell.powerprop for cell in accuracy._options(given).cells} == {1.25}
    cells = accuracy._options(["--data", "idx:x", "--headline", "--powerprop", "1.25"]).cells
    assert {cell.method for cell in cells if not cell.powerprop} == {"sparsyfed", "spafl"}


def test_a_cell_with_another_allocation_is_a_group_of_its_own_and_says_so() -> None:
    cell = replace(CELL, allocation="erk")
    assert cell.name == "tiny-group-fedsparsify-local-erk-0.5-r3-s3"
    assert replace(cell, powerprop=1.5).name == "tiny-group-fedsparsify-local-erk-beta1.5-0.5-r3-s3"
    assert (option(CELL, "allocation"), option(cell, "allocation")) == ("global", "erk")
    found = groups([synthetic(CELL, [0.5]), synthetic(cell, [0.6]), synthetic(replace(cell, powerprop=1.5), [0.7])])
    labels = [key.label for key in found]
    assert labels == ["fedsparsify-local", "fedsparsify-local, erk", "fedsparsify-local, erk, beta 1.5"]
    cells = accuracy._options(["--data", "idx:x", "--methods", "fedavg", "topk", "--allocation", "erk"]).cells
    assert {(cell.method, cell.allocation) for cell in cells} == {("fedavg", ""), ("topk", "erk")}


def test_cells_at_another_learning_rate_have_tables_and_checks_of_their_own() -> None:
    cell = replace(CELL, learning_rate=0.02)
    assert cell.name == "tiny-group-fedsparsify-local-0.5-lr0.02-r3-s3"
    assert (CELL.plan(None).learning_rate, cell.plan(None).learning_rate) == (0.1, 0.02)
    dense, sparse = (
        Cell("fashion", "fedavg", 0.0, "iid", 1, 1),
        Cell("fashion", "fedsparsify-global", 0.95, "iid", 1, 1),
    )
    slow = [replace(one, learning_rate=0.02) for one in (dense, sparse)]
    assert replace(dense, method="spafl").plan("idx:x").learning_rate == 0.02
    assert replace(dense, method="spafl", learning_rate=0.3).plan("idx:x").learning_rate == 0.3
    found = groups([synthetic(one, [value]) for one, value in zip([dense, *slow], [0.9, 0.8, 0.795], strict=True)])
    (check,) = checks(found)
    assert check["check"].endswith("(IID), 1 rounds, learning rate 0.02")
    assert check["found"] == pytest.approx(0.5)
    given = accuracy._options(["--data", "idx:x", "--headline", "--learning-rate", "0.02"]).cells
    assert {one.learning_rate for one in given} == {0.02}


def test_a_claim_is_checked_only_where_its_cells_are_there_and_can_fail() -> None:
    dense = synthetic(Cell("fashion", "fedavg", 0.0, "iid", 1, 1), [0.90], uplink=1000)
    sparse = synthetic(Cell("fashion", "fedsparsify-global", 0.95, "iid", 1, 1), [0.88])
    better = synthetic(Cell("fashion", "fedsparsify-local", 0.95, "iid", 1, 1), [0.895], uplink=125, vote_bytes=[25])
    assert checks(groups([dense])) == []
    assert [check["holds"] for check in checks(groups([dense, sparse]))] == [False]
    found = checks(groups([dense, sparse, better]))
    assert [(round(check["found"], 6), check["holds"]) for check in found] == [(0.5, True), (0.25, True)]
    lucky = synthetic(Cell("fashion", "fedsparsify-global", 0.95, "iid", 2, 1), [0.99])
    assert checks(groups([dense, lucky])) == []
    tuned = synthetic(Cell("fashion", "fedsparsify-global", 0.95, "iid", 1, 1, powerprop=1.5), [0.99])
    assert [check["holds"] for check in checks(groups([dense, sparse, tuned]))] == [False]
    erk = synthetic(Cell("fashion", "fedsparsify-global", 0.95, "iid", 1, 1, allocation="erk"), [0.895])
    assert [check["holds"] for check in checks(groups([dense, sparse, erk]))] == [True]
    spafl = synthetic(Cell("fashion", "spafl", 0.0, "iid", 1, 1), [0.8], uplink=11)
    assert [check["holds"] for check in checks(groups([dense, spafl]))] == [False]
    skewed = [
        synthetic(Cell("fashion", method, 0.95, "dirichlet:0.1", 1, 1), [value])
        for method, value in (("sparsyfed", 0.7), ("topk", 0.6))
    ]
    assert [check["holds"] for check in checks(groups(skewed))] == [True]


def test_an_encrypted_cell_is_set_beside_the_same_in_the_clear() -> None:
    clear = synthetic(CELL, [0.5, 0.6])
    same = synthetic(replace(CELL, encrypted=True), [0.5, 0.6], verified={"values": 7})
    other = synthetic(replace(CELL, encrypted=True), [0.504, 0.6], uplink=99, verified={"values": 7})
    assert pairs([clear]) == pairs([same]) == []
    assert [(pair["holds"], pair["same_bytes"]) for pair in (*pairs([clear, same]), *pairs([clear, other]))] == [
        (True, True), (False, False)
    ]  # fmt: skip


def test_the_headline_is_its_cells_with_three_seeds_one_after_another() -> None:
    cells = accuracy._options(["--data", "idx:x", "--headline", "--rounds", "60"]).cells
    assert [(cell.method, cell.sparsity, cell.partition, cell.allocation) for cell in cells] == [*HEADLINE] * 3
    assert [cell.seed for cell in cells] == [1990] * len(HEADLINE) + [1991] * len(HEADLINE) + [1992] * len(HEADLINE)
    assert {cell.rounds for cell in cells} == {60}
    with pytest.raises(SystemExit):
        accuracy._options(["--headline", "--task", "activity"])


def test_a_grid_has_one_seed_and_no_cell_twice() -> None:
    cells = accuracy._options(["--data", "idx:x", "--methods", "fedavg", "topk"]).cells
    assert len(set(cells)) == len(cells) == 3 + 3 * 4
    assert {cell.seed for cell in cells} == {1990}


def test_the_printed_command_leaves_folders_out() -> None:
    given = ["--data", "idx:/somewhere", "--work", "/w", "--rounds", "4", "--workers", "1", "--out", "/o"]
    assert accuracy._options(given).command == "python -m benchmarks.accuracy --data idx:DIR --rounds 4"


def test_fashion_needs_its_data_named() -> None:
    with pytest.raises(ConfigError, match="Fashion-MNIST needs --data"):
        Cell("fashion", "fedavg", 0.0, "iid", 1, 2).plan(None)


def test_the_validation_rows_are_training_rows_that_nobody_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="set PRUNESEAL_BENCH_DATA to the folder that holds the four files"):
        tasks.fashion_validation()
    monkeypatch.setenv(tasks.FOLDER, str(tmp_path))
    x, y = np.arange(40, dtype=np.float32)[:, None, None], np.arange(40) % 10
    given = DataSet("d", x, y, x[:4] - 100, y[:4], 10)
    monkeypatch.setattr(tasks, "load", {f"idx:{tmp_path}": given}.__getitem__)
    data = tasks.fashion_validation()
    assert (len(data.train_y), len(data.test_y)) == (36, 4)
    assert sorted([*data.train_x.ravel(), *data.test_x.ravel()]) == [*range(40)]
    assert all((part % 10 == labels).all() for part, labels in (
        (data.train_x.ravel(), data.train_y), (data.test_x.ravel(), data.test_y)
    ))  # fmt: skip
    assert (tasks.fashion_validation().test_x == data.test_x).all()


def test_a_window_of_the_activity_data_lies_in_one_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = np.repeat([1, 1, 2, 23], [200, 150, 130, 128]).astype(np.uint8)
    execution = np.repeat([1, 2, 1, 1], [200, 150, 130, 128]).astype(np.uint8)
    x = np.repeat(np.arange(4, dtype=np.float32), [200, 150, 130, 128])[:, None] * np.ones(6, np.float32)
    y = (np.arange(608) % 5 > 2).astype(np.uint8)
    np.savez(
        tmp_path / "spsw_har.npz", x=x, y=y, t=np.arange(608), subject=subject, execution=execution,
        device=np.zeros(608, np.uint8),
    )  # fmt: skip
    with pytest.raises(DataError, match="set PRUNESEAL_BENCH_DATA to the folder that holds spsw_har"):
        tasks.activity()
    monkeypatch.setenv(tasks.FOLDER, str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="missing file"):
        tasks.activity()
    monkeypatch.setenv(tasks.FOLDER, str(tmp_path))
    data = tasks.activity()
    assert data.train_x.shape == (2 + 1 + 1, 6, 128)
    assert data.test_x.shape == (1, 6, 128)
    assert (data.train_x == data.train_x[:, :, :1]).all()
    assert data.train_x[:, 3, 0].tolist() == [0, 0, 1, 2]
    assert data.train_x[3, 0, 0] == pytest.approx(2 / 9.80665)
    assert data.groups is not None
    assert data.groups.tolist() == [1, 1, 1, 2]
    assert set(data.train_y) == {0}
    assert tasks.activity_network((6, 128), 5)(torch.from_numpy(data.test_x)).shape == (1, 5)
