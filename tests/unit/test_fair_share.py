"""The division of a cluster among runs, by hand and by its properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gems_ray.tune.fair_share import Demand, shares


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        ({"a": (9, 4)}, {"a": 4}),
        ({"a": (9, 4), "b": (9, 4)}, {"a": 2, "b": 2}),
        ({"a": (9, 4), "b": (1, 4)}, {"a": 3, "b": 1}),  # what one leaves, another one uses
        ({"a": (9, 4), "b": (0, 4)}, {"a": 4, "b": 0}),
        ({"a": (9, 8), "b": (9, 2)}, {"a": 4, "b": 1}),  # cells of another size: half of the cluster for each
        ({"a": (9, 6), "b": (9, 6), "c": (1, 6)}, {"a": 3, "b": 2, "c": 1}),
        ({"a": (9, 0), "b": (9, 2)}, {"a": 0, "b": 2}),  # a cell that fits on no node
    ],
)
def test_by_hand(demands, expected):
    assert shares({run: Demand(*demand) for run, demand in demands.items()}) == expected


def test_one_place_for_three_runs_goes_round():
    demands = dict.fromkeys("abc", Demand(9, 1))
    winners = [next(run for run, places in shares(demands, turn).items() if places) for turn in range(6)]
    assert winners == ["a", "b", "c", "a", "b", "c"]


NAMES = st.sampled_from("abcdef")
TURNS = st.integers(0, 10**9)


@given(st.dictionaries(NAMES, st.builds(Demand, st.integers(0, 40), st.integers(1, 40)), min_size=1), TURNS)
def test_nothing_is_wasted_and_everybody_has_a_turn(demands, turn):
    divided = shares(demands, turn)
    used = sum(divided[run] / demand.places for run, demand in demands.items())
    assert used <= 1 + 1e-6
    for run, demand in demands.items():
        assert 0 <= divided[run] <= demand.cells
        assert divided[run] == demand.cells or used + 1 / demand.places > 1 - 1e-6
        assert not demand.cells or any(shares(demands, turn + later)[run] for later in range(len(demands)))


@given(st.dictionaries(NAMES, st.integers(0, 40), min_size=1), st.integers(1, 40), TURNS)
def test_who_wants_more_has_no_less_than_others_but_for_one_place(cells, places, turn):
    divided = shares({run: Demand(wanted, places) for run, wanted in cells.items()}, turn)
    for run, wanted in cells.items():
        if divided[run] < wanted:
            assert divided[run] >= max(divided.values()) - 1
