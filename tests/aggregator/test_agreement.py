"""``aggregator.agreement``: the majority goes on, whoever says something else is refused, and without one all stop."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.agreement import agreeing
from protocol.errors import AgreementError

SAID = st.dictionaries(st.integers(0, 99), st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=9)


@given(SAID)
def test_whoever_says_what_more_than_half_say_goes_on_and_nobody_else(said: dict[int, tuple[int, int]]) -> None:
    (value, count) = Counter(said.values()).most_common(1)[0]
    if 2 * count <= len(said):
        with pytest.raises(AgreementError) as caught:
            list(agreeing(said, ("model", "values")))
        assert caught.value.nodes == tuple(sorted(said))
        return
    found = dict(agreeing(said, ("model", "values")))
    assert {node for node, error in found.items() if error is None} == {n for n, each in said.items() if each == value}
    for node, error in found.items():
        if error is not None:
            place = ("model", "values").index(error.field)
            assert (error.ours, error.theirs) == (value[place], said[node][place])
            assert error.ours != error.theirs


def test_the_first_field_that_differs_is_named() -> None:
    with pytest.raises(AgreementError) as caught:
        list(agreeing({1: (0, 0), 2: (0, 1)}, ("model", "values")))
    assert caught.value.field == "values"
    assert "nodes 1 and 2 report different values of the values" in str(caught.value)
