"""When a tracker measures: exact lists of steps, skipped steps, and bad arguments."""

import re
import time
from itertools import pairwise

import numpy as np
import pytest

import nngp_plugins as nngp
from nngp_plugins.callbacks import Moment

pytestmark = pytest.mark.once

PROBE = np.ones((5, 2)) + np.eye(5, 2)
CKA = {"cka": nngp.metrics.cka}


def stretched(w, x):
    return x * w


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


def test_at():
    assert steps(nngp.at(3, [9, 4], range(11, 13), 3), 30) == [3, 4, 9, 11, 12]
    assert nngp.at(5, 7).due(8, 4)
    assert not nngp.at(5, 7).due(6, 5)


def test_every_seconds():
    schedule, clock = nngp.every_seconds(2.5), [0, 1, 2.4, 2.6, 3, 8, 9.9, 10, 12.4]
    moments = [Moment(step, seconds) for step, seconds in enumerate(clock)]
    due = [now.seconds for before, now in pairwise(moments) if schedule.due(now, before)]
    assert due == [2.6, 8, 10]


def test_every_seconds_of_a_tracker():
    """Between which times each call came is known, and so is of most calls whether they begin another span."""

    def make():
        return nngp.KernelTracker(stretched, PROBE, schedule=nngp.every_seconds(span), metrics=CKA)

    span, calls = 0.2, []
    make()  # The first one of a process takes long to make.
    earliest = time.perf_counter()
    with make() as seen:
        latest = time.perf_counter()  # The clock of the tracker began between these two.
        for step in range(40):
            time.sleep(0.4 if step % 10 == 9 else 0.02)
            least = time.perf_counter() - latest
            is_measured = seen(step, 1.0)
            calls.append((least, time.perf_counter() - earliest, is_measured))
    assert calls[0][2]
    for (least_before, most_before, _), (least, most, is_measured) in pairwise(calls):
        if least // span > most_before // span:
            assert is_measured
        if most // span == least_before // span:
            assert not is_measured


def test_when():
    schedule = nngp.when(lambda step, scalars: step > 2 and scalars["loss"] < 0.1)
    losses = [0.0, 0.5, 0.05, 0.05, 0.2, 0.01]
    moments = [Moment(step, scalars={"loss": loss}) for step, loss in enumerate(losses)]
    assert [now.step for before, now in pairwise(moments) if schedule.due(now, before)] == [3, 5]


def test_epochs():
    schedule = nngp.every(2, of="epoch")
    with nngp.KernelTracker(stretched, PROBE, schedule=schedule, metrics=CKA) as seen:
        measured = [step for step in range(31) if seen(step, 1.0, epoch=step // 5)]
        assert seen.due(50, epoch=10)
        with pytest.raises(ValueError, match=r"of='epoch' is not among the scalars of step 31; pass tracker\(.*epoch="):
            seen(31, 1.0)
    assert measured == [0, 10, 20, 30]
    assert seen.history.scalar("epoch").tolist() == [0, 2, 4, 6]


def test_unions_of_all_kinds():
    schedule = nngp.at(2) | nngp.every_seconds(60) | nngp.when(lambda step, scalars: step == 7) | nngp.every(9)
    assert [s for s in range(1, 12) if schedule.due(Moment(s), Moment(s - 1))] == [2, 7, 9]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nngp.at(), ValueError, r"at\(\) takes steps, integers ≥ 0"),
        (lambda: nngp.at(3, -1), ValueError, r"at\(3, -1\) takes steps"),
        (lambda: nngp.at(2.5), ValueError, r"at\(2.5\) takes steps"),
        (lambda: nngp.every_seconds(0), ValueError, r"every_seconds\(0\) takes a positive number"),
        (lambda: nngp.every_seconds("1m"), ValueError, r"every_seconds\('1m'\) takes a positive number"),
        (lambda: nngp.when(3), TypeError, r"when\(3\) takes a function predicate\(step, scalars\)"),
    ],
)
def test_more_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
