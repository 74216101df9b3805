"""The front of a tiny network on the device: each point within its budget, what is shared measured once, one picked."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from tiny_sweep import RECIPE

from edgeprune.cli import main
from edgeprune.errors import BudgetError
from edgeprune.report import front_page
from edgeprune.result import Front, FrontPoint
from edgeprune.scale.front import _speedups as spread
from edgeprune.scale.front import marked


@pytest.fixture
def searched(project):
    """The project with a recipe whose search has a front, and whose own budget nobody asks for."""
    text = RECIPE.format(name="tiny", method="joint").replace("speedup = 1.05", "latency_ms = 1000.0")
    (project / "recipe.toml").write_text(text)
    return project


def front(*arguments):
    return CliRunner().invoke(main, ["quick", "front", "recipe.toml", *map(str, arguments)], prog_name="edgeprune")


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_points_share_what_does_not_depend_on_the_budget(searched):
    done = front("--speedup", 1.3, "--speedup", 1.5, "--pick", 1.3, "--json")
    assert done.exit_code in (0, 8), done.stderr  # a gate may refuse the picked one; it is on the front all the same
    found = json.loads(done.stdout)
    first, second = found["points"]
    assert (first["label"], second["label"]) == ("1.30x", "1.50x")
    for one in (first, second):
        assert one["why"] == "" and one["measured"] >= one["speedup"] and one["gap"] < 0.05 and one["networks"] >= 1
    assert first["latency"] > second["latency"] and first["loss"] <= 2 * second["loss"]
    assert first["verdict"] in ("release", "refused") and first["released"] > 10
    folder = searched / "runs" / "tiny-quick"
    page = (folder / "front" / "front.html").read_text()
    assert "1.50x" in page and "<svg" in page
    later = events(folder / "front" / "1.50x")
    assert [one["stage"] for one in later if one["event"] == "adopted"] == ["graph", "precision", "dense", "latency"]
    said = [one["message"] for one in later if one["event"] == "line" and one["stage"] == "plan"]
    assert any("only the verdict on this budget is new" in message for message in said)
    again = front("--speedup", 1.3, "--speedup", 1.5, "--json", "--quiet")
    assert again.exit_code == 0, again.stderr
    assert [one["measured"] for one in json.loads(again.stdout)["points"]] == [first["measured"], second["measured"]]
    assert [one["verdict"] for one in json.loads(again.stdout)["points"]] == [first["verdict"], ""]
    begun = [one["stage"] for one in events(folder / "front" / "1.50x") if one["event"] == "begin"]
    assert begun == ["plan", "search"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--speedup", "0.5"), "a speed-up of 0.5"),
        (("--points", "0"), "0 is not in the range"),
        (("--pick", "nan"), "a speed-up of nan"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_measured(searched, arguments, says):
    done = front(*arguments)
    assert done.exit_code == 2 and says in done.stderr
    assert not (searched / "runs").exists()


def test_a_uniform_search_has_no_front(searched):
    (searched / "recipe.toml").write_text(RECIPE.format(name="tiny", method="uniform"))
    done = front()
    assert done.exit_code == 2 and "has no front" in done.stderr


@pytest.mark.parametrize(
    ("points", "most", "wanted"),
    [
        (6, 20.13, [1.15, 1.38, 1.73, 2.3, 3.45, 6.91]),  # even steps of latency: most of them where accuracy is left
        (3, 1.6, [1.15, 1.31, 1.51]),
        (1, 20.13, [6.91]),
        (4, 1.1, [1.09]),  # between the mildest and the fastest is no room for more
    ],
)
def test_budgets_are_spread_over_the_latency(points, most, wanted):
    assert spread(points, (), (), most) == wanted
    assert spread(points, (), (2.0,), most) == sorted({*wanted, 2.0})
    assert spread(points, (3.0, 1.5), (), most) == [1.5, 3.0]


def test_without_a_faster_network_there_is_no_front():
    with pytest.raises(BudgetError, match="there is no front"):
        spread(6, (), (), 1.05)


def made_up(*points):
    """(asked for, measured, score) of each."""
    return [
        FrontPoint(label=f"{a:.2f}x", speedup=a, run_dir="", measured=m, score=s, latency=1 / m) for a, m, s in points
    ]


@pytest.mark.parametrize(
    ("higher_is_better", "scores", "better"),
    [
        (True, (92.0, 90.0, 91.0, 80.0), ["", "1.75x", "", ""]),
        (True, (90.0, 90.0, 90.0, 90.5), ["2.00x", "2.00x", "2.00x", ""]),  # the fastest, which nothing beats itself
        (True, (92.0, 91.0, 90.0, 80.0), ["", "", "", ""]),
        (False, (1.0, 2.0, 1.5, 3.0), ["", "1.75x", "", ""]),
    ],
)
def test_a_point_that_a_faster_one_beats_is_marked(higher_is_better, scores, better):
    points = made_up(*zip((1.25, 1.5, 1.75, 2.0), (1.26, 1.51, 1.76, 2.01), scores, strict=True))
    nothing = FrontPoint(label="9.00x", speedup=9.0, run_dir="", why="it cannot be met")
    found = marked([*points, nothing], higher_is_better)
    assert [one.better for one in found] == [*better, ""]
    page = front_page(
        Front(
            name="n", target="t", unit="ms", dense=1.0, max_speedup=3.0, metric="top-1", scale="%",
            higher_is_better=higher_is_better, dense_score=95.0, points=found,
        )
    )  # fmt: skip
    for other in {one for one in better if one}:
        assert page.count(f"{other} is as good and faster") == better.count(other)
    assert ("is as good and faster" in page) == any(better)


def test_the_axis_name_and_the_topmost_number_do_not_cover_each_other():
    points = made_up((1.15, 1.2, 93.0), (11.0, 11.7, 47.0))  # the axis ends at 100
    page = front_page(
        Front(
            name="n", target="t", unit="ms", dense=1.0, max_speedup=20.0, metric="top-1", scale="%",
            higher_is_better=True, dense_score=93.1, points=tuple(points),
        )
    )  # fmt: skip
    [name] = {float(y) for y in re.findall(r'<text x="0" y="([0-9.]+)" class="name">top-1, %<', page)}
    numbers = [float(y) for y in re.findall(r'y="([0-9.]+)" class="tick end">', page)]
    assert ">100</text>" in page and min(numbers) - name >= 12
