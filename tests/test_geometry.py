# SPDX-License-Identifier: MIT
"""Padding conventions against their published formulas, and the order of the refusals that need no array."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cupy_convt.core.geometry import Geometry, Operand, crops, make_geometry, make_problem, output_length

sizes = st.integers(1, 30)


@given(l_in=sizes, k=sizes, s=st.integers(1, 9), d=st.integers(1, 5), p=st.integers(0, 20), op=st.integers(0, 8))
def test_integer_padding_has_torchs_length(l_in: int, k: int, s: int, d: int, p: int, op: int) -> None:
    length = (l_in - 1) * s - 2 * p + d * (k - 1) + op + 1
    assume(op < max(s, d) and length >= 1)
    geometry = make_geometry(s, p, op, 1, d)
    assert output_length(geometry, l_in, k) == length
    assert crops(geometry, l_in, k) == (p, p - op)


@given(l_in=sizes, k=sizes, s=st.integers(1, 9), d=st.integers(1, 5))
def test_same_and_causal_multiply_the_length(l_in: int, k: int, s: int, d: int) -> None:
    for padding in ("same", "same_lower", "causal"):
        assert output_length(make_geometry(s, padding, 0, 1, d), l_in, k) == l_in * s
    upper, lower = (crops(make_geometry(s, p, 0, 1, d), l_in, k) for p in ("same", "same_lower"))
    total = d * (k - 1) + 1 - s
    assert upper == (total // 2, total - total // 2)
    assert lower == (total - total // 2, total // 2)
    assert crops(make_geometry(s, "causal", 0, 1, d), l_in, k) == (0, total)


@given(l_in=sizes, k=sizes, s=st.integers(1, 9), extra=st.integers(-2, 10))
def test_output_size_spans_stride_values(l_in: int, k: int, s: int, extra: int) -> None:
    low = (l_in - 1) * s + k
    geometry = make_geometry(s, output_size=low + extra)
    if 0 <= extra < s:
        assert output_length(geometry, l_in, k) == low + extra
    else:
        with pytest.raises(ValueError, match=f"output_size: expected {low} to {low + s - 1} .*got {low + extra}"):
            output_length(geometry, l_in, k)


def test_output_size_overrides_output_padding_and_spans_stride_values_even_when_dilation_is_larger() -> None:
    assert output_length(make_geometry(2, 0, 1, 1, 5, output_size=13), 4, 2) == 13
    with pytest.raises(ValueError, match="output_size: expected 12 to 13"):
        output_length(make_geometry(2, 0, 1, 1, 5, output_size=14), 4, 2)


def test_output_size_is_fixed_by_padding_names_that_fix_the_length() -> None:
    assert output_length(make_geometry(3, "same", output_size=12), 4, 5) == 12
    with pytest.raises(ValueError, match="output_size: expected 12 to 12 for L_in = 4, got 13"):
        output_length(make_geometry(3, "same", output_size=13), 4, 5)


def test_output_size_as_a_sequence_of_all_axes() -> None:
    assert make_geometry(2, output_size=[1, 2, 9], x_ndim=3).output_size == (1, 2, 9)
    assert output_length(make_geometry(2, output_size=[1, 2, 9], x_ndim=3), 4, 3) == 9
    with pytest.raises(ValueError, match="output_size: expected an int or a sequence of 1 or 3 ints"):
        make_geometry(2, output_size=[1, 9], x_ndim=3)


GOOD: dict[str, Any] = {}
#: One fault each, in the order in which they are to be found.
FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"stride": 2.0}, TypeError, "stride: expected an int, got 2.0"),
    ({"x_ndim": 4}, ValueError, "x: expected 2 axes .* or 3 axes .*, got 4"),
    ({"groups": 0}, ValueError, "groups: expected an int >= 1, got 0"),
    ({"dilation": (1, 1)}, ValueError, r"dilation: expected an int or a sequence of one int, got \(1, 1\)"),
    ({"padding": -1}, ValueError, "padding: expected an int >= 0, got -1"),
    ({"output_padding": -1}, ValueError, "output_padding: expected an int >= 0, got -1"),
    ({"stride": 0}, ValueError, "stride: expected an int >= 1, got 0"),
    ({"dilation": 0}, ValueError, "dilation: expected an int >= 1, got 0"),
    ({"method": "winograd"}, ValueError, "method: expected one of 'auto', 'direct', 'gemm', 'fft', got 'winograd'"),
]


@pytest.mark.parametrize("index", range(len(FAULTS)))
def test_refusals_come_in_their_order(index: int) -> None:
    arguments, kind, message = FAULTS[index]
    with pytest.raises(kind, match=message):
        make_geometry(**arguments)
    for later, _, _ in FAULTS[index + 1 :]:
        with pytest.raises(kind, match=message):
            make_geometry(**{**later, **arguments})


@pytest.mark.parametrize("name", ["stride", "padding", "output_padding", "groups", "dilation", "output_size"])
@pytest.mark.parametrize("value", [1.0, True, "1", np.float32(1), b"1"])
def test_numbers_that_are_not_ints_are_refused(name: str, value: Any) -> None:
    kind = ValueError if (name, value) == ("padding", "1") else TypeError
    with pytest.raises(kind, match=f"{name}: expected"):
        make_geometry(**{name: value})


@pytest.mark.parametrize("value", [[1.5], [True], ["1"]])
def test_elements_of_sequences_are_checked(value: Any) -> None:
    with pytest.raises(TypeError, match="stride: expected an int"):
        make_geometry(stride=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, -1)}, r"crop: expected two ints >= 0, got \(0, -1\)"),
        ({"crop": (0, 1, 2)}, r"crop: expected a pair of ints \(left, right\), got \(0, 1, 2\)"),
        ({"crop": 1}, "crop: expected a pair"),
        ({"precision": "fp8"}, "precision: expected one of None, 'ieee', 'tf32', got 'fp8'"),
        ({"padding": "full"}, "padding: expected an int or one of 'same', 'same_lower', 'valid', 'causal', got 'full'"),
        ({"activation": "gelu"}, "activation: expected None, 'relu'.* got 'gelu'"),
        ({"activation": ("relu", 0.1)}, "activation: expected"),
        ({"activation": ("leaky_relu", "steep")}, "activation: expected"),
        ({"method": None}, "method: expected"),
    ],
)
def test_names_and_pairs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_geometry(**arguments)


def test_numpy_integers_and_sequences_of_one_pass() -> None:
    geometry = make_geometry(np.int64(3), [np.uint8(2)], (1,), np.int32(4), [2], crop=[np.int16(1), 0])
    assert geometry == Geometry(3, 2, 1, 4, 2, None, (1, 0))


X, W = Operand((2, 4, 9), "float32"), Operand((4, 3, 5), "float32")
#: One fault each of refusals 10 to 17, in order: operands, geometry, error, message.
SHAPE_FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": Operand((4, 3), "float32")}, ValueError, r"weight: expected 3 axes .*got shape \(4, 3\)"),
    ({"groups": 3}, ValueError, "groups: expected a divisor of C_in = 4, got 3"),
    ({"x": Operand((2, 5, 9), "float32")}, ValueError, r"x: expected C_in = 4 channels .*got shape \(2, 5, 9\)"),
    ({"bias": Operand((4,), "float32")}, ValueError, r"bias: expected shape \(3,\), got \(4,\)"),
    ({"complaint": "weight: expected a numpy array"}, TypeError, "weight: expected a numpy array"),
    ({"bias": Operand((3,), "float64")}, TypeError, "bias: expected dtype float32 as x has .*got float64"),
    ({"x": Operand((2, 4, 0), "float32")}, ValueError, "x: expected L_in >= 1, got 0"),
    (
        {"output_padding": 2},
        ValueError,
        "output_padding: expected smaller than either stride = 2 or dilation = 1, got 2",
    ),
    ({"padding": 30}, ValueError, "expected L_out >= 1, got L_out = -39 from L_in = 9"),
]


def build(**changes: Any) -> Any:
    arguments = {
        "stride": 2,
        "padding": 0,
        "output_padding": 0,
        "groups": 1,
        "x": X,
        "weight": W,
        "bias": None,
    } | changes
    geometry = make_geometry(*(arguments[n] for n in ("stride", "padding", "output_padding", "groups")))
    return make_problem(geometry, arguments["x"], arguments["weight"], arguments["bias"], arguments.get("complaint"))


@pytest.mark.parametrize("index", range(len(SHAPE_FAULTS)))
def test_shape_refusals_come_in_their_order(index: int) -> None:
    arguments, kind, message = SHAPE_FAULTS[index]
    with pytest.raises(kind, match=message):
        build(**arguments)
    for later, _, _ in SHAPE_FAULTS[index + 1 :]:
        if not set(later) & set(arguments):
            with pytest.raises(kind, match=message):
                build(**{**later, **arguments})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": Operand((4, 3, 0), "float32")}, "weight: expected K >= 1, got 0"),
        ({"weight": Operand((4, 0, 5), "float32")}, "weight: expected C_out >= 1, got 0"),
        ({"x": Operand((2, 0, 9), "float32"), "weight": Operand((0, 3, 5), "float32")}, "weight: expected C_in >= 1"),
    ],
)
def test_empty_axes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_unsupported_dtypes_are_listed() -> None:
    with pytest.raises(TypeError, match="x: expected a dtype among float16, bfloat16, .*complex128, got int32"):
        build(x=Operand((2, 4, 9), "int32"))


def test_real_and_complex_of_one_precision_mix_and_others_do_not() -> None:
    assert build(x=Operand((2, 4, 9), "complex64")).out_dtype == "complex64"
    with pytest.raises(TypeError, match="weight: expected dtype complex128"):
        build(x=Operand((2, 4, 9), "complex128"))


def test_precision_is_for_float32_and_activations_for_real_results() -> None:
    half, complex64 = Operand((2, 4, 9), "float16"), Operand((2, 4, 9), "complex64")
    with pytest.raises(ValueError, match="precision: expected None for dtypes other than float32"):
        make_problem(make_geometry(precision="tf32"), half, Operand(W.shape, "float16"), None)
    with pytest.raises(ValueError, match="activation: expected None for complex results"):
        make_problem(make_geometry(activation="tanh"), complex64, W, None)


def test_an_empty_batch_is_a_problem() -> None:
    assert build(x=Operand((0, 4, 9), "float32")).out_shape == (0, 3, 21)
