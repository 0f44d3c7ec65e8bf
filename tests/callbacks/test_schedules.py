"""When a tracker measures: exact lists of steps, skipped steps, and bad arguments."""

import re

import numpy as np
import pytest

import nngp_plugins as nngp


def steps(schedule, until, since=0):
    return [step for step in range(since + 1, until + 1) if schedule.due(step, step - 1)]


def test_every():
    assert steps(nngp.every(4), 17) == [4, 8, 12, 16]
    assert steps(nngp.every(1), 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("per_decade", [1, 2, 3, 10])
def test_log_spaced(per_decade):
    # s = ceil(10^(k/p)) for some k, in whole numbers: (s - 1)^p < 10^k <= s^p
    powers = [10**k for k in range(4 * per_decade)]
    expected = [s for s in range(1, 3001) if any((s - 1) ** per_decade < t <= s**per_decade for t in powers)]
    assert steps(nngp.log_spaced(per_decade), 3000) == expected


def test_log_spaced_in_full():
    assert steps(nngp.log_spaced(per_decade=2), 1000) == [1, 4, 10, 32, 100, 317, 1000]
    assert steps(nngp.log_spaced(), 100) == [1, 2, 3, 4, 6, 7, 8, 10, 13, 16, 20, 26, 32, 40, 51, 64, 80, 100]


@pytest.mark.parametrize("per_decade", [1, 3, 10, 17])
def test_log_spaced_hits_every_power_of_ten(per_decade):
    schedule = nngp.log_spaced(per_decade)
    for power in (10**k for k in range(9)):
        assert schedule.due(power, power - 1)
        assert not schedule.due(power + 1, power) or power < 20


def test_union():
    union = nngp.log_spaced(per_decade=1) | nngp.every(7)
    assert steps(union, 30) == [1, 7, 10, 14, 21, 28]
    assert steps(union | nngp.every(5), 30) == [1, 5, 7, 10, 14, 15, 20, 21, 25, 28, 30]
    assert nngp.every(3) | nngp.every(5) == nngp.every(3) | nngp.every(5)


@pytest.mark.parametrize(
    ("schedule", "step", "previous", "due"),
    [
        (nngp.every(10), 25, 17, True),
        (nngp.every(10), 29, 21, False),
        (nngp.every(10), 40, 5, True),
        (nngp.log_spaced(1), 150, 60, True),
        (nngp.log_spaced(1), 99, 11, False),
        (nngp.log_spaced(1) | nngp.every(40), 99, 11, True),
        (nngp.log_spaced(1) | nngp.every(40), 39, 11, False),
        (nngp.every(5), 5, 5, False),
        (nngp.log_spaced(1), 10, 10, False),
        (nngp.log_spaced(1), 0, 0, False),
    ],
)
def test_skipped_and_repeated_steps(schedule, step, previous, due):
    assert schedule.due(step, previous) is due


@pytest.mark.parametrize("value", [0, -3, 2.5, "3", None])
@pytest.mark.parametrize(("make", "said"), [(nngp.every, "every(n="), (nngp.log_spaced, "log_spaced(per_decade=")])
def test_bad_arguments(make, said, value):
    with pytest.raises(ValueError, match=re.escape(f"{said}{value!r}) takes a positive integer.")):
        make(value)


def test_integers_of_numpy():
    assert steps(nngp.every(np.int64(4)), 9) == [4, 8]
    assert steps(nngp.log_spaced(np.int32(1)), 100) == [1, 10, 100]
