"""What runs in INT8, by the words of each runtime's profiler, else by the graph."""

from __future__ import annotations

import pytest

from edgeprune import validate


def kernel(kind, implementation="", name="conv1", median=1.0):
    return {"name": name, "kind": kind, "implementation": implementation, "layers": [name], "median": median}


@pytest.mark.parametrize(
    ("kind", "implementation", "int8"),
    [
        ("Convolution", "brgconv_avx512_I8", True),
        ("FullyConnected", "brgemm_avx512_I8", True),
        ("Convolution", "brgconv_avx512_FP32", False),
        ("Convolution", "jit_avx512_dw_FP32", False),
        ("QLinearConv", "CPU", True),
        ("QGemm", "CPU", True),
        ("MatMulIntegerToFloat", "CPU", True),
        ("FusedConv", "CPU", False),
        ("Gemm", "CPU", False),
        ("CaskConvolution", "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw", True),
        ("CaskConvolution", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc", False),
    ],
)
def test_the_profiler_is_believed(kind, implementation, int8):
    found = validate.precision([kernel(kind, implementation)], {"conv1": True})
    assert (found.by, found.operators, found.int8) == ("profiler", 1, int(int8))
    assert found.floats == (() if int8 else ("conv1",))


def test_a_graph_full_of_qdq_is_no_int8_where_the_runtime_runs_it_in_float():
    found = validate.precision([kernel("Convolution", "brgconv_avx2_FP32"), kernel("Convert")], {"conv1": True})
    assert found.int8 == 0 and found.operators == 1


def test_the_share_is_of_time_and_other_kernels_do_not_count():
    kernels = [kernel("QLinearConv", median=3.0), kernel("Conv", name="fc", median=1.0), kernel("QuantizeLinear")]
    found = validate.precision(kernels, {})
    assert (found.int8, found.operators, found.floats, found.share) == (1, 2, ("fc",), 0.75)


@pytest.mark.parametrize(
    ("kind", "implementation"), [("MatMulNBits", "CPU"), ("FullyConnectedCompressed", "brgemm_avx512_I8")]
)
def test_weights_alone_in_integers_are_no_int8_and_are_named(kind, implementation):
    found = validate.precision([kernel("QLinearConv"), kernel(kind, implementation, "fc")], {})
    assert (found.int8, found.operators, found.floats, found.weights) == (1, 2, ("fc",), ("fc",))
    nothing = validate.precision([kernel(kind, implementation, "fc")], {})
    assert (nothing.int8, nothing.operators) == (0, 1)


def test_where_nobody_ran_it_the_graph_tells():
    modelled = [kernel("Conv", "modelled")]
    found = validate.precision(modelled, {"a": True, "b": False})
    assert (found.by, found.operators, found.int8, found.floats) == ("graph", 2, 1, ("b",))
