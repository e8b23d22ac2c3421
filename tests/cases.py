# SPDX-License-Identifier: MIT
"""Awkward geometries, random operands and the tolerance that arithmetic allows.

Each geometry has L_out != L_in, and together they have N > 1, groups > 1, prime sizes, K < s, ragged taps (s does not
divide K), dilation with and without a common factor with the stride, output_padding (a negative right crop), one input
sample, crops beyond the taps on either side, and a stride for every number of residues a thread may compute.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import log2, sqrt
from typing import Any

import numpy as np

from cupy_convt.core.accuracy import transform_length
from cupy_convt.core.launch import DTYPE_PAIRS, Plan
from cupy_convt.core.problem import EPSILON, Problem, is_complex
from cupy_convt.engines.cpu import reference
from cupy_convt.engines.dtypes import named_dtype

#: (N, C_in, L_in, C_out, K, s, d, g, p_left, p_right, activation); a bias wherever the number of taps is odd
GEOMETRIES: dict[str, tuple[Any, ...]] = {
    "fir": (1, 1, 300, 1, 41, 1, 1, 1, 20, 20, None),
    "fir of two": (2, 2, 131, 4, 2, 1, 1, 2, 0, 1, ("relu", 0.0)),
    "dilated fir": (1, 3, 97, 3, 9, 1, 3, 3, 5, 7, None),
    "ragged": (2, 4, 37, 6, 5, 2, 1, 2, 1, 0, ("leaky_relu", 0.1)),
    "depthwise": (2, 5, 130, 5, 12, 2, 1, 5, 5, 4, None),
    "one input": (3, 2, 1, 3, 7, 3, 1, 1, 1, 0, ("tanh", 0.0)),
    "common factor": (2, 4, 33, 2, 7, 4, 6, 2, -3, -9, None),
    "prime": (1, 3, 89, 2, 11, 3, 1, 1, 2, 1, None),
    "dilated": (2, 2, 53, 2, 5, 4, 3, 1, 4, 3, ("tanh", 0.0)),
    "stride five": (1, 2, 67, 2, 13, 5, 1, 2, 3, 2, None),
    "stride six": (1, 1, 70, 2, 20, 6, 1, 1, 7, 5, None),
    "stride seven": (2, 2, 40, 2, 3, 7, 1, 2, 0, -5, None),
    "stride eight": (1, 2, 45, 1, 29, 8, 1, 1, 11, 10, ("leaky_relu", 0.3)),
    "stride sixteen": (1, 1, 33, 1, 70, 16, 1, 1, 27, 26, None),
    "gap": (1, 2, 9, 2, 4, 9, 2, 1, 1, 0, None),
    "long crop": (1, 2, 60, 3, 6, 3, 1, 1, 70, 55, None),
    "before the taps": (1, 2, 20, 2, 5, 2, 1, 1, -100, 30, ("relu", 0.0)),
    "behind the taps": (2, 1, 11, 2, 3, 2, 1, 1, 30, -60, None),
    "short rows": (16, 6, 9, 6, 6, 3, 1, 6, 1, 0, None),
    "wide stride": (1, 1, 12, 1, 150, 100, 1, 1, 30, 5, None),
    "long filter": (1, 2, 700, 2, 230, 2, 1, 2, 100, 90, None),
}


@cache
def problem(name: str, x_dtype: str = "float32", weight_dtype: str | None = None) -> Problem:
    """A geometry with dtypes; the activation only where the result is real."""
    weight_dtype = weight_dtype or x_dtype
    n, c_in, l_in, c_out, k, s, d, g, left, right, activation = GEOMETRIES[name]
    if is_complex(x_dtype) or is_complex(weight_dtype):
        activation = None
    return Problem(n, c_in, l_in, c_out, k, s, d, g, left, right, x_dtype, weight_dtype, k % 2 == 1, activation)


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Standard normal numbers of a dtype."""
    data: Any = rng.standard_normal(shape)
    if is_complex(dtype):
        data = data + 1j * rng.standard_normal(shape)
    return data.astype(named_dtype(dtype))


def operands(p: Problem, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x, weight and bias (None without one)."""
    rng = np.random.default_rng(seed)
    x, weight = values(rng, p.x_shape, p.x_dtype), values(rng, p.weight_shape, p.weight_dtype)
    return x, weight, values(rng, (p.c_out,), p.out_dtype) if p.has_bias else None


def expected(p: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The definition in float64 or complex128, activation included."""
    return reference(p, x, weight, bias)


def tolerance(p: Problem, plan: Plan, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What rounding may do to each sample.

    A sum of n products in the accumulator: eps sqrt(n) sum |x||w|, with a factor for luck; a transform of M points:
    eps log2(M) times the norms of the whole block; then one rounding of the result.
    """
    terms = p.c_in_group * p.phases.max_taps + 1
    wide = np.float64
    sums = reference(_real(p), np.abs(x).astype(wide), np.abs(weight).astype(wide))
    eps = EPSILON[p.accumulator]
    bound = 4 * eps * sqrt(terms) * sums + 4 * eps
    if plan.method == "fft":
        loudest = np.abs(x).astype(wide).max() * np.abs(weight).astype(wide).max() * terms
        bound = bound + 2 * eps * (1 + log2(transform_length(plan))) * loudest
    return bound + EPSILON[p.out_dtype] * (np.abs(y) + 1e-30)


def blended(
    p: Problem, plan: Plan, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, old: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(tolerance, result) where the result held `old` before: everything is rounded to its dtype once."""
    plain = replace(p, beta=0.0)
    sums = expected(plain, x, weight, bias)
    wanted = sums + p.beta * old.astype(sums.dtype)
    limit = tolerance(plain, plan, x, weight, np.zeros_like(sums))
    limit = limit + 4 * EPSILON[p.accumulator] * (np.abs(sums) + np.abs(p.beta * old.astype(sums.dtype)))
    if p.precision == "tf32":  # of operands that are rounded
        limit = limit + 2.0**-10 * reference(_real(p), np.abs(x).astype(np.float64), np.abs(weight).astype(np.float64))
    if p.accumulator != p.out_dtype:
        limit = limit + EPSILON[p.out_dtype] / 2 * np.abs(wanted) + (2.0**-25 if p.out_dtype == "float16" else 0)
    return limit, wanted


def _real(p: Problem) -> Problem:
    return Problem(
        p.batch, p.c_in, p.l_in, p.c_out, p.kernel_size, p.stride, p.dilation, p.groups, p.p_left, p.p_right,
        "float64", "float64",
    )  # fmt: skip


def pair_id(pair: tuple[str, str]) -> str:
    """How a pair of dtypes is printed."""
    return pair[0] if pair[0] == pair[1] else "-".join(pair)


PAIRS = DTYPE_PAIRS
