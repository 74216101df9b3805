"""Loading the user's network: what is right is loaded, what is wrong gets one clear error."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from edgeprune import model
from edgeprune.errors import ModelError
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe

FACTORY = f"{Path(__file__).parent.parent / 'networks.py'}:tiny_resnet"


def recipe(factory: str = FACTORY, weights: str = "", shape: tuple[int, ...] = (3, 32, 32)) -> Recipe:
    return Recipe(ModelSection(factory, shape, weights), DataSection("x"), BudgetSection(speedup=2.0))


def state() -> dict[str, torch.Tensor]:
    return model.load_factory(FACTORY)().state_dict()


@pytest.mark.long
def test_safetensors_weights_are_assigned_and_the_network_is_in_eval_mode(tmp_path: Path) -> None:
    changed = {key: value + 1 if key == "linear.bias" else value for key, value in state().items()}
    save_file(changed, tmp_path / "w.safetensors")
    loaded = model.load_model(recipe(weights=str(tmp_path / "w.safetensors")))
    assert not loaded.training
    assert torch.equal(loaded.state_dict()["linear.bias"], changed["linear.bias"])


@pytest.mark.long
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"module." + k: v for k, v in s.items()}]
)
def test_a_plain_state_dict_is_read_also_nested_or_from_data_parallel(tmp_path: Path, wrap) -> None:
    torch.save(wrap(state()), tmp_path / "w.pt")
    assert model.load_weights(tmp_path / "w.pt").keys() == state().keys()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-run"),))


@pytest.mark.long
def test_a_pickle_is_refused_and_its_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"not a plain state dict[\s\S]*safetensors"):
        model.load_weights(Path("w.pt"))
    torch.save(model.load_factory(FACTORY)(), "module.pt")
    with pytest.raises(ModelError, match="not a plain state dict"):
        model.load_weights(Path("module.pt"))
    assert not Path("evil-was-run").exists()


@pytest.mark.long
def test_wrong_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        model.load_model(recipe(weights=str(path)))
    path.write_bytes(b"1234")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        model.load_model(recipe(weights=str(path)))
    lacking = state()
    del lacking["linear.bias"]
    save_file(lacking, path)
    with pytest.raises(ModelError, match=r"lacks linear\.bias"):
        model.load_model(recipe(weights=str(path)))
    save_file({**state(), "linear.bias": torch.zeros(7)}, path)
    with pytest.raises(ModelError, match=r"linear\.bias has the shape \[7\].*wants \[10\]"):
        model.load_model(recipe(weights=str(path)))
    broken = state()
    broken["conv1.weight"] = broken["conv1.weight"].clone()
    broken["conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(broken, path)
    with pytest.raises(ModelError, match=r"conv1\.weight has 1 values that are NaN"):
        model.load_model(recipe(weights=str(path)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests/networks.py", "not of the form"),
        ("no/such/file.py:net", "no such file"),
        ("no_such_module:net", "no module named 'no_such_module'"),
        (FACTORY.replace("tiny_resnet", "tiny_resent"), "Did you mean 'tiny_resnet'"),
        (FACTORY.replace("tiny_resnet", "failing"), "no such checkpoint on this planet"),
        (FACTORY.replace("tiny_resnet", "not_a_module"), "gave dict, not a torch.nn.Module"),
        (FACTORY.replace("tiny_resnet", "two_outputs"), "output is tuple"),
    ],
)
def test_wrong_factories_are_explained(factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model.load_model(recipe(factory))


@pytest.mark.long
def test_a_wrong_input_shape_is_explained() -> None:
    with pytest.raises(ModelError, match=r"fails on one example of shape \[1, 4, 32, 32\]"):
        model.load_model(recipe(shape=(4, 32, 32)))


@pytest.mark.long
def test_the_exported_graph_is_canonical_and_computes_the_same(tmp_path: Path) -> None:
    network = model.load_model(recipe())
    network.train()
    example = torch.rand(2, 3, 32, 32)
    graph = model.export_onnx(network, example, tmp_path / "net.onnx").graph
    assert network.training, "the user's mode is kept"
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    kinds = {node.op_type for node in graph.node}
    assert kinds == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    layers = [name for name, part in network.named_modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")] == layers
    assert {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} == {t.name for t in graph.initializer}
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 17
    got = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": example.numpy()})[0]
    with torch.no_grad():
        wanted = network.eval()(example).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]


@pytest.mark.long
def test_a_mean_over_channels_exports(tmp_path: Path) -> None:
    class Rms(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True) + 1e-5)

    x = torch.randn(1, 3, 4, 4)
    model.export_onnx(Rms(), x, tmp_path / "rms.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "rms.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], Rms()(x).numpy(), atol=1e-5)


@pytest.mark.long
def test_a_digest_changes_with_a_weight() -> None:
    network = model.load_model(recipe())
    before = model.digest(network)
    with torch.no_grad():
        network.get_parameter("linear.bias")[3] += 1e-3
    assert model.digest(network) != before


def test_a_network_that_torch_cannot_export_is_refused_with_torch_s_own_reason(tmp_path: Path) -> None:
    class Looks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ModelError, match="torch cannot export the network to ONNX: ") as refused:
        model.export_onnx(Looks(), torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx")
    assert "\x1b" not in refused.value.message and "step" not in refused.value.message
    assert not list(tmp_path.iterdir())
