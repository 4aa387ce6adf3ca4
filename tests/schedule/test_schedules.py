"""Schedules give the published values and end exactly where they should."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import schedule
from secateur.errors import ConfigError


def test_cubic_golden_values():
    golden = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    found = [schedule.find("cubic", 0.9).at(k / 10) for k in range(11)]
    assert found == pytest.approx(golden, abs=5e-5)
    assert schedule.find("cubic", 0.5).at(10 / 20) == pytest.approx(0.4375)  # step 9 of 0..20


def test_exponential_prunes_the_same_share_of_what_is_left():
    amounts = schedule.find("exponential", 1 - 0.8**5).amounts(5)
    assert amounts == pytest.approx([1 - 0.8**k for k in range(1, 6)])


def test_linear_and_one_shot():
    assert schedule.find("linear", 0.8).amounts(4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.find("one-shot", 0.7).amounts(3) == [0.7, 0.7, 0.7]


def test_window_between_start_and_end():
    s = schedule.find("linear", 0.9, initial=0.1, start=0.25, end=0.75)
    assert [s.at(t) for t in (0, 0.2, 0.5, 0.75, 1)] == pytest.approx([0.1, 0.1, 0.5, 0.9, 0.9])


@given(
    st.sampled_from(["one-shot", "linear", "exponential", "cubic"]),
    st.floats(0, 0.5),
    st.floats(0.5, 0.99),
    st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_never_goes_back_nor_beyond(name, initial, final, progress):
    s = schedule.find(name, final, initial=initial)
    amounts = [s.at(t) for t in sorted(progress)]
    assert all(b >= a - 1e-12 for a, b in pairwise(amounts))
    assert all(initial - 1e-12 <= a <= final + 1e-12 for a in amounts)
    assert s.at(1) == final


def test_a_function_or_a_schedule_will_do():
    assert schedule.find(lambda t, a, b: b * t * t, 0.8).at(0.5) == pytest.approx(0.2)
    assert schedule.find(schedule.find("linear", 0.2), 0.6).at(0.5) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (("cubik", 0.5), {}),
        (("cubic", 1.0), {}),
        (("cubic", float("nan")), {}),
        (("cubic", 0.3), {"initial": 0.5}),
        (("cubic", 0.5), {"start": 0.6, "end": 0.4}),
    ],
)
def test_nonsense_is_refused(args, options):
    with pytest.raises(ConfigError):
        schedule.find(*args, **options)
    with pytest.raises(ConfigError):
        schedule.find("linear", 0.5).amounts(0)
