# SPDX-License-Identifier: MIT
"""The problem: geometry in crop form, dtype names, and every length derived from them.

Axis letters: N batch, C_in, C_out, L_in, L_out, K taps, s stride, d dilation, g groups, k = d (K - 1) + 1 the effective
kernel, L_full = (L_in - 1) s + k the full response. Every padding convention is a crop of one full response:

    F[n,co,t] = sum over ci in the group of co, i, j with i*s + j*d = t of  x[n,ci,i] * w[ci,co',j]     0 <= t < L_full
    y[n,co,t] = bias[co] + F[n,co,t + p_left]                                           F = 0 outside its range
    L_out     = L_full - p_left - p_right

Negative crops extend with zeros, so with the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd
from typing import Literal

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16}
#: What a dtype is accumulated in: half types in float32, rounded once.
ACCUMULATOR = {"float16": "float32", "bfloat16": "float32"}
#: Machine epsilon (unit in the last place of 1.0) of the real type under each dtype.
EPSILON = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
    "complex64": 2.0**-23,
    "complex128": 2.0**-52,
}

Operation = Literal["forward", "input_grad", "weight_grad"]


def is_complex(dtype: str) -> bool:
    """Whether the dtype of that name is complex."""
    return dtype.startswith("complex")


def real_dtype(dtype: str) -> str:
    """The real dtype of the same precision."""
    return {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def result_dtype(*dtypes: str) -> str:
    """The dtype of a product of dtypes of one precision: complex as soon as one of them is."""
    return next((d for d in dtypes if is_complex(d)), dtypes[0])


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for b > 0."""
    return -(-a // b)


@dataclass(frozen=True)
class Phase:
    """One active residue r = t mod s of the full response.

    F[q*s + r] = sum_{m < taps} w[first_tap + m * tap_step] * x[q + offset - m * input_step]
    """

    residue: int
    first_tap: int
    taps: int
    offset: int


@dataclass(frozen=True)
class Phases:
    """How the taps fall into residue classes of the output (c = gcd(s, d)).

    Only residues that are multiples of c receive taps; each has at most J = ceil(K c / s) of them, one residue class of
    j modulo s/c, and their inputs are d/c apart. The other s - s/c residues are bias only.
    """

    common: int
    tap_step: int
    input_step: int
    max_taps: int
    active: tuple[Phase, ...]

    @property
    def span(self) -> int:
        """Inputs between the newest and the oldest one that an output of one phase sees."""
        return (self.max_taps - 1) * self.input_step


@lru_cache(maxsize=4096)
def phases(stride: int, dilation: int, kernel_size: int) -> Phases:
    """The residue classes of a geometry; residues without any tap (K < s) are left out."""
    common = gcd(stride, dilation)
    tap_step, input_step = stride // common, dilation // common
    active = []
    for first in range(min(tap_step, kernel_size)):
        residue = first * dilation % stride
        taps = ceil_div(kernel_size - first, tap_step)
        active.append(Phase(residue, first, taps, (residue - first * dilation) // stride))
    active.sort(key=lambda phase: phase.residue)
    return Phases(common, tap_step, input_step, ceil_div(kernel_size, tap_step), tuple(active))


@dataclass(frozen=True)
class Problem:
    """One call of the operator, without its arrays.

    `x_dtype` and `weight_dtype` are names; they are equal, or the real and complex dtype of one precision. `beta`
    weighs what the result held before, which is added last. `operation` is what is computed on this geometry: the
    operator, or one of its two gradients, which have the same flops and bytes.
    """

    batch: int
    c_in: int
    l_in: int
    c_out: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    p_left: int = 0
    p_right: int = 0
    x_dtype: str = "float32"
    weight_dtype: str = "float32"
    has_bias: bool = False
    activation: tuple[str, float] | None = None
    precision: str | None = None
    beta: float = 0.0
    operation: Operation = "forward"

    @cached_property
    def effective_kernel(self) -> int:
        """k = d (K - 1) + 1."""
        return self.dilation * (self.kernel_size - 1) + 1

    @cached_property
    def l_full(self) -> int:
        """Length of the full response."""
        return (self.l_in - 1) * self.stride + self.effective_kernel

    @cached_property
    def l_out(self) -> int:
        """Length of the result."""
        return self.l_full - self.p_left - self.p_right

    @cached_property
    def c_in_group(self) -> int:
        """Input channels of one group."""
        return self.c_in // self.groups

    @cached_property
    def c_out_group(self) -> int:
        """Output channels of one group."""
        return self.c_out // self.groups

    @cached_property
    def out_dtype(self) -> str:
        """Dtype of the result."""
        return result_dtype(self.x_dtype, self.weight_dtype)

    @cached_property
    def accumulator(self) -> str:
        """Dtype of the sums."""
        return ACCUMULATOR.get(self.out_dtype, self.out_dtype)

    @cached_property
    def phases(self) -> Phases:
        """Residue classes of the taps."""
        return phases(self.stride, self.dilation, self.kernel_size)

    @cached_property
    def x_shape(self) -> tuple[int, int, int]:
        """(N, C_in, L_in)."""
        return (self.batch, self.c_in, self.l_in)

    @cached_property
    def weight_shape(self) -> tuple[int, int, int]:
        """(C_in, C_out/g, K)."""
        return (self.c_in, self.c_out_group, self.kernel_size)

    @cached_property
    def out_shape(self) -> tuple[int, int, int]:
        """(N, C_out, L_out)."""
        return (self.batch, self.c_out, self.l_out)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates that the definition asks for: N C_in C_out K L_in / g."""
        return self.batch * self.c_in * self.c_out_group * self.kernel_size * self.l_in

    @cached_property
    def real_multiplies(self) -> int:
        """Real multiplications behind one multiply-accumulate: 1, 2 (mixed) or 4 (complex by complex)."""
        return (2 if is_complex(self.x_dtype) else 1) * (2 if is_complex(self.weight_dtype) else 1)

    @cached_property
    def flops(self) -> int:
        """Real floating-point operations of the definition."""
        return 2 * self.macs * self.real_multiplies

    @cached_property
    def x_bytes(self) -> int:
        """Bytes of x."""
        return self.batch * self.c_in * self.l_in * ITEM_BYTES[self.x_dtype]

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        return self.c_in * self.c_out_group * self.kernel_size * ITEM_BYTES[self.weight_dtype]

    @cached_property
    def out_bytes(self) -> int:
        """Bytes of the result that are moved: it is written, and read where `beta` is not 0."""
        return self.batch * self.c_out * self.l_out * ITEM_BYTES[self.out_dtype] * (2 if self.beta else 1)

    @cached_property
    def bytes(self) -> int:
        """Bytes that any method must move: x, weight and result."""
        return self.x_bytes + self.weight_bytes + self.out_bytes

    def __str__(self) -> str:
        geometry = f"K={self.kernel_size} stride={self.stride}"
        for name, value, usual in (("dilation", self.dilation, 1), ("groups", self.groups, 1)):
            geometry += f" {name}={value}" if value != usual else ""
        dtype = self.x_dtype if self.x_dtype == self.weight_dtype else f"{self.x_dtype} x, {self.weight_dtype} weight"
        dtype += f" beta={self.beta:g}" if self.beta else ""
        return (
            f"({self.batch}, {self.c_in}, {self.l_in}) -> ({self.batch}, {self.c_out}, {self.l_out}) {geometry} "
            f"crop=({self.p_left}, {self.p_right}) {dtype}"
        )
