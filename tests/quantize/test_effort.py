"""How many images the parts of calibration look at."""

import pytest
import torch

from edgeprune.quantize import effort
from edgeprune.quantize.view import View
from tests.quantize.nets import plain


def test_best_looks_at_twice_as_many_images_and_no_part_at_more_than_there_are():
    view = View.of(plain())
    seen = {name: effort.affordable(view, 256, 24, 9, name) for name in ("fast", "default", "best")}
    assert seen == {"fast": 24, "default": 24, "best": 48}
    assert effort.affordable(view, 30, 24, 9, "best") == 30
    assert effort.affordable(view, 3, 24, 9, "fast") == 3


def test_a_large_network_looks_at_few_images_but_for_best(monkeypatch):
    view = View.of(plain())
    monkeypatch.setattr(effort, "work", lambda view: 1.5e9)
    seen = {name: effort.affordable(view, 256, 24, 9, name) for name in ("fast", "default", "best")}
    assert seen == {"fast": effort.LEAST, "default": 8, "best": 48}


def test_a_part_that_gains_from_more_images_sees_them_where_they_cost_little(monkeypatch):
    view = View.of(plain())
    seen = []
    for each in (1e7, 1.5e8, 9e8, 3e9):
        monkeypatch.setattr(effort, "work", lambda view, each=each: each)
        seen.append(effort.affordable(view, 256, (24, 96), 9, "default"))
    assert seen == [96, 37, 14, 4]
    assert effort.affordable(view, 20, (24, 96), 9, "best") == 20


@pytest.mark.parametrize(
    ("free", "named", "wanted"), [(1, False, 1), (2, False, 2), (5, False, 3), (1, True, 3)], ids=str
)
def test_torch_computes_on_the_cores_that_others_leave_free(monkeypatch, free, named, wanted):
    """Red before: two threads beside a busy process waited for each other at every operator, for minutes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if named:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(effort, "free_cores", lambda: free)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with effort.uncrowded():
            assert torch.get_num_threads() == wanted
            with effort.uncrowded(View.of(plain())):  # a small network
                assert torch.get_num_threads() == (3 if named else 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_core_is_free_where_it_is_idle_for_half_the_time(monkeypatch):
    ticks = effort.LOOK_S * effort.os.sysconf("SC_CLK_TCK")
    looks = iter([{0: 100, 1: 100, 2: 100}, {0: 100, 1: int(100 + 0.6 * ticks), 2: int(100 + ticks)}])
    monkeypatch.setattr(effort, "_idle", lambda: next(looks))
    assert effort.free_cores() == 2
    looks = iter([{0: 100}, {0: 100}])
    assert effort.free_cores() == 1  # this process has to run somewhere
    monkeypatch.setattr(effort, "_idle", dict)
    assert effort.free_cores() >= 1
    monkeypatch.undo()
    assert set(effort._idle()) <= effort.os.sched_getaffinity(0)
