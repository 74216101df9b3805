"""How many images the parts of calibration look at."""

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
