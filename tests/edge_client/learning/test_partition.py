"""``edge_client.learning.partition``: sorted, disjoint, complete and the same everywhere."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_client.learning.partition import Indices, Partition, partition
from protocol.errors import DataError

SEEDS = st.integers(0, 2**32 - 1)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=300).map(lambda labels: np.array(labels, np.int64))


def assert_sorted_and_disjoint(dealt: Partition, clients: int) -> None:
    assert len(dealt) == clients
    assert all(rows.dtype == np.int64 and rows.size > 0 and (np.diff(rows) > 0).all() for rows in dealt)
    together = np.concatenate(dealt)
    assert len(np.unique(together)) == len(together)


def assert_covers(dealt: Partition, rows: int) -> None:
    assert np.sort(np.concatenate(dealt)).tolist() == list(range(rows))


def same(one: Partition, other: Partition) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def balanced(classes: int, rows_each: int) -> Indices:
    return np.random.default_rng(7).permutation(np.repeat(np.arange(classes), rows_each))


def class_sets(dealt: Partition, labels: Indices) -> list[set[int]]:
    return [set(labels[rows].tolist()) for rows in dealt]


@given(labels=LABELS, clients=st.integers(1, 20), seed=SEEDS)
def test_iid_covers_all_rows_in_slices_that_differ_by_one_at_most(labels: Indices, clients: int, seed: int) -> None:
    assume(len(labels) >= clients)
    dealt = partition("iid", labels, None, clients, seed)
    assert_sorted_and_disjoint(dealt, clients)
    assert_covers(dealt, len(labels))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert same(dealt, partition("iid", labels, None, clients, seed))


def test_iid_and_dirichlet_follow_the_seed() -> None:
    labels = balanced(10, 100)
    for spec in ("iid", "dirichlet:0.5"):
        dealt = partition(spec, labels, None, 5, seed=1)
        assert same(dealt, partition(spec, labels, None, 5, seed=1))
        assert not same(dealt, partition(spec, labels, None, 5, seed=2))


@pytest.mark.parametrize("clients", [10, 100])
@pytest.mark.parametrize(
    ("classes", "rows_each", "chunks", "groups"),
    [
        (10, 6_000, 2, [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]),
        (10, 5_000, 5, [set(range(5)), set(range(5, 10))]),
        (100, 500, 50, [set(range(50)), set(range(50, 100))]),
    ],
    ids=["fashion-mnist", "cifar-10", "cifar-100"],
)
def test_shards_reproduce_the_class_groups_of_the_paper(
    classes: int, rows_each: int, chunks: int, groups: list[set[int]], clients: int
) -> None:
    labels = balanced(classes, rows_each)
    dealt = partition(f"shards:{chunks}", labels, None, clients, seed=0)
    assert_sorted_and_disjoint(dealt, clients)
    assert_covers(dealt, len(labels))
    assert class_sets(dealt, labels) == [group for group in groups for _ in range(clients // len(groups))]
    assert {len(rows) for rows in dealt} == {len(labels) // clients}


@given(labels=LABELS, clients=st.integers(1, 6), chunks=st.integers(1, 4), seed=SEEDS)
def test_shards_deal_equal_chunks_without_a_common_class_or_refuse(
    labels: Indices, clients: int, chunks: int, seed: int
) -> None:
    try:
        dealt = partition(f"shards:{chunks}", labels, None, clients, seed)
    except DataError:
        return  # a dead end or too few rows: the texts are tested below
    size = len(labels) // (clients * chunks)
    assert_sorted_and_disjoint(dealt, clients)
    assert {len(rows) for rows in dealt} == {size * chunks}
    by_label = np.argsort(labels, kind="stable")
    chunk_of = {int(row): place // size for place, row in enumerate(by_label)}
    for rows in dealt:
        numbers = sorted({chunk_of[row] for row in rows.tolist()})
        assert len(numbers) == chunks
        seen = [set(labels[by_label[n * size : (n + 1) * size]].tolist()) for n in numbers]
        assert sum(map(len, seen)) == len(set().union(*seen))


def test_shards_leave_out_the_rows_beyond_the_last_whole_chunk() -> None:
    labels = np.repeat(np.arange(3), [10, 10, 12])
    dealt = partition("shards:1", labels, None, 3, seed=0)
    assert [rows.tolist() for rows in dealt] == [list(range(10)), list(range(10, 20)), list(range(20, 30))]


def test_shards_that_run_into_a_dead_end_say_at_which_client() -> None:
    labels = np.repeat(np.arange(2), [30, 10])
    with pytest.raises(DataError, match=r"shards:2 fails at client 1 of 2: only 1 .* dirichlet:ALPHA"):
        partition("shards:2", labels, None, 2, seed=0)


def test_more_chunks_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="4 training rows are too few for 2 clients x 3 chunks"):
        partition("shards:3", balanced(2, 2), None, 2, seed=0)


@given(alpha=st.sampled_from(["0.1", ".5", "1", "100"]), clients=st.integers(1, 8), seed=SEEDS)
def test_dirichlet_covers_all_rows_and_gives_every_client_ten(alpha: str, clients: int, seed: int) -> None:
    labels = balanced(6, 100)
    dealt = partition(f"dirichlet:{alpha}", labels, None, clients, seed)
    assert_sorted_and_disjoint(dealt, clients)
    assert_covers(dealt, len(labels))
    assert min(map(len, dealt)) >= 10


def test_a_smaller_alpha_is_more_skewed() -> None:
    labels = balanced(10, 500)

    def largest_share(alpha: str) -> float:
        dealt = partition(f"dirichlet:{alpha}", labels, None, 5, seed=0)
        return float(np.mean([np.bincount(labels[rows]).max() / len(rows) for rows in dealt]))

    assert largest_share("0.1") > 0.3 > largest_share("1") > largest_share("1000") > 0.1


@pytest.mark.parametrize(("rows", "alpha"), [(59, "1"), (60, "0.0001")], ids=["too few rows", "too skewed"])
def test_dirichlet_gives_up_when_no_draw_feeds_every_client(rows: int, alpha: str) -> None:
    with pytest.raises(DataError, match="no draw that gives each of 6 clients 10 of the"):
        partition(f"dirichlet:{alpha}", np.arange(rows) % 2, None, 6, seed=0)


@given(
    groups=st.lists(st.integers(-3, 12), min_size=1, max_size=200).map(lambda groups: np.array(groups, np.int64)),
    clients=st.integers(1, 8),
)
def test_groups_stay_whole_and_cover_all_rows(groups: Indices, clients: int) -> None:
    assume(len(np.unique(groups)) >= clients)
    dealt = partition("group", np.zeros(len(groups), np.int64), groups, clients, seed=0)
    assert_sorted_and_disjoint(dealt, clients)
    assert_covers(dealt, len(groups))
    owned = class_sets(dealt, groups)
    assert sum(map(len, owned)) == len(set().union(*owned))


def test_groups_are_dealt_round_robin_from_the_largest() -> None:
    groups = np.repeat([40, 10, 30, 20, 50], [5, 9, 1, 5, 7])
    dealt = partition("group", np.zeros(len(groups), np.int64), groups, 2, seed=0)
    assert class_sets(dealt, groups) == [{10, 20, 30}, {50, 40}]


def test_more_clients_than_groups_are_refused() -> None:
    with pytest.raises(DataError, match="2 groups cannot be dealt to 3 clients"):
        partition("group", np.zeros(8, np.int64), np.arange(8) % 2, 3, seed=0)


def test_group_without_groups_is_refused() -> None:
    with pytest.raises(DataError, match="none"):
        partition("group", np.zeros(8, np.int64), None, 2, seed=0)


@pytest.mark.parametrize("clients", [0, -1, 5])
def test_a_number_of_clients_that_cannot_all_have_a_row_is_refused(clients: int) -> None:
    with pytest.raises(DataError, match=f"4 training rows cannot be dealt to {clients} clients"):
        partition("iid", np.arange(4), None, clients, seed=0)


@pytest.mark.parametrize(
    "spec",
    [
        *(
            "",
            "IID",
            "iid:",
            "iid:2",
            "group:1",
            "shards",
            "shards:",
            "shards:0",
            "shards:-1",
            "shards:1.5",
            "shards:٣",
        ),
        *("dirichlet", "dirichlet:", "dirichlet:-1", "dirichlet:nan", "dirichlet:1e3", "dirichlet:inf"),
    ],
)
def test_an_unknown_spec_is_refused_with_the_known_forms(spec: str) -> None:
    with pytest.raises(DataError, match=r"unknown partition .* iid; shards:C .* dirichlet:ALPHA .* group"):
        partition(spec, balanced(2, 20), np.zeros(40, np.int64), 2, seed=0)


@pytest.mark.parametrize("alpha", ["0", "0.0", "9" * 400])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha: str) -> None:
    with pytest.raises(DataError, match="positive, finite ALPHA"):
        partition(f"dirichlet:{alpha}", balanced(2, 20), None, 2, seed=0)
