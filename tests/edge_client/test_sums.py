"""``edge_client.round``: a client opens the sum of one whole cohort, each member once, and nothing else."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.cipher import RoundCipher
from edge_client.round import dither_of, quantised, terms_of
from edge_client.sums import open_sum, tag_key
from protocol.call import Call
from protocol.ciphertext import truncate
from protocol.cohort import gather_cohort
from protocol.errors import CohortRefused, MalformedMessage, PeerError, PeerMismatch
from protocol.figures import NOTHING, encode_figures
from protocol.grid import Integers, clips
from protocol.lanes import pack
from protocol.support import Support
from protocol.tag import tag
from protocol.terms import Terms, encode_terms, support_digest
from protocol.wire import Aggregate, decode_contribution, encode_aggregate
from tests.edge_client.federation import FIRST, NODES, RUN, federation
from tests.edge_client.scene import LAYOUT, PLAN, SIZE, STATE, Scene, ready
from tests.edge_client.tampering import ciphertext_sum, unmasked


def test_the_sum_of_the_whole_cohort_opens(four: Scene) -> None:
    opened = four.open(four.aggregate())
    expected = sum(
        quantised(pending, four.cohort, node, PLAN, dither_of(PLAN, FIRST, node, SIZE))[0]
        for node, pending in four.waiting.items()
    )
    assert isinstance(expected, np.ndarray)
    assert opened.values.tolist() == expected.tolist()
    assert (opened.clients, opened.votes.size) == (4, 0)


@pytest.mark.parametrize(
    ("field", "other"),
    [("run", bytes(16)), ("round", 2), ("plan", bytes(32)), ("key", bytes(16)), ("support", bytes(32))],
)
def test_an_aggregate_that_names_another_run_round_plan_key_or_support_is_refused(
    field: str, other: object, four: Scene
) -> None:
    changed: dict[str, Any] = {field: other}
    with pytest.raises(PeerMismatch) as caught:
        four.open(replace(four.aggregate(), **changed))
    assert caught.value.field == field


def test_an_aggregate_of_more_values_than_the_model_has_is_refused_before_it_is_decoded(
    four: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("it is decoded")

    frame = encode_aggregate(four.aggregate(), PLAN.parameters)
    at = 8 + 16 + 4 * 5  # prefix, run; round, attempt, clients, members, group
    assert struct.unpack_from("<2I", frame, at) == (SIZE, 0)
    monkeypatch.setattr("edge_client.sums.decode_aggregate", decode)
    for values, votes in ((LAYOUT.size + 1, 0), (0xFFFF_FFFF, 0xFFFF_FFFF), (SIZE, SIZE - 1)):
        changed = frame[:at] + struct.pack("<2I", values, votes) + frame[at + 8 :]
        with pytest.raises(PeerMismatch, match="values and votes"):
            open_sum(changed, RUN, 1, four.fed.kits[NODES[0]], PLAN, LAYOUT)


def test_an_honest_aggregate_of_another_run_round_or_plan_is_refused(four: Scene) -> None:
    aggregate = four.aggregate()
    for field, arguments in (
        ("run", {"run": bytes(16)}),
        ("round", {"round_": 2}),
        ("plan", {"plan": replace(PLAN, epochs=9)}),
    ):
        changed: dict[str, Any] = arguments
        with pytest.raises(PeerMismatch) as caught:
            four.open(aggregate, **changed)
        assert caught.value.field == field


def test_an_aggregate_of_another_federation_does_not_open_even_if_it_names_this_ones_key(four: Scene) -> None:
    other = federation(PLAN, secret=bytes(32))
    waiting = {node: ready(kit) for node, kit in other.kits.items()}
    cohort = gather_cohort([p.attendance for p in waiting.values()], other.roster)
    foreign = Scene(other, waiting, cohort).aggregate()
    with pytest.raises(PeerMismatch) as caught:
        four.open(foreign)
    assert caught.value.field == "key"
    ours = four.vouched(replace(foreign, key=four.fed.roster.key_id(RUN, 1)))
    with pytest.raises(MalformedMessage, match="not made with this cohort secret"):
        four.open(ours)
    ours = four.aggregate()
    with pytest.raises(MalformedMessage, match="does not decrypt to the sum of its clients"):
        four.open(replace(ours, first=foreign.first, second=foreign.second))


def test_a_sum_under_the_key_of_another_round_does_not_open(four: Scene) -> None:
    call = Call(RUN, 2, 1)
    waiting = {node: ready(four.kits[node], call) for node in NODES[:4]}
    cohort = gather_cohort([p.attendance for p in waiting.values()], four.fed.roster)
    later, now = Scene(four.fed, waiting, cohort, call).aggregate(), four.aggregate()
    assert four.open(later, round_=2).clients == 4
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(replace(now, first=later.first, second=later.second))


def test_tampered_sealed_terms_are_refused_with_and_without_their_digest(four: Scene) -> None:
    aggregate = four.aggregate()
    for position in range(0, len(aggregate.sealed), 3):
        sealed = bytearray(aggregate.sealed)
        sealed[position] ^= 1
        tampered = replace(aggregate, sealed=bytes(sealed))
        with pytest.raises(PeerMismatch) as caught:
            four.open(tampered)
        assert caught.value.field == "support"
        with pytest.raises(MalformedMessage, match="sealed terms"):
            four.open(replace(tampered, support=support_digest(bytes(sealed))))


def test_the_terms_of_another_round_do_not_open_this_sum(four: Scene) -> None:
    aggregate = four.aggregate()
    sealed = four.kits[NODES[0]].secret.seal(encode_terms(terms_of(STATE, LAYOUT)), RUN, 2)
    with pytest.raises(MalformedMessage, match="for this round"):
        four.open(replace(aggregate, sealed=sealed, support=support_digest(sealed)))


def test_terms_of_another_size_than_the_sums_are_refused(four: Scene) -> None:
    short = Terms(Support(np.arange(SIZE - 1), SIZE), clips(STATE.vector, LAYOUT))
    sealed = four.kits[NODES[0]].secret.seal(encode_terms(short), RUN, 1)
    with pytest.raises(PeerMismatch) as caught:
        four.open(replace(four.aggregate(), sealed=sealed, support=support_digest(sealed)))
    assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("values", SIZE - 1, SIZE)


def sum_of(scene: Scene, nodes: tuple[int, ...]) -> Aggregate:
    """What the contributions of these members add up to, without the masks of their own.

    The aggregator and a colluding holder of the cohort secret come as far as this only if the seeds are given away.
    """
    members = {member.node: member for member in scene.cohort.members}
    read = [
        (
            node,
            decode_contribution(
                scene.contribution(node), members[node], len(members), PLAN.parameters, scene.fed.roster
            ),
        )
        for node in nodes
    ]
    secrets = {node: pending.secrets for node, pending in scene.waiting.items()}
    first, second = unmasked(PLAN.parameters, read, secrets, scene.cohort.digest(1))
    return replace(scene.aggregate(), first=first, second=second)


ALL = NODES[:4]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(ALL[1:], id="one missing"),
        pytest.param(ALL[:2], id="two missing"),
        pytest.param((*ALL, ALL[3]), id="one doubled"),
        pytest.param((*ALL[1:], ALL[1]), id="one in the place of another"),
        pytest.param((*ALL, *ALL)[:6], id="two doubled"),
    ],
)
@pytest.mark.parametrize("clients", [3, 4, 5, 6])
def test_a_sum_of_anything_but_each_member_once_does_not_open(
    nodes: tuple[int, ...], clients: int, four: Scene
) -> None:
    wrong = replace(sum_of(four, nodes), clients=clients, members=max(4, clients))
    with pytest.raises(MalformedMessage, match="left out or added twice"):
        four.open(four.vouched(wrong))


def test_a_whole_cohort_added_twice_does_not_pass_for_once_although_its_masks_cancel() -> None:
    fed = federation(PLAN, nodes=3)
    waiting = {node: ready(kit) for node, kit in fed.kits.items()}
    three = Scene(fed, waiting, gather_cohort([p.attendance for p in waiting.values()], fed.roster))
    twice = sum_of(three, NODES[:3] * 2)
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        three.open(twice)


def test_the_honest_ciphertexts_in_the_same_hands_do_open(four: Scene) -> None:
    """The control of the refusals above."""
    assert four.open(sum_of(four, ALL)).values.tolist() == four.open(four.aggregate()).values.tolist()


def test_the_contributions_do_not_open_as_long_as_one_mask_of_a_members_own_is_in_them(four: Scene) -> None:
    masked = truncate(four.total.parts[0].halves[0].ravel()[: four.slots], PLAN.parameters.drop_down)
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(replace(four.aggregate(), first=masked, second=four.total.parts[0].halves[1]))


@pytest.mark.parametrize("clients", [3, 5, 6])
def test_an_aggregate_that_claims_another_number_of_clients_does_not_open(clients: int, four: Scene) -> None:
    claimed = replace(sum_of(four, ALL), clients=clients, members=6)
    with pytest.raises(MalformedMessage, match="no member of the cohort vouches"):
        four.open(claimed)
    with pytest.raises(MalformedMessage, match="the sum of its clients"):
        four.open(four.vouched(claimed))


@pytest.mark.parametrize("field", ["clients", "members", "weight", "total"])
def test_what_no_member_vouches_for_is_refused(field: str, four: Scene) -> None:
    honest = sum_of(four, ALL)
    changed: dict[str, Any] = {field: getattr(honest, field) + (1 if field in ("members", "total") else -1)}
    with pytest.raises(MalformedMessage, match="no member of the cohort vouches"):
        four.open(replace(honest, **changed))


def test_an_aggregate_of_too_few_clients_is_refused_before_it_is_decrypted(four: Scene) -> None:
    aggregate = four.aggregate()
    assert isinstance(aggregate.second, tuple)
    with pytest.raises(CohortRefused, match="holds 2 clients; the plan asks for 3"):
        four.open(replace(aggregate, clients=2, second=tuple(block[:2] for block in aggregate.second)))


def forged(four: Scene, values: Integers, checks: int, padding: int, votes: Integers, clients: int = 4) -> Aggregate:
    """A sum that the holder of the cohort secret has encrypted in one piece, without any blinding, and with its tag."""
    p, kit = PLAN.parameters, four.kits[NODES[0]]
    counted = np.concatenate([values, np.array([checks]), encode_figures(NOTHING, PLAN.parameters.grid)])
    lanes = np.concatenate([counted, np.full(-counted.size % p.fields, padding, np.int64)])
    head = four.vouched(replace(four.aggregate(), clients=clients, values=values.size, votes=votes.size))
    tagged = np.concatenate([counted, votes])
    within = np.clip(tagged, -p.grid.reach, p.grid.reach)
    key = tag_key(kit.secret, head, head.members, head.cohort, head.group)
    tags = (tag(within, clients, key, p) + tag(tagged - within, 0, key, p)) % np.uint64(p.plain_modulus)
    with RoundCipher(p, kit.secret.bfv_seed(RUN, 1)) as cipher:
        encrypted = cipher.encrypt(np.concatenate([pack(lanes, p.values), pack(votes, p.votes), tags]))
    total = ciphertext_sum(p, [encrypted])
    return replace(head, first=total.first, second=total.second)


NO_VOTES = np.zeros(0, np.int64)


def test_a_sum_at_the_end_of_its_lane_opens_and_one_beyond_does_not(four: Scene) -> None:
    reach = PLAN.parameters.grid.reach
    for end in (reach, -reach):
        values = np.full(SIZE, end, np.int64)
        assert four.open(forged(four, values, 4, 0, NO_VOTES)).values.tolist() == [end] * SIZE
    values[5] = reach + 1
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, values, 4, 0, NO_VOTES))


@pytest.mark.parametrize(("checks", "padding"), [(3, 0), (5, 0), (0, 0), (-4, 0), (4, 1), (4, -1)])
def test_a_wrong_count_or_padding_does_not_open(checks: int, padding: int, four: Scene) -> None:
    assert (SIZE + PLAN.parameters.trailing) % PLAN.parameters.fields != 0, "there is room for a padding"
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, np.zeros(SIZE, np.int64), checks, padding, NO_VOTES))


def test_more_votes_than_clients_do_not_open(four: Scene) -> None:
    values, votes = np.zeros(SIZE, np.int64), np.full(SIZE, 4, np.int64)
    assert four.open(forged(four, values, 4, 0, votes)).votes.tolist() == [4] * SIZE
    votes[SIZE - 1] = 5
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, values, 4, 0, votes))


@pytest.mark.parametrize("part", ["first", "second"])
def test_residues_beyond_the_modulus_are_refused(part: str, four: Scene) -> None:
    wrong = sum_of(four, ALL)
    assert isinstance(wrong.second, np.ndarray)
    halves: dict[str, Any] = {
        "first": np.full_like(wrong.first, (1 << PLAN.parameters.width_down) - 1),
        "second": np.full_like(wrong.second, (1 << 60) - 1),
    }
    with pytest.raises(MalformedMessage, match="not below the modulus"):
        four.open(replace(wrong, **{part: halves[part]}))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 50, -1])
def test_an_aggregate_that_is_cut_short_or_goes_on_is_refused(cut: int, four: Scene) -> None:
    data = encode_aggregate(four.aggregate(), PLAN.parameters)
    for broken in (data[:cut], data + b"\0"):
        with pytest.raises(PeerError):
            open_sum(broken, RUN, 1, four.kits[NODES[0]], PLAN, LAYOUT)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 2**16), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_as_the_peers_mistake_or_changes_nothing(
    position: int, flip: int, four: Scene
) -> None:
    data = bytearray(four.aggregate_bytes)
    data[position % len(data)] ^= flip
    try:
        opened = open_sum(bytes(data), RUN, 1, four.kits[NODES[0]], PLAN, LAYOUT)
    except PeerError:
        return
    honest = four.open(four.aggregate())
    assert (opened.clients, opened.values.tolist()) == (4, honest.values.tolist())


def test_flipped_bits_of_the_ciphertext_never_give_a_whole_cohort_with_other_votes_or_members(four: Scene) -> None:
    """A change of the second half reaches every coefficient, count and tag included."""
    honest = sum_of(four, ALL)
    assert isinstance(honest.second, np.ndarray)
    for bit in (20, 35, 58):
        second = honest.second.copy()
        second[0, 77] ^= np.uint64(1 << bit)
        with pytest.raises(MalformedMessage):
            four.open(replace(honest, second=second))
