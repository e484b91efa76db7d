"""``protocol.cohort``: which lists of attendances are a cohort, and what each member counts for.

How a cohort is divided is in `test_cohort_groups.py`.
"""

from fractions import Fraction
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.attendance import ATTENDANCE_BYTES, Attendance
from protocol.cohort import (
    Cohort,
    bounded_weights,
    decode_cohort,
    gather_cohort,
    read_cohort,
    require_agreement,
    require_quorum,
)
from protocol.errors import AgreementError, CohortRefused, MalformedMessage, PeerError, SignatureRefused
from protocol.figures import NOTHING
from protocol.openings import Memory, Nodes, encode_sets
from protocol.roster import Roster
from tests.factories import attend, attendance, cohort, kits, mutations, plan, secrets
from tests.protocol.frames import MEMORY

KITS = kits(plan(), (1, 2, 3, 5, 300))
ROSTER = KITS[1].roster
WHOLE = cohort(KITS)
DIVIDED = cohort(KITS, (Nodes({1, 3, 300}), Nodes({2, 5})))
UNDIVIDED = encode_sets(())
"""What stands before the attendances of a cohort without groups."""
DISAGREEMENTS = {
    "run": bytes(16),
    "round": 2,
    "attempt": 2,
    "plan": bytes(32),
    "key": bytes(16),
    "model": bytes(32),
    "support": bytes(32),
    "values": 8,
    "votes": 7,
    "invited": bytes(32),
    "figures": NOTHING,
    "spoiled": 1,
}


# --- a list of attendances ---------------------------------------------------------------------


@given(st.permutations(list(KITS)), st.integers(1, len(KITS)))
def test_the_order_in_which_attendances_come_in_is_no_matter(nodes: list[int], size: int) -> None:
    members = nodes[:size]
    gathered = gather_cohort([attend(KITS[node]) for node in members], ROSTER)
    assert [member.node for member in gathered.members] == sorted(members)
    assert gathered.nodes == frozenset(members)
    assert gathered.samples == sum(100 + node % 100 for node in members)
    assert decode_cohort(gathered.encode(), ROSTER) == gathered
    assert len(gathered.encode()) == 4 + size * ATTENDANCE_BYTES
    assert (gathered.groups, gathered.parts) == ((), (gathered.nodes,))
    assert {gathered.part_of(node) for node in members} == {0}


def test_an_announced_cohort_stands_in_ascending_order() -> None:
    turned = UNDIVIDED + b"".join(reversed(WHOLE.encoded))
    assert gather_cohort(WHOLE.encoded[::-1], ROSTER) == WHOLE
    with pytest.raises(MalformedMessage, match="ascending order"):
        decode_cohort(turned, ROSTER)


def test_a_cohort_that_was_taken_before_is_read_again_without_a_look_at_its_signatures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def verify(*_: object) -> None:
        raise AssertionError("it is verified")

    monkeypatch.setattr(Roster, "verify", verify)
    assert read_cohort(WHOLE.encode()) == WHOLE


def test_what_is_kept_of_a_cohort_is_still_one() -> None:
    one, other = attend(KITS[1]), attend(KITS[2], model=bytes(32))
    for kept, error in ((one + one, CohortRefused), (one + other, AgreementError), (one[:-1], MalformedMessage)):
        with pytest.raises(error):
            read_cohort(encode_sets(()) + kept)


@pytest.mark.parametrize("change", [-1, 1, 100])
def test_an_announced_cohort_is_a_whole_number_of_attendances(change: int) -> None:
    data = WHOLE.encode() + bytes(change) if change > 0 else WHOLE.encode()[:change]
    with pytest.raises(MalformedMessage, match="not a whole number of attendances"):
        decode_cohort(data, ROSTER)


def test_more_attendances_than_nodes_are_refused_before_any_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> None:
        raise AssertionError("it is verified")

    monkeypatch.setattr(Roster, "verify", verify)
    with pytest.raises(CohortRefused, match="larger than the roster"):
        decode_cohort(UNDIVIDED + WHOLE.encoded[0] * (len(ROSTER.nodes) + 1), ROSTER)


def test_nobody_is_no_cohort() -> None:
    with pytest.raises(CohortRefused, match="needs members"):
        decode_cohort(UNDIVIDED, ROSTER)
    with pytest.raises(MalformedMessage, match="ends too early"):
        decode_cohort(b"", ROSTER)


def test_a_member_stands_in_a_cohort_once_even_with_two_attendances() -> None:
    for second in (attend(KITS[2]), attend(KITS[2], seed=bytes(32))):
        with pytest.raises(CohortRefused, match="each of them once"):
            gather_cohort([attend(KITS[1]), attend(KITS[2]), second], ROSTER)


@pytest.mark.parametrize("field", DISAGREEMENTS)
def test_a_disagreement_names_the_field_and_both_nodes(field: str) -> None:
    changes = {field: DISAGREEMENTS[field]}
    if field == "values":
        changes["votes"] = 0
    odd = attend(KITS[3], **changes)
    with pytest.raises(AgreementError, match=f"nodes 1 and 3 report different values of the {field}") as error:
        gather_cohort([odd, attend(KITS[2]), attend(KITS[1])], ROSTER)
    assert (error.value.field, error.value.nodes) == (field, (1, 3))


def test_members_may_differ_in_number_samples_secrets_and_memory_alone() -> None:
    own = {"node", "samples", "exchange", "seed", "dealt", "memory"}
    one, other = attendance(KITS[1]), attendance(KITS[300], dealt=bytes(32), memory=MEMORY)
    assert {name for name in Attendance.__dataclass_fields__ if getattr(one, name) != getattr(other, name)} == own
    require_agreement(one, other)
    assert set(DISAGREEMENTS) == set(Attendance.__dataclass_fields__) - own


def test_a_cohort_remembers_what_any_of_its_members_does() -> None:
    first, second = MEMORY
    memories: dict[int, Memory] = {1: frozenset({first}), 2: frozenset(), 3: frozenset({first, second})}
    made = gather_cohort([attend(KITS[node], memory=memory) for node, memory in memories.items()], ROSTER)
    assert made.memory == {first, second}
    assert decode_cohort(made.encode(), ROSTER) == made
    assert WHOLE.memory == frozenset()


def test_one_bad_signature_spoils_the_cohort() -> None:
    forged = bytearray(WHOLE.encode())
    forged[4 + ATTENDANCE_BYTES + 36] ^= 1  # the samples of the second member
    with pytest.raises(SignatureRefused) as refusal:
        decode_cohort(bytes(forged), ROSTER)
    assert refusal.value.node == 2


SOME = [gather_cohort(some, ROSTER) for some in (WHOLE.encoded[1:4], WHOLE.encoded[::2])]
FRAMES = [made.encode() for made in (WHOLE, *SOME, DIVIDED)]
"""Those of the whole cohort, of some of its members, and of two groups."""


@pytest.mark.slow
@given(
    mutations(FRAMES, fields=range(8, 5 * ATTENDANCE_BYTES))
    | mutations(FRAMES[3:], fields=range(32))
    | st.lists(st.sampled_from(WHOLE.encoded)).map(lambda some: UNDIVIDED + b"".join(some))
)
@settings(max_examples=150, deadline=None)
def test_a_mutated_cohort_is_refused_or_made_of_genuine_attendances(data: bytes) -> None:
    try:
        made = decode_cohort(data, ROSTER)
    except PeerError:
        return
    assert made.encode() == data
    assert set(made.encoded) <= set(WHOLE.encoded)


def test_every_truncation_of_a_cohort_is_refused_but_for_whole_members() -> None:
    data = WHOLE.encode()
    whole = []
    for length in range(len(data)):
        try:
            whole.append(len(decode_cohort(data[:length], ROSTER).members))
        except PeerError:
            continue
    assert whole == [1, 2, 3, 4]


def test_the_digest_names_the_members_their_attendances_their_groups_and_the_attempt() -> None:
    others = [
        WHOLE.digest(2),
        WHOLE.digest((1 << 32) - 1),
        DIVIDED.digest(1),
        gather_cohort(WHOLE.encoded, ROSTER, (Nodes({1, 5}), Nodes({2, 3, 300}))).digest(1),
        gather_cohort(WHOLE.encoded[1:], ROSTER).digest(1),
        gather_cohort([*WHOLE.encoded[1:], attend(KITS[1], exchange=secrets(9).public)], ROSTER).digest(1),
        gather_cohort([*WHOLE.encoded[1:], attend(KITS[1], samples=7)], ROSTER).digest(1),
    ]
    assert len({WHOLE.digest(1), *others}) == 8
    assert {len(digest) for digest in others} == {32}
    assert decode_cohort(WHOLE.encode(), ROSTER).digest(1) == WHOLE.digest(1)


@pytest.mark.parametrize(
    ("invited", "changes", "least"),
    [
        (3, {}, 3),
        (5, {}, 4),
        (5, {"colluders": 0, "min_cohort": 2}, 3),
        (6, {}, 4),
        (7, {}, 5),
        (7, {"min_cohort": 6}, 6),
        (7, {"colluders": 3, "min_cohort": 5}, 6),
    ],
)
def test_a_sum_is_of_a_quorum_of_the_invited_and_no_more_than_the_plan_allows(
    invited: int, changes: dict[str, int], least: int
) -> None:
    agreed = plan(max_cohort=7, **changes)
    for members in range(least, 8):
        require_quorum(members, invited, agreed)
    for members in (*range(least), 8):
        text = f"a sum of {members} of {invited} invited was announced; the plan allows {least} to 7"
        with pytest.raises(CohortRefused, match=f"^{text}$"):
            require_quorum(members, invited, agreed)


# --- what a member counts for -------------------------------------------------------------------

COUNTS = st.lists(st.integers(1, 9) | st.integers(1, (1 << 32) - 1), min_size=3, max_size=40)


@st.composite
def shares(draw: st.DrawFn) -> tuple[list[int], float]:
    """Sample counts, and a largest share that a plan for so many may have."""
    samples = draw(COUNTS)
    return samples, draw(st.floats(1 / len(samples), 1))


@given(shares())
@example(([(1 << 32) - 1, 1, 1], 0.5))
@example(([(1 << 32) - 1] * 3, 1 / 3))
@example(([5, 5, 5], 1 / 3))
@example(([5, 7, 9], 1 / 3))
def test_no_share_is_larger_than_the_plan_says_but_for_the_last_sample(case: tuple[list[int], float]) -> None:
    samples, most = case
    weights = bounded_weights(samples, most)
    assert all(1 <= weight <= count for weight, count in zip(weights, samples, strict=True))
    assert max(weights) <= Fraction(most) * sum(weights) or max(weights) == 1
    # All that were cut are alike, and one more sample for each of them would be too many.
    cut = [weight for weight, count in zip(weights, samples, strict=True) if weight < count]
    assert set(cut) <= {max(weights)}
    more = [min(count, max(weights) + 1) for count in samples]
    assert more == weights or max(more) > Fraction(most) * sum(more)


@given(COUNTS, st.floats(0, 1, exclude_min=True))
def test_counts_are_as_claimed_where_no_share_is_too_large(samples: list[int], slack: float) -> None:
    share = max(samples) / sum(samples)
    assert bounded_weights(samples, min(1.0, share * (1 + slack) + 1e-12)) == samples
    assert bounded_weights(samples, 1.0) == samples


@given(shares(), st.data())
def test_a_larger_claim_never_counts_less_for_the_one_that_makes_it_but_for_rounding(
    case: tuple[list[int], float], data: st.DataObject
) -> None:
    samples, most = case
    who, more = data.draw(st.integers(0, len(samples) - 1)), data.draw(st.integers(1, 1 << 40))
    claimed = [count + more * (k == who) for k, count in enumerate(samples)]
    before, after = (bounded_weights(counts, most) for counts in (samples, claimed))
    assert after[who] >= before[who]
    # The cap is a whole number, so each of those that it cuts counts for less than one sample too few.
    cut = sum(weight < count for weight, count in zip(before, samples, strict=True))
    assert Fraction(after[who] + 1, sum(after)) >= Fraction(before[who], sum(before) + cut)


@given(shares(), st.floats(0, 1))
def test_a_larger_bound_never_cuts_more(case: tuple[list[int], float], other: float) -> None:
    samples, most = case
    wider = most + (1 - most) * other
    pairs = zip(bounded_weights(samples, most), bounded_weights(samples, wider), strict=True)
    assert all(one <= two for one, two in pairs)


@given(shares(), st.randoms(use_true_random=False))
def test_the_order_of_members_is_no_matter_to_what_they_count_for(
    case: tuple[list[int], float], random: Random
) -> None:
    samples, most = case
    order = list(range(len(samples)))
    random.shuffle(order)
    weights = bounded_weights(samples, most)
    assert bounded_weights([samples[i] for i in order], most) == [weights[i] for i in order]


def test_a_cohort_says_what_each_member_counts_for() -> None:
    made = Cohort(
        tuple(attendance(KITS[node], samples=samples) for node, samples in [(1, 3), (2, 4), (3, (1 << 32) - 1)]), ()
    )
    assert made.weights(0.5) == {1: 3, 2: 4, 3: 7}
    assert made.weights(1.0) == {1: 3, 2: 4, 3: (1 << 32) - 1}
