"""Attack: the aggregator, alone and without a key, adds chosen integers to a sum, or makes another sum of what it has.

BFV ciphertexts can be added to and multiplied by whoever holds them: a multiple of q / t added to a coefficient changes
one lane of what all clients decrypt, however well it is encrypted. Property P6: every client refuses it.

What no client can tell is which of two whole sums of one round it is handed, where the aggregator had both attempts
completed: either is the sum of all that its members gave. Clients that are handed different ones disagree in the next
round.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.client import Client
from protocol.call import Call
from protocol.ciphertext import restore, truncate
from protocol.cohort import gather_cohort
from protocol.errors import MalformedMessage, PeerError, PeerMismatch, Spoiled
from protocol.parameters import DEGREE, MODULUS
from protocol.wire import Aggregate, Contribution, decode_aggregate, decode_contribution, encode_aggregate
from tests.edge_client.federation import (
    RUN,
    Federation,
    Played,
    federation,
    invitation,
    play_round,
    tiny_plan,
)
from tests.edge_client.tampering import unmasked
from tests.edge_client.tiny import PARAMETERS

PLAN = tiny_plan(method="fedsparsify-local", first_prune=0)
P = PLAN.parameters
T, R = P.plain_modulus, P.grid.radix
VALUES = PARAMETERS
VOTE = P.values.slots(VALUES + P.trailing)
USED = P.slots(VALUES, VALUES)
COUNT, TAG = VALUES // P.fields, USED - P.tags
ONE_COUNTED = R ** (VALUES % P.fields)
REFUSED = re.compile("the sum of its clients|no member of the cohort vouches|counts do not fit")


@dataclass(frozen=True)
class Siege:
    """Three clients with kits and states on disk, their first round in two attempts, and whoever added it up."""

    fed: Federation
    clients: Mapping[int, Client]
    attempts: Sequence[Played]
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    def honest(self, attempt: int = 2) -> Aggregate:
        """The true sum of an attempt, with its second half in full: an aggregator may send it so to anybody."""
        return self.summed(self.sent(attempt), self.head(attempt))

    def head(self, attempt: int = 2) -> Aggregate:
        """What the clients of an attempt were handed."""
        return decode_aggregate(self.attempts[attempt - 1].aggregate, P)

    def sent(self, attempt: int = 2) -> list[Contribution]:
        """The contributions to an attempt."""
        played = self.attempts[attempt - 1]
        return [
            decode_contribution(played.sent[member.node].frames["contribution"], member, 3, P, self.fed.roster)
            for member in played.cohort.members
        ]

    def summed(self, sent: Sequence[Contribution], head: Aggregate, **changes: Any) -> Aggregate:
        """Any of these contributions, any number of times, without the masks of their own, under this head."""
        played = self.attempts[sent[0].attempt - 1]
        first, second = unmasked(P, [(each.node, each) for each in sent], played.secrets, sent[0].cohort)
        return replace(head, first=first, second=second, **changes)

    def ask(self, aggregate: Aggregate) -> "list[bytes | PeerError]":
        """What every client answers to a next round that begins with this sum: its attendance, or why it refuses."""
        call, data, answers = Call(RUN, 2, next(self.numbers)), encode_aggregate(aggregate, P), []
        for client in self.clients.values():
            answer: bytes | PeerError
            try:
                answer = client.train(call, invitation(self.clients, data)).frames["attendance"]
            except PeerError as refusal:
                answer = refusal
            answers.append(answer)
        return answers

    def refused(self, aggregate: Aggregate) -> bool:
        """Whether every client says that this is not the sum that members of its cohort have released."""
        answers, kinds = self.ask(aggregate), (MalformedMessage, Spoiled)
        return all(type(answer) in kinds and REFUSED.search(str(answer)) for answer in answers)

    def accepted(self, aggregate: Aggregate) -> bool:
        return all(isinstance(answer, bytes) for answer in self.ask(aggregate))


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Siege:
    fed = federation(PLAN, nodes=3)
    clients = fed.clients(tmp_path_factory.mktemp("siege"))
    return Siege(fed, clients, [play_round(clients, fed, 1, b"", attempt) for attempt in (1, 2)])


def add(honest: Aggregate, changes: Mapping[int, int]) -> Aggregate:
    """Add an integer to the plaintext of each of these slots, by the public parameters alone."""
    first = restore(honest.first, P.drop_down)
    for slot, number in changes.items():
        first[slot] = (int(first[slot]) + round(MODULUS * (number % T) / T)) % MODULUS
    return replace(honest, first=truncate(first, P.drop_down))


# --- the controls -------------------------------------------------------------------------------


def test_the_honest_sum_is_accepted_in_the_form_in_which_tampered_ones_are_sent(siege: Siege) -> None:
    honest = siege.honest()
    assert (honest.values, honest.votes, honest.first.size) == (VALUES, VALUES, USED)
    assert siege.accepted(honest)


def test_what_was_added_and_taken_away_again_leaves_the_honest_sum(siege: Siege) -> None:
    """So the way in which something is added below is a way that works."""
    changes = {0: 7, COUNT: ONE_COUNTED, VOTE: 1, TAG: T // 3}
    assert siege.refused(there := add(siege.honest(), changes))
    assert siege.accepted(add(there, {slot: -number for slot, number in changes.items()}))


# --- something is added -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({0: 1}, id="one lane by the least step"),
        pytest.param({0: -1}, id="one lane the other way"),
        pytest.param({0: 100}, id="one lane, so that a class wins"),
        pytest.param({3: R}, id="the second lane of a slot"),
        pytest.param({3: R**2 - R}, id="two lanes against each other"),
        pytest.param({0: 5, 7: -5}, id="two slots against each other"),
        pytest.param(dict.fromkeys(range(COUNT), 1), id="every value alike"),
        pytest.param({COUNT: ONE_COUNTED}, id="the count"),
        pytest.param({COUNT: -ONE_COUNTED}, id="the count, one client less"),
        pytest.param({VOTE: 1}, id="one vote more"),
        pytest.param({VOTE: -1}, id="one vote less"),
        pytest.param({TAG: 1}, id="the first tag"),
        pytest.param({USED - 1: T // 2}, id="the last tag"),
        pytest.param(dict.fromkeys(range(TAG, USED), 1), id="all tags"),
        pytest.param({0: 1, TAG: 1}, id="a lane and a tag"),
    ],
)
def test_whatever_is_added_to_a_sum_every_client_refuses_it(changes: dict[int, int], siege: Siege) -> None:
    assert siege.refused(add(siege.honest(), changes))


@settings(max_examples=20)
@given(st.dictionaries(st.integers(0, USED - 1), st.integers(1, T - 1), min_size=1, max_size=4))
def test_any_integers_in_any_slots_are_refused(siege: Siege, changes: dict[int, int]) -> None:
    assert siege.refused(add(siege.honest(), changes))


# --- another sum is made ------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [3, 6])
@pytest.mark.parametrize("times", [0, 2])
def test_a_multiple_of_the_sum_is_refused_also_where_it_claims_as_many_clients(
    times: int, clients: int, siege: Siege
) -> None:
    """Six clients may take part, so that twice three fit in every lane: masks, count and votes all hold."""
    sent = siege.sent() * times
    if not sent:
        honest = siege.honest()
        nothing = replace(honest, first=np.zeros_like(honest.first), second=np.zeros((1, DEGREE), np.uint64))
        assert siege.refused(replace(nothing, clients=clients))
        return
    assert siege.refused(siege.summed(sent, siege.honest(), clients=clients))


def test_twice_the_sum_in_the_form_of_seeds_is_refused(siege: Siege) -> None:
    seeds = decode_aggregate(siege.attempts[1].aggregate, P)
    assert isinstance(seeds.second, tuple)
    twice = siege.summed(siege.sent() * 2, seeds)
    doubled = replace(twice, clients=6, second=tuple(block * 2 for block in seeds.second))
    assert siege.refused(doubled)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, VOTE), (TAG, TAG + 1), (0, TAG)])
def test_two_slots_in_each_others_place_are_refused(one: int, other: int, siege: Siege) -> None:
    honest = siege.honest()
    first = honest.first.copy()
    first[[one, other]] = first[[other, one]]
    assert siege.refused(replace(honest, first=first))


@pytest.mark.parametrize("by", [1, 2, DEGREE - 1])
def test_a_sum_that_is_turned_by_a_power_of_x_is_refused(by: int, siege: Siege) -> None:
    """Multiplied by x^k, which costs no noise, every slot moves k places, and those that leave return negated."""
    honest = siege.honest()
    assert isinstance(honest.second, np.ndarray)
    first = np.zeros((1, DEGREE), np.uint64)
    first[0, :USED] = restore(honest.first, P.drop_down)

    def turned(words: "np.ndarray[Any, np.dtype[np.uint64]]") -> "np.ndarray[Any, np.dtype[np.uint64]]":
        moved = np.roll(words, by)
        moved[:, :by] = (np.uint64(MODULUS) - moved[:, :by]) % np.uint64(MODULUS)
        return moved

    used = truncate(turned(first)[0, :USED], P.drop_down)
    assert siege.refused(replace(honest, first=used, second=turned(honest.second)))


@pytest.mark.parametrize("clients", [3, 6])
@pytest.mark.parametrize("head", [1, 2])
def test_the_sum_of_two_attempts_is_refused(head: int, clients: int, siege: Siege) -> None:
    one, other = siege.honest(1), siege.honest(2)
    first = restore(one.first, P.drop_down) + restore(other.first, P.drop_down)
    second = (one.second + other.second) % np.uint64(MODULUS)  # type: ignore[operator]
    added = truncate(first % np.uint64(MODULUS), P.drop_down)
    assert siege.refused(replace(siege.honest(head), first=added, second=second, clients=clients))


@pytest.mark.parametrize("nodes", [(0, 1), (0, 1, 1), (0, 0, 0)])
def test_the_sum_of_other_members_than_the_announced_is_refused(nodes: tuple[int, ...], siege: Siege) -> None:
    assert siege.refused(siege.summed([siege.sent()[i] for i in nodes], siege.honest()))


# --- it is passed off as another ----------------------------------------------------------------


@pytest.mark.parametrize("fields", [("cohort", "attempt"), ("cohort",), ("attempt",)])
def test_the_sum_of_one_attempt_is_refused_under_the_head_of_another(fields: tuple[str, ...], siege: Siege) -> None:
    first, second = siege.honest(1), siege.honest(2)
    for honest, other in ((first, second), (second, first)):
        assert siege.refused(replace(honest, **{name: getattr(other, name) for name in fields}))
        assert siege.accepted(honest)


def test_the_sum_of_a_round_is_refused_as_that_of_another(siege: Siege) -> None:
    for changes in ({"round": 2}, {"run": bytes(16)}):
        answers = siege.ask(replace(siege.honest(), **changes))
        assert [type(answer) for answer in answers] == [PeerMismatch] * 3


@pytest.mark.parametrize("clients", [4, 5, 6])
def test_the_sum_of_three_is_refused_as_that_of_more(clients: int, siege: Siege) -> None:
    counted = ONE_COUNTED * (clients - 3)
    assert siege.refused(replace(siege.honest(), clients=clients))
    assert siege.refused(replace(add(siege.honest(), {COUNT: counted}), clients=clients))


def test_the_whole_sums_of_two_attempts_give_the_same_model(siege: Siege) -> None:
    """A client trains once for a round and rounds alike, so there is nothing to choose between."""
    call = Call(RUN, 2, next(siege.numbers))
    both = [encode_aggregate(siege.honest(attempt), P) for attempt in (1, 2)]
    answers = [
        client.train(call, invitation(siege.clients, both[i % 2])).frames["attendance"]
        for i, client in enumerate(siege.clients.values())
    ]
    assert len(gather_cohort(answers, siege.fed.roster).members) == len(siege.clients)
