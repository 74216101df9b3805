"""A defect of edgeprune inside a trial is an internal error, never a network that "cannot be narrowed"."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeprune.graph import trace
from edgeprune.graph import trial as trials


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def test_a_defect_in_our_own_code_surfaces(monkeypatch):
    """The first capture is right; the one of the narrowed network meets a defect of ours."""
    from edgeprune.graph import capture

    whole = capture.capture_model

    def defective(model, inputs, **options):
        if not options.get("lines", True):
            return ours(model)
        return whole(model, inputs, **options)

    source = "def ours(model):\n    return model.no_such_thing_of_ours\n"
    space: dict[str, object] = {}
    exec(compile(source, f"{trials._PACKAGE}graph/capture.py", "exec"), space)
    ours = space["ours"]
    monkeypatch.setattr(trials, "capture_model", defective)
    with pytest.raises(AttributeError, match="no_such_thing_of_ours"):
        trace(network(), torch.rand(1, 3, 8, 8))


class Repeats(nn.Module):
    """A width that only its Python knows, which fails where it is narrow, with errors of every kind."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.kind = kind

    def forward(self, x):
        found = self.first(x)
        if found.shape[1] != 8:
            raise self.kind("only eight will do")
        return self.second(found)


@pytest.mark.parametrize("kind", [AttributeError, KeyError, AssertionError, ZeroDivisionError, RuntimeError, TypeError])
def test_what_the_network_itself_raises_freezes_that_place(kind):
    structure = trace(Repeats(kind), torch.rand(1, 3, 8, 8))
    assert any("only eight will do" in reason for reason in _reasons(structure))


def _reasons(structure):
    return [str(one) for one in structure.to_dict()["frozen"]]


@pytest.mark.parametrize(
    ("error", "where", "ours"),
    [
        (AttributeError("x"), "graph/capture.py", True),
        (NameError("x"), "engine/tape.py", True),
        (TypeError("go() missing 1 required positional argument: 'x'"), "graph/capture.py", True),
        (TypeError("conv2d(): argument 'weight' must be Tensor"), "graph/capture.py", False),
        (RuntimeError("shape mismatch"), "graph/capture.py", False),
        (IndexError("Dimension out of range"), "graph/capture.py", False),
    ],
)
def test_whose_error_it_is(error, where, ours):
    space = {"error": error}
    exec(compile("def go():\n    raise error\n", f"{trials._PACKAGE}{where}", "exec"), space)
    with pytest.raises(type(error)) as raised:
        space["go"]()
    assert trials.is_ours(raised.value) is ours
    with pytest.raises(type(error)) as raised:
        raise error.with_traceback(None)
    assert not trials.is_ours(raised.value)  # raised in another's code
