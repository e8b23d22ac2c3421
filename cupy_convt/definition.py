# SPDX-License-Identifier: MIT
"""What the operator is, without any choice: the length of its result, and the definition as loops."""

from __future__ import annotations

from typing import Any

from cupy_convt.core.arguments import integer
from cupy_convt.core.geometry import make_geometry, make_problem
from cupy_convt.core.geometry import output_length as _output_length
from cupy_convt.core.problem import is_complex
from cupy_convt.prepared import array_kind, operand_of


def output_length(
    l_in: int,
    kernel_size: int,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    *,
    output_size: Any = None,
    crop: Any = (0, 0),
) -> int:
    """L_out in samples of an input of `l_in` samples; `groups` has no influence on it.

    >>> import cupy_convt as ct
    >>> ct.output_length(87, 16, stride=8, padding=4)
    696

    Raises:
        TypeError: an argument is not an int.
        ValueError: a value is out of range, or L_out would be below 1.
    """
    geometry = make_geometry(stride, padding, output_padding, groups, dilation, output_size=output_size, crop=crop)
    return _output_length(geometry, integer("l_in", l_in), integer("kernel_size", kernel_size))


def reference(
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
    activation: Any = None,
) -> Any:
    """The definition as loops, in float64 or complex128, on NumPy arrays: slow; every method is tested against it.

    Arguments, shapes and errors are those of :func:`cupy_convt.conv_transpose1d`.
    """
    from cupy_convt.engines.cpu import reference as loops

    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if (array is not None or name != "bias") and array_kind(name, array) != "numpy":
            raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    geometry = make_geometry(
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        crop=crop,
        activation=activation,
        x_ndim=x.ndim,
    )
    if bias is not None and is_complex(bias.dtype.name) and not is_complex(x.dtype.name):
        weight = weight.astype(bias.dtype)
    problem = make_problem(geometry, operand_of(x), operand_of(weight), operand_of(bias))
    result = loops(problem, x if x.ndim == 3 else x[None], weight, bias)
    return result if x.ndim == 3 else result[0]
