"""A few of the attacks of ``make attack``; these are always the same, and their moments are not."""

import pytest
from attack.__main__ import run

pytestmark = pytest.mark.once


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_nothing_is_lost_and_nothing_is_wrong(count, tmp_path):
    fates, lost = run(count, count, tmp_path)
    assert lost == []
    assert sum(fates.values()) >= count // 2
