# SPDX-License-Identifier: MIT
"""Arrays in, arrays out: the operator as functions.

A call goes one way: arrays -> Problem (every refusal) -> Choice (which plan and why) -> engine -> array. NumPy arrays
run on the CPU engine and give NumPy arrays, CuPy arrays run on their device and give CuPy arrays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from operator import index
from types import NoneType
from typing import Any

from cupy_convt.calls import chosen, workspace_limit
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.geometry import Geometry, Operand, make_geometry, make_problem
from cupy_convt.core.problem import is_complex
from cupy_convt.definition import output_length, reference
from cupy_convt.devices import array_operand, cuda_arrays, device_spec, positive, to_dtype, to_numpy, weight_like
from cupy_convt.engines.source import kernel_directory
from cupy_convt.explain import Explanation
from cupy_convt.prepared import Operator, array_kind, check_kinds, common_engine, compute, operand_of

__all__ = [
    "Explanation",
    "Operator",
    "array_operand",
    "conv_transpose1d",
    "cuda_arrays",
    "device_spec",
    "explain",
    "kernel_directory",
    "make_geometry",
    "output_length",
    "positive",
    "prepare",
    "reference",
    "to_dtype",
    "to_numpy",
    "weight_like",
    "workspace_limit",
]


_PLAIN = (int, str, bool, float, NoneType)


@lru_cache(maxsize=1024, typed=True)
def _plain_geometry(
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    left: Any,
    right: Any,
    activation: Any,
    slope: Any,
    groups: Any,
    output_size: Any,
    method: Any,
    precision: Any,
    batch_invariant: Any,
    beta: Any,
    x_ndim: int,
) -> Geometry | None:
    """The geometry of plain arguments. None where there are others: a cache takes (1.0,) for (1,), typed or not."""
    integers = stride, padding, output_padding, groups, dilation
    options = {"output_size": output_size, "method": method, "precision": precision}
    options |= {"batch_invariant": batch_invariant, "beta": beta}
    if not all(type(value) in _PLAIN for value in (*integers, *options.values(), left, right, activation, slope)):
        return None
    fused = activation if slope is None else (activation, slope)
    return make_geometry(*integers, **options, crop=(left, right), activation=fused, x_ndim=x_ndim)


def _remembered(integers: tuple[Any, ...], crop: Any, activation: Any, others: tuple[Any, ...]) -> Geometry | None:
    """The geometry of arguments that a cache can tell apart, pairs taken to pieces; None for all others."""
    left, right = crop if type(crop) is tuple and len(crop) == 2 else (crop, ...)
    name, slope = activation, None
    if type(activation) is tuple and len(activation) == 2 and type(activation[0]) is str:
        name, slope = activation
    try:
        return _plain_geometry(*integers, left, right, name, slope, *others)
    except TypeError:  # a list is no key, or the argument is refused: make_geometry will say so again
        return None


def _single(value: Any) -> Any:
    """The int that an integer or a sequence of one int stands for; anything else as it is."""
    if type(value) in (tuple, list) and len(value) == 1 and type(value[0]) is int:
        return value[0]
    try:
        return value if type(value) in _PLAIN else index(value)
    except TypeError:
        return value


def conv_transpose1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    crop: Any = (0, 0),
    method: str = "auto",
    precision: str | None = None,
    out: Any = None,
    activation: Any = None,
    batch_invariant: bool = False,
    beta: float = 0.0,
) -> Any:
    """Transposed 1-D convolution, the operator of torch.nn.functional.conv_transpose1d.

        y[n,co,t] = bias[co] + sum over ci in the group of co, i, j with i*stride + j*dilation = t + p_left of
                    x[n,ci,i] * weight[ci,co',j]

    >>> import numpy as np, cupy_convt as ct
    >>> x, weight = np.ones((1, 1, 3), "float32"), np.ones((1, 1, 2), "float32")
    >>> ct.conv_transpose1d(x, weight, stride=2)
    array([[[1., 1., 1., 1., 1., 1.]]], dtype=float32)

    Args:
        x: input, NumPy or CuPy. Any strides, read-only and byte-swapped NumPy arrays included.
        weight: taps; the axes are torch's.
        bias: added to every sample of its channel, or None.
        stride, dilation: int >= 1, or a sequence of one.
        padding: int >= 0, torch's meaning: so many samples are taken off both ends; or "valid" (none), "same"
            (L_out = L_in * stride, ONNX SAME_UPPER), "same_lower", "causal" (L_out = L_in * stride, y[t] depends on
            x[<= t // stride] only).
        output_padding: samples added at the right end, smaller than either stride or dilation.
        groups: C_in and C_out are split into so many independent groups.
        output_size: L_out, among the `stride` lengths that fit the input; overrides output_padding.
        crop: (left, right) samples taken off besides, without a copy.
        method: "auto", "direct" (bits of a sample depend on nothing but its own receptive field), "gemm" or "fft".
        precision: for float32: None, error within the float32 bound; "ieee", IEEE multiply-adds only, and as many as
            the definition or the FFT has; "tf32", TF32 products are allowed.
        out: array for the result; it may not overlap an input.
        batch_invariant: whether an item's bits must be those that it gets alone, whatever the batch and its neighbours:
            the method is chosen for one item, and plans that cannot promise it run item by item. (Any batch of a
            plan is deterministic.)
        beta: so many times what `out` held is added to the result, after the activation, before it is rounded; a real
            number. 0: out is not read, and may hold anything.
        activation: None, "relu", "leaky_relu" (slope 0.01), ("leaky_relu", slope) or "tanh", applied after the bias.

    Shape:
        x: (N, C_in, L_in) or (C_in, L_in).
        weight: (C_in, C_out // groups, K).
        bias: (C_out,).
        out and the result: (N, C_out, L_out) or (C_out, L_out), with torch's
            L_out = (L_in - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1.

    Dtypes: float16, bfloat16 (of ml_dtypes), float32, float64, complex64, complex128; one for all three arrays, except
    that real and complex of one precision may mix. Half types are summed in float32 and rounded once.

    Raises:
        TypeError: an argument is not an array of one kind on one device, not an int or bool where one is wanted, or
            of an unsupported or different dtype.
        ValueError: a shape or value is out of range, the method cannot take the problem, L_out would be below 1, or
            there is a beta and no out.
    """
    engine = common_engine(x, weight, bias, out)
    integers = stride, padding, output_padding, dilation
    others = groups, output_size, method, precision, batch_invariant, beta, x.ndim
    geometry = (
        _remembered(integers, crop, activation, others)
        or _remembered(tuple(map(_single, integers)), crop, activation, others)
        or make_geometry(
            stride,
            padding,
            output_padding,
            groups,
            dilation,
            output_size=output_size,
            crop=crop,
            method=method,
            precision=precision,
            activation=activation,
            batch_invariant=batch_invariant,
            beta=beta,
            x_ndim=x.ndim,
        )
    )
    return compute(engine, geometry, x, weight, bias, out, None)


def prepare(
    weight: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    output_size: Any = None,
    crop: Any = (0, 0),
    method: str = "auto",
    precision: str | None = None,
    activation: Any = None,
    batch_invariant: bool = False,
) -> Operator:
    """The operator with its weight packed once: `op = prepare(weight, bias, stride=2)`, then `op(x)`, `op(x, out=y)`.

    Arguments, shapes, dtypes and errors are those of :func:`conv_transpose1d`; what needs no x is refused here.
    """
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None or name == "weight":
            array_kind(name, array)
    geometry = make_geometry(
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        crop=crop,
        method=method,
        precision=precision,
        activation=activation,
        batch_invariant=batch_invariant,
    )
    # An input of the least length that certainly gives a result shows everything that does not depend on x.
    span = weight.shape[-1] * geometry.dilation if weight.ndim == 3 else 1
    extra = 2 * geometry.padding if isinstance(geometry.padding, int) else 0
    least = (extra + sum(geometry.crop)) // geometry.stride + span + 2
    channels = weight.shape[0] if weight.ndim == 3 else 1
    dtype = bias.dtype.name if bias is not None and is_complex(bias.dtype.name) else weight.dtype.name
    probe = replace(geometry, output_size=None)
    _, complaint = check_kinds([("weight", weight)] + ([("bias", bias)] if bias is not None else []))
    make_problem(probe, Operand((1, channels, least), dtype), operand_of(weight), operand_of(bias), complaint)
    return Operator(weight, bias, geometry)


def explain(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    weight_dtype: str | None = None,
    device: str | DeviceSpec | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    output_size: Any = None,
    crop: Any = (0, 0),
    method: str = "auto",
    precision: str | None = None,
    activation: Any = None,
    batch_invariant: bool = False,
    beta: float = 0.0,
) -> Explanation:
    """What conv_transpose1d would do with arrays of these shapes, and why: print it.

    Every method with its predicted time and workspace, why each loser lost, and what the winner runs. `device` is None
    (this CPU), "cuda", "cuda:N", or a preset such as "h200" of a device that is not at hand: predictions then.

    >>> import cupy_convt as ct
    >>> ct.explain((1, 1, 4194304), (1, 1, 65536), device="h200").method
    'fft'

    Raises:
        TypeError, ValueError: as conv_transpose1d with such arrays; ValueError for an unknown device.
    """
    geometry = make_geometry(
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        crop=crop,
        method=method,
        precision=precision,
        activation=activation,
        batch_invariant=batch_invariant,
        beta=beta,
        x_ndim=len(x_shape),
    )
    operands = Operand(tuple(x_shape), str(dtype)), Operand(tuple(weight_shape), str(weight_dtype or dtype))
    problem = make_problem(geometry, *operands, None)
    return Explanation(chosen(problem, device_spec(device), geometry))
