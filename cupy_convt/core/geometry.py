# SPDX-License-Identifier: MIT
"""From a user's arguments to a Problem: the padding conventions, and every refusal in its fixed order.

All checks pass before anything is computed or written. Messages name the argument, what was expected and what it got.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from cupy_convt.core.arguments import activation_of, at_least, factor, integer, integers, one
from cupy_convt.core.problem import DTYPES, Problem, real_dtype, result_dtype

METHODS = ("auto", "direct", "gemm", "fft")
PRECISIONS = (None, "ieee", "tf32")
PADDING_NAMES = ("same", "same_lower", "valid", "causal")


@dataclass(frozen=True)
class Geometry:
    """The geometry arguments of one call, normalised to plain integers; ranges are not yet checked."""

    stride: int = 1
    padding: int | str = 0
    output_padding: int = 0
    groups: int = 1
    dilation: int = 1
    output_size: int | tuple[int, ...] | None = None
    crop: tuple[int, int] = (0, 0)
    method: str = "auto"
    precision: str | None = None
    activation: tuple[str, float] | None = None
    batch_invariant: bool = False
    beta: float = 0.0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: a geometry is part of what every call is remembered by."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Operand:
    """Shape and dtype name of an array argument."""

    shape: tuple[int, ...]
    dtype: str


def make_geometry(
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    crop: Any = (0, 0),
    method: Any = "auto",
    precision: Any = None,
    activation: Any = None,
    batch_invariant: Any = False,
    beta: Any = 0.0,
    x_ndim: int | None = None,
) -> Geometry:
    """Refusals 1 to 9 of the interface (those that need no shape but x's number of axes).

    Raises:
        TypeError: an integer argument is a float, a bool or a string, batch_invariant not a bool, or beta no number.
        ValueError: a value is out of range, or a name unknown.
    """
    stride, output_padding, dilation = (
        integers(name, value)
        for name, value in (("stride", stride), ("output_padding", output_padding), ("dilation", dilation))
    )
    padding = padding if isinstance(padding, str) else integers("padding", padding)
    groups = integer("groups", groups)
    size = None if output_size is None else integers("output_size", output_size)
    pair = integers("crop", crop)
    if not isinstance(batch_invariant, bool):
        kind = type(batch_invariant).__name__
        raise TypeError(f"batch_invariant: expected a bool, got {batch_invariant!r} of type {kind}")
    beta = factor("beta", beta)
    if x_ndim is not None and x_ndim not in (2, 3):
        raise ValueError(f"x: expected 2 axes (C_in, L) or 3 axes (N, C_in, L), got {x_ndim}")
    at_least("groups", groups, 1)
    stride, output_padding, dilation = (
        one("stride", stride),
        one("output_padding", output_padding),
        one("dilation", dilation),
    )
    padding = padding if isinstance(padding, str) else one("padding", padding)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"crop: expected a pair of ints (left, right), got {crop!r}")
    if isinstance(size, tuple) and len(size) not in {1, x_ndim or 1}:
        raise ValueError(f"output_size: expected an int or a sequence of 1 or {x_ndim or 1} ints, got {size}")
    if not isinstance(padding, str):
        at_least("padding", padding, 0)
    if min(pair) < 0:
        raise ValueError(f"crop: expected two ints >= 0, got {pair}")
    at_least("output_padding", output_padding, 0)
    at_least("stride", stride, 1)
    at_least("dilation", dilation, 1)
    for name, value, known in (("method", method, METHODS), ("precision", precision, PRECISIONS)):
        if not any(value is k or (isinstance(value, str) and value == k) for k in known):
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    if isinstance(padding, str) and padding not in PADDING_NAMES:
        raise ValueError(f"padding: expected an int or one of {', '.join(map(repr, PADDING_NAMES))}, got {padding!r}")
    fused = activation_of(activation)
    return Geometry(
        stride, padding, output_padding, groups, dilation, size, pair, method, precision, fused, batch_invariant, beta
    )


@lru_cache(maxsize=4096)
def crops(geometry: Geometry, l_in: int, kernel_size: int) -> tuple[int, int]:
    """(p_left, p_right) of a geometry before `crop`, by the table of conventions; refuses a bad output_size.

    Sources: torch.nn.ConvTranspose1d for integers and output_size; ONNX ConvTranspose, auto_pad VALID, SAME_UPPER and
    SAME_LOWER, for "valid", "same" and "same_lower"; "causal" keeps y[t] a function of x[<= t // s].
    """
    s, op = geometry.stride, geometry.output_padding
    k = geometry.dilation * (kernel_size - 1) + 1
    padding = geometry.padding
    if geometry.output_size is not None:
        op = 0
    if padding in ("same", "same_lower"):
        total = k - s + op
        left = total // 2 if padding == "same" else total - total // 2
        right = total - left - op
    elif padding == "causal":
        left, right = 0, k - s
    elif padding == "valid":
        left, right = 0, -op
    else:
        assert isinstance(padding, int)
        left, right = padding, padding - op
    if geometry.output_size is None:
        return left, right
    size = geometry.output_size[-1] if isinstance(geometry.output_size, tuple) else geometry.output_size
    low = (l_in - 1) * s + k - left - right
    high = low if padding in ("same", "same_lower", "causal") else low + s - 1
    if not low <= size <= high:
        raise ValueError(f"output_size: expected {low} to {high} for L_in = {l_in}, got {size}")
    return left, right - (size - low)


def _refuse_shapes(geometry: Geometry, x: Operand, weight: Operand, bias: Operand | None) -> None:
    if len(weight.shape) != 3:
        raise ValueError(f"weight: expected 3 axes (C_in, C_out/groups, K), got shape {weight.shape}")
    c_in, c_out_group, _ = weight.shape
    if c_in % geometry.groups:
        raise ValueError(f"groups: expected a divisor of C_in = {c_in}, got {geometry.groups}")
    if x.shape[-2] != c_in:
        raise ValueError(
            f"x: expected C_in = {c_in} channels as in weight of shape {weight.shape}, got shape {x.shape}"
        )
    c_out = c_out_group * geometry.groups
    if bias is not None and bias.shape != (c_out,):
        raise ValueError(f"bias: expected shape ({c_out},), got {bias.shape}")


def _refuse_dtypes(geometry: Geometry, x: Operand, weight: Operand, bias: Operand | None) -> None:
    named = [("x", x), ("weight", weight)] + ([("bias", bias)] if bias is not None else [])
    for name, operand in named:
        if operand.dtype not in DTYPES:
            raise TypeError(f"{name}: expected a dtype among {', '.join(DTYPES)}, got {operand.dtype}")
    for name, operand in named[1:]:
        if real_dtype(operand.dtype) != real_dtype(x.dtype):
            mix = "real and complex of one precision may mix"
            raise TypeError(f"{name}: expected dtype {x.dtype} as x has ({mix}), got {operand.dtype}")
    if geometry.precision is not None and x.dtype != "float32":
        raise ValueError(
            f"precision: expected None for dtypes other than float32, got {geometry.precision!r} with {x.dtype}"
        )
    complex_result = result_dtype(*(operand.dtype for _, operand in named)).startswith("complex")
    if geometry.activation is not None and complex_result:
        raise ValueError(f"activation: expected None for complex results, got {geometry.activation[0]!r}")


@lru_cache(maxsize=4096)
def make_problem(
    geometry: Geometry, x: Operand, weight: Operand, bias: Operand | None, complaint: str | None = None
) -> Problem:
    """Refusals 10 to 17 of the interface, then the Problem.

    `complaint` is what the caller found wrong with the kinds or devices of the arrays; it is raised in its place in the
    order. A complex bias on a real product is not part of a Problem: the caller makes the weight complex first.

    Raises:
        TypeError: dtypes, kinds or devices differ, or a dtype is not supported.
        ValueError: shapes, lengths or output_size do not fit.
    """
    _refuse_shapes(geometry, x, weight, bias)
    if complaint is not None:
        raise TypeError(complaint)
    _refuse_dtypes(geometry, x, weight, bias)
    c_in, c_out_group, kernel_size = weight.shape
    l_in, batch = x.shape[-1], x.shape[0] if len(x.shape) == 3 else 1
    for name, axis, size in (("x", "L_in", l_in), ("weight", "C_in", c_in), ("weight", "K", kernel_size)):
        if size == 0:
            raise ValueError(f"{name}: expected {axis} >= 1, got 0")
    if c_out_group == 0:
        raise ValueError("weight: expected C_out >= 1, got 0")
    s, d, op = geometry.stride, geometry.dilation, geometry.output_padding
    if geometry.output_size is None and op >= max(s, d):
        raise ValueError(f"output_padding: expected smaller than either stride = {s} or dilation = {d}, got {op}")
    left, right = crops(geometry, l_in, kernel_size)
    problem = Problem(
        batch=batch,
        c_in=c_in,
        l_in=l_in,
        c_out=c_out_group * geometry.groups,
        kernel_size=kernel_size,
        stride=s,
        dilation=d,
        groups=geometry.groups,
        p_left=left + geometry.crop[0],
        p_right=right + geometry.crop[1],
        x_dtype=x.dtype,
        weight_dtype=weight.dtype,
        has_bias=bias is not None,
        activation=geometry.activation,
        precision=geometry.precision,
        beta=geometry.beta,
    )
    if problem.l_out < 1:
        raise ValueError(f"padding, crop: expected L_out >= 1, got L_out = {problem.l_out} from L_in = {l_in}")
    return problem


def output_length(geometry: Geometry, l_in: int, kernel_size: int) -> int:
    """L_out of a geometry.

    Raises:
        ValueError: L_in, K or L_out below 1, output_padding too large, or output_size out of range.
    """
    unit = replace(geometry, groups=1)
    operands = Operand((1, 1, l_in), "float32"), Operand((1, 1, kernel_size), "float32")
    return make_problem(replace(unit, precision=None, activation=None), *operands, None).l_out
