"""Each gate passes, fails by the stated amount, and says what would help."""

from __future__ import annotations

import copy

import msgspec
import pytest

from edgeprune import validate
from edgeprune.errors import RecipeError, RunError
from edgeprune.recipe import BudgetSection

BUDGET = BudgetSection(speedup=2.0, max_drop=0.5, max_bytes=400_000)


def figures(accuracy, median, size, **latency):
    return {"accuracy": accuracy, "bytes": size, "latency_ms": {"median": median, "spread": 0.01, **latency}}


GOOD = {
    "unit": "ms",
    "dense_fp32": figures(0.9400, 2.0, 3_400_000),
    "dense_int8": figures(0.9390, 1.0, 900_000),
    "pruned_fp32": figures(0.9370, 0.9, 1_500_000),
    "pruned_int8": figures(0.9360, 0.49, 390_000),
    "proof": {"passed": True, "max_error": 1e-6, "method": "masked"},
}


def changed(**changes):
    result = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = result
        for key in keys:
            place = place[key]
        place[last] = value
    return result


def by_name(result, budget=BUDGET):
    return {gate.name: gate for gate in validate.gates(result, budget)}


def test_all_gates_hold():
    found = by_name(GOOD)
    assert list(found) == ["measurement", "proof", "accuracy", "latency", "faster", "size"]
    assert all(gate.passed and not gate.remedy for gate in found.values())
    assert found["latency"].limit == 0.5
    assert found["accuracy"].value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "name", "says", "helps"),
    [
        ({"pruned_int8__accuracy": 0.9345}, "accuracy", "0.05 more than the limit of 0.50", "max_drop = 0.6"),
        ({"pruned_int8__latency_ms__median": 0.55}, "latency", "10.0% too slow", "plan"),
        ({"pruned_int8__latency_ms__median": 1.0}, "faster", "not faster", "dense INT8"),
        ({"pruned_int8__bytes": 400_001}, "size", "1 too many", "max_bytes = 400001"),
        ({"proof__passed": False}, "proof", "does not compute", "defect"),
        ({"proof": None}, "proof", "no proof", "--from prune"),
        ({"dense_int8__latency_ms__spread": 0.2}, "measurement", "dense INT8", "--from validate"),
        ({"pruned_int8__latency_ms__spread": float("nan")}, "measurement", "pruned INT8", "--from validate"),
        ({"pruned_int8__latency_ms__valid": False}, "measurement", "not valid", "--from validate"),
    ],
)
def test_each_gate_refuses_and_says_by_how_much(changes, name, says, helps):
    gate = by_name(changed(**changes))[name]
    assert not gate.passed
    assert says in gate.message
    assert helps in gate.remedy


def test_limits_themselves_pass():
    edge = changed(pruned_int8__accuracy=0.9350, pruned_int8__latency_ms__median=0.5, pruned_int8__bytes=400_000)
    assert all(gate.passed for gate in validate.gates(edge, BUDGET))


def test_blames_quantisation_where_it_costs_most():
    gate = by_name(changed(pruned_int8__accuracy=0.91))["accuracy"]
    assert "[quantize]" in gate.remedy


def test_says_so_when_uniform_widths_left_budget_unused():
    result = changed(pruned_int8__accuracy=0.9345, pruned_int8__latency_ms__median=0.29)
    result["search"] = {"method": "uniform"}
    assert "Only 58% of the latency budget is used" in by_name(result)["accuracy"].remedy
    result["search"] = {"method": "joint"}
    assert "Train longer" in by_name(result)["accuracy"].remedy


def test_nan_accuracy_never_passes():
    assert not by_name(changed(pruned_int8__accuracy=float("nan")))["accuracy"].passed


def test_without_a_size_limit_there_is_no_size_gate():
    assert "size" not in by_name(GOOD, msgspec.structs.replace(BUDGET, max_bytes=None))


def on_the_board():
    result = changed(unit="instructions")
    for name in ("dense_fp32", "dense_int8", "pruned_int8"):
        latency = result[name].pop("latency_ms")
        result[name]["latency_instructions"] = {**latency, "median": latency["median"] * 22e6}
    return result


def test_instructions_hold_a_speedup():
    gate = by_name(on_the_board())["latency"]
    assert gate.passed
    assert gate.unit == "instructions"
    assert "million instructions" in gate.message
    assert "ms" not in gate.message.replace("instructions", "")


def test_instructions_refuse_milliseconds_and_say_what_to_do():
    with pytest.raises(RecipeError, match="are no time") as caught:
        validate.gates(on_the_board(), BudgetSection(latency_ms=1.0))
    assert "speedup = 2.0" in caught.value.remedy


@pytest.mark.parametrize("path", ["pruned_int8", "pruned_int8__latency_ms", "dense_int8__latency_ms__median"])
def test_missing_figures_are_an_error_not_a_pass(path):
    with pytest.raises(RunError, match=r"result\.json has no"):
        validate.gates(changed(**{path: None if path.count("__") < 2 else float("nan")}), BUDGET)


def test_a_gate_is_plain_data():
    assert set(validate.gates(GOOD, BUDGET)[0].to_dict()) == {
        "name", "passed", "value", "limit", "unit", "message", "remedy",
    }  # fmt: skip


EMULATED = {
    "runtime": "onnxruntime 1.31.1, cortex-a76 under qemu-user",
    "images": 400,
    "accuracy": 0.9,
    "low": 0.87,
    "high": 0.93,
}


def emulated(**pruned):
    result = changed(unit="instructions")
    for name in ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8"):
        result[name]["latency_instructions"] = result[name].pop("latency_ms")
        facts = {**EMULATED, "same_class": 1.0, "same_bits": 1.0, "unproven": []}
        result[name] |= {"images": 2000, "emulated": facts}
    result["dense_fp32"]["emulated"]["same_bits"] = 0.0  # FP32 never has the same bits; nobody asks it to
    result["pruned_int8"]["emulated"] |= pruned
    return by_name(result)["emulation"]


@pytest.mark.parametrize(("same", "passes"), [(1.0, True), (0.9995, False)])
def test_an_emulated_runtime_must_give_every_bit_of_the_pre_check(same, passes):
    gate = emulated(same_bits=same)
    assert gate.passed is passes and (gate.value, gate.limit) == (same, 1.0)
    assert "400 of 2,000 images" in gate.message and "87.00% to 93.00%" in gate.message
    assert "every bit" in gate.message


@pytest.mark.parametrize(("same", "passes"), [(1.0, True), (0.98, False)])
def test_with_an_operator_that_is_not_proven_the_class_must_be_the_same_and_the_gate_names_it(same, passes):
    gate = emulated(same_class=same, same_bits=0.5, unproven=["Resize", "float Conv"])
    assert gate.passed is passes and (gate.value, gate.limit) == (same, 0.99)
    assert "not proven equal: Resize, float Conv" in gate.message and "the same class" in gate.message


def test_a_run_that_did_not_look_at_its_operators_is_held_to_the_class():
    gate = emulated(same_bits=0.5, unproven=None)
    assert gate.passed and gate.limit == 0.99 and "not recorded" in gate.message


def test_what_no_device_measured_is_unverified_and_nothing_else():
    result = changed(unit="modelled ms")
    for name in ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8"):
        result[name]["latency_modelled_ms"] = result[name].pop("latency_ms")
    gates = validate.gates(result, BUDGET)
    assert [gate.name for gate in gates if not gate.passed] == ["measurement"]
    assert "model, not measured" in gates[0].message and "--device" in gates[0].remedy
    assert validate.verdict(gates, "modelled ms") == "unverified"
    assert validate.verdict(gates, "ms") == "refused"
    result["pruned_int8"]["accuracy"] = 0.5
    assert validate.verdict(validate.gates(result, BUDGET), "modelled ms") == "refused"
    assert validate.verdict(validate.gates(GOOD, BUDGET), "ms") == "release"
