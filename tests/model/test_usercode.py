"""Users' files: their neighbours are found whenever they are asked for, and however they end it is one clear error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from edgeprune import model
from edgeprune.errors import ModelError
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def project(root: Path, channels: int) -> str:
    """A factory that imports its neighbours late: when it is called, and in the forward pass."""
    (root / "parts").mkdir(parents=True)
    (root / "net.py").write_text("def build():\n    from blocks import make\n    return make()\n")
    (root / "blocks.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        from parts.head import WIDTH\n"
        "        self.head = nn.Linear(4, WIDTH)\n"
        "    def forward(self, x):\n        from tail import end\n        return end(self.head(x.flatten(1)))\n"
        "def make(): return Net()\n"
    )
    (root / "parts" / "__init__.py").write_text("")
    (root / "parts" / "head.py").write_text(f"WIDTH = {channels}\n")
    (root / "tail.py").write_text("def end(x): return x * 1\n")
    return f"{root / 'net.py'}:build"


def recipe(factory: str) -> Recipe:
    return Recipe(ModelSection(factory, (1, 2, 2)), DataSection("x"), BudgetSection(speedup=2.0))


def width(network: nn.Module) -> int:
    return network.head.out_features  # type: ignore[no-any-return]


@pytest.mark.long
def test_neighbours_are_found_late_and_two_projects_do_not_mix(tmp_path: Path) -> None:
    first, second = project(tmp_path / "a", 3), project(tmp_path / "b", 5)
    assert width(model.load_model(recipe(first))) == 3
    assert width(model.load_model(recipe(second))) == 5
    factory = model.load_factory(first)
    assert width(factory()) == 3, "the first one's modules again, though the second's have their names"
    assert width(model.load_factory(second)()) == 5
    one, two = factory(), factory()
    assert type(one) is type(two)


@pytest.mark.long
def test_the_house_s_own_modules_never_give_way(tmp_path: Path) -> None:
    before = sys.modules["json"]
    factory = project(tmp_path / "a", 3)
    (tmp_path / "a" / "json.py").write_text("")
    model.load_model(recipe(factory))
    assert sys.modules["json"] is before


SCRIPT = """
import sys
from torch import nn
class Stop(BaseException): pass
def good(): print("building"); return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
def ends(): sys.exit()
def ends_well(): sys.exit(0)
def stops(): raise Stop("enough")
def cancels(): raise GeneratorExit
def prints(): print("a network")
def long(): raise ValueError("9" * 100_000)
def given(width): return good()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ends", r"ends\(\) failed: it called sys\.exit\(None\)"),
        ("ends_well", r"it called sys\.exit\(0\)[\s\S]*__main__"),
        ("stops", "failed: Stop: enough"),
        ("cancels", "failed: GeneratorExit: GeneratorExit"),
        ("prints", "gave NoneType, not a torch.nn.Module"),
        ("long", "failed: ValueError: 9999"),
        ("given", r"missing 1 required positional argument: 'width'\.[\s\S]*called without arguments"),
    ],
)
def test_however_a_factory_ends_it_is_a_model_error(tmp_path: Path, capsys, name: str, message: str) -> None:
    (tmp_path / "net.py").write_text(SCRIPT)
    model.load_model(recipe(f"{tmp_path}/net.py:good"))
    with pytest.raises(ModelError, match=message) as refused:
        model.load_model(recipe(f"{tmp_path}/net.py:{name}"))
    assert len(str(refused.value)) < 600
    assert capsys.readouterr().out == "", "standard output is for what edgeprune says"


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import argparse\nargparse.ArgumentParser().parse_args(['--nonsense'])",
            r"called sys\.exit\(2\)[\s\S]*__main__",
        ),
        ("raise SystemExit", "failed while it was imported: it called"),
        ("raise BaseException('x')", "failed while it was imported: BaseException: x"),
        ("def broken(:", "failed while it was imported: SyntaxError"),
        ("import no_such_neighbour", "No module named 'no_such_neighbour'"),
    ],
)
def test_a_script_that_does_its_work_when_imported_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.py").write_text(text)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(ModelError, match=message):
            model.load_factory(f"{tmp_path}/train.py:net")


def test_sys_exit_as_a_factory_does_not_end_the_command() -> None:
    with pytest.raises(ModelError, match=r"it called sys\.exit"):
        model.load_model(recipe("sys:exit"))


@pytest.mark.long
def test_ctrl_c_goes_through(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        model.load_model(recipe(f"{tmp_path}/net.py:build"))


@pytest.mark.parametrize("spec", ["..x:y", "a b:c", "x" * 9000 + ".py:f", "a\0.py:f", "1:2", ":"])
def test_names_that_cannot_be_are_explained(spec: str) -> None:
    with pytest.raises(ModelError) as refused:
        model.load_factory(spec)
    assert len(str(refused.value)) < 600
