# SPDX-License-Identifier: MIT
"""How far rounding can take a result from the exact one: bounds that hold for every input, not what usually happens.

With u the unit roundoff of the accumulator (2^-24 for float32 and halves, 2^-53 for float64), gamma_n = n u / (1 - n u)
and all norms over time:

Sums. A sample is a sum of n = (C_in/g) J products in some order, so (N. J. Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., SIAM 2002, section 3.1)

    |error| <= gamma_n sum |x||w|

with n + 1 for a bias, whose size then counts beside the products. Complex products are four real ones: n counts
twice, and the two parts together give a factor sqrt(2). Products of TF32 numbers round their factors to 11 bits first,
which adds 2 * 2^-11 + 2^-22; three of them in place of one leave 3 * 2^-22. Tensor cores cut off where others round:
their u is twice as large. A minimal filter sums sums: it is bounded as the rows of its three matrices multiply,
by 3 * 1 * sqrt(2) gamma_(n + 8) times the norms below.

Transforms. An M-point transform of t = log2(M) levels, its twiddle factors right to u, has by Higham's theorem 24.2 an
error in the norm, and along every path from one input to one output an error in each element, of at most

    eps_M = t eta / (1 - t eta),      eta = u + gamma_4 (sqrt(2) + u)

where a step of another radix counts as the levels of base 2 that it replaces, and the real transform's last step as one
more. With X and H the spectra of a window and of the taps, summed over C_in/g channels, errors of X and of H reach a
sample through the product as sum_k (|dX||H| + |X||dH|)/M, which Cauchy's inequality and Parseval's equation turn into
2 eps ||x|| ||h||; the product itself adds sqrt(2) gamma_2, the sum gamma_C, and the inverse transform eps again:

    |error| <= (3 eps_M + sqrt(2) gamma_2 + gamma_C) sum_ci ||x|| ||w||

to first order. It is relative to the whole window: a quiet passage next to a loud one has the error of the loud one.
For vendor transforms, which document no bound, the same is assumed.

Three real products in place of a complex one (core/plan_fft_matrices.py) add and subtract parts before and after sums
of C products: each part of a result is off by at most gamma_(C+2) times, for the real one, |W_r|(|X_r| + |X_i|) +
(|W_r| + |W_i|)|X_i| <= (1 + sqrt(2)) |X||W|, for the imaginary one no more, both together by sqrt(2) times that. So

    |error| <= (3 eps_M + (2 + sqrt(2)) gamma_(C+2)) sum_ci ||x|| ||w||

the form that N. J. Higham (SIAM J. Matrix Anal. Appl. 13, 681-687, 1992) gives for matrices: a small part beside a
large one may lose its digits, but not more than rounding the large one takes.

Every method then rounds once to the dtype of the result: u_out |y|. Methods are told apart by these bounds only as far
as worst cases go; errors of independent roundings grow with the square root of their number instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import log2, sqrt

from cupy_convt.core.launch import Fft, Plan
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import ACCUMULATOR, EPSILON, Problem, is_complex

#: What bounds are relative to: products of absolute values of a sample, or norms of the rows over time.
SUMS, NORMS = "sum |x||w|", "sum ||x|| ||w||"
#: Unit roundoff of the factors of a TF32 product.
_TF32 = 2.0**-11


@dataclass(frozen=True)
class ErrorBound:
    """|error| <= factor * of + rounding * |y| for every sample, where `of` is SUMS or NORMS.

    SUMS: the operator applied to |x| and |w|, and |bias| added. NORMS: sum over the input channels of the group of the
    Euclidean norms over time of x[n, ci] and w[ci, co].
    """

    factor: float
    of: str
    rounding: float

    def __str__(self) -> str:
        return f"{self.factor:.1e} {self.of}"


def gamma(terms: float, unit: float) -> float:
    """n u / (1 - n u), or infinity where the bound says nothing."""
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else float("inf")


def transform_error(length: int, unit: float) -> float:
    """Error of a real or complex transform over the norm of its result."""
    levels = log2(max(length, 2)) + 1
    eta = unit + gamma(4, unit) * (sqrt(2) + unit)
    return gamma(levels, eta)


def transform_length(plan: Plan | CpuPlan) -> int:
    """Points of the transforms of an FFT plan."""
    if isinstance(plan, CpuPlan):
        assert plan.fft is not None
        return plan.fft.length
    lengths = [step.length for step in plan.steps if isinstance(step, Fft)]
    return max(lengths) if lengths else int(re.findall(r"\d+", plan.variant)[-1])


@lru_cache(maxsize=4096)
def error_bound(problem: Problem, plan: Plan | CpuPlan) -> ErrorBound:
    """The bound of a plan."""
    unit, rounding = EPSILON[problem.accumulator] / 2, EPSILON[problem.out_dtype] / 2
    both = is_complex(problem.x_dtype) and is_complex(problem.weight_dtype)
    planes, parts = (2, sqrt(2)) if both else (1, 1.0)
    channels = planes * problem.c_in_group
    terms = channels * problem.phases.max_taps + problem.has_bias
    if plan.method == "fft":
        transforms = 3 * transform_error(transform_length(plan), unit)
        if plan.variant.startswith("three-product"):
            factor = transforms + (2 + sqrt(2)) * gamma(channels + 2 + problem.has_bias, unit)
            return ErrorBound(parts * factor, NORMS, rounding)
        factor = transforms + sqrt(2) * gamma(2, unit) + gamma(channels + problem.has_bias, unit)
        return ErrorBound(parts * factor, NORMS, rounding)
    if "winograd" in plan.variant:
        return ErrorBound(parts * 3 * sqrt(2) * gamma(terms + 8, unit), NORMS, rounding)
    products = tensor_core_products(problem, plan)
    factor = gamma(terms, 2 * unit if products else unit)
    factor += {"tf32": 2 * _TF32 + _TF32**2, "3xtf32": 3 * _TF32**2}.get(products, 0.0) * (1 + factor)
    return ErrorBound(parts * factor, SUMS, rounding)


def tensor_core_products(problem: Problem, plan: Plan | CpuPlan) -> str:
    """The kind of a plan's products that have a rate of their own: "half", "tf32", "3xtf32", or none."""
    if isinstance(plan, CpuPlan):
        return "half" if plan.subpixel and plan.subpixel.half else ""
    if plan.method != "gemm" or "fma" in plan.variant:
        return ""
    if problem.x_dtype in ACCUMULATOR:
        return "half"
    if "3xtf32" in plan.variant:
        return "3xtf32"
    return "tf32" if problem.precision == "tf32" and problem.x_dtype == "float32" else ""
