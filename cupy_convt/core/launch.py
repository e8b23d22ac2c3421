# SPDX-License-Identifier: MIT
"""Plans as data: what a GPU is to run, printable and hashable, with names where the pointers will be.

Buffers are named: "x", "weight", "bias", "out" are the caller's arrays, any other name is a workspace of the plan. An
argument of a launch is one of

    "name"              pointer to the first element of that buffer (a null pointer for a bias that is not there)
    At("name", n)       pointer to element n of it
    Stride("x", axis)   64-bit stride of that axis of the caller's (N, C, L) array, in elements
    I32(v) I64(v) F32(v) F64(v)   a scalar of the kernel's parameter type
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cupy_convt.core.problem import ITEM_BYTES, Problem

#: How the kernels spell the element type of a dtype; complex numbers are pairs.
CUDA_TYPES = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    "complex64": "float2",
    "complex128": "double2",
}
#: (x, weight) dtypes that every method takes; a real operand beside a complex one stays real.
DTYPE_PAIRS = (
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("float32", "float32"),
    ("float64", "float64"),
    ("complex64", "complex64"),
    ("complex128", "complex128"),
    ("complex64", "float32"),
    ("float32", "complex64"),
    ("complex128", "float64"),
    ("float64", "complex128"),
)
#: The epilogue's activation codes of kernels/types.cuh.
ACTIVATIONS = {"relu": 1, "leaky_relu": 2, "tanh": 3}
#: What a launch may have at most in grid.x.
GRID_LIMIT = 2**31 - 1
#: A kernel source with its defines: what is compiled.
Variant = tuple[str, tuple[tuple[str, str | int], ...]]


@dataclass(frozen=True)
class At:
    """A pointer `offset` elements into a buffer."""

    buffer: str
    offset: int


@dataclass(frozen=True)
class Stride:
    """Stride in elements of one axis of "x" or "out" seen as (N, C, L), `times` a factor."""

    buffer: str
    axis: int
    times: int = 1


@dataclass(frozen=True)
class I32:
    """A 32-bit integer argument."""

    value: int

    def __post_init__(self) -> None:
        if not -(2**31) <= self.value < 2**31:
            raise OverflowError(f"expected a 32-bit launch argument, got {self.value}")


@dataclass(frozen=True)
class I64:
    """A 64-bit integer argument."""

    value: int


@dataclass(frozen=True)
class F32:
    """A float argument."""

    value: float


@dataclass(frozen=True)
class F64:
    """A double argument."""

    value: float


Argument = str | At | Stride | I32 | I64 | F32 | F64


def epilogue(problem: Problem) -> tuple[I32, F64, F64]:
    """The three arguments that end every output kernel's list: activation code and slope, and beta."""
    kind, slope = problem.activation or ("", 0.0)
    return I32(ACTIVATIONS.get(kind, 0)), F64(slope), F64(problem.beta)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: kernels/<kernel>.cu, whose entry has the same name, compiled with these defines."""

    kernel: str
    defines: tuple[tuple[str, str | int], ...]
    grid: int
    block: int
    shared_bytes: int
    arguments: tuple[Argument, ...]

    @property
    def variant(self) -> Variant:
        """What is compiled: the source and its defines."""
        return self.kernel, self.defines


@dataclass(frozen=True)
class Matrix:
    """A batch of row-major matrices inside a buffer: element (b, i, j) at offset + b*batch_stride + i*row_stride + j.

    A stride may be a Stride, when it is one of the caller's array; so may the offset be a sum of multiples of them.
    Offsets and strides count elements of the Gemm's dtype: a complex buffer may be read as pairs of reals.
    """

    buffer: str
    offset: int
    rows: int
    columns: int
    row_stride: int | Stride
    batch_stride: int | Stride
    stride_offsets: tuple[tuple[Stride, int], ...] = ()


@dataclass(frozen=True)
class Gemm:
    """out[b] = left[b]^T @ right[b] if left_transposed else left[b] @ right[b], by the vendor's library.

    Operands have `dtype`; the products are summed and kept in `out_dtype`, in which `out` is counted.
    """

    left: Matrix
    right: Matrix
    out: Matrix
    batch: int
    left_transposed: bool
    dtype: str
    out_dtype: str
    tf32: bool = False


@dataclass(frozen=True)
class Fft:
    """A batch of contiguous transforms of `length` points, by the vendor's library, unnormalised in both directions.

    kind: "r2c" (length -> length//2 + 1), "c2r" (the reverse; its input is destroyed), "c2c", "c2c_inverse".
    `dtype` is the real type. With a `spread` the spectra do not lie one after the other but frequency by frequency:
    element f of spectrum i at f*spread + i.
    """

    kind: str
    length: int
    batch: int
    source: At
    destination: At
    dtype: str
    spread: int = 0


Step = Launch | Gemm | Fft


@dataclass(frozen=True)
class Workspace:
    """A buffer that a plan needs while it runs."""

    name: str
    count: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """Everything an engine does for one problem.

    `packing_steps` turn the weight into the buffers of `packed`, which depend on nothing else and may be kept as long
    as the weight is (`packing_key` says when two plans can share them); `steps` do the rest. `library_bytes` is what
    the vendor's transforms allocate for themselves. Plans of one `sum_order`, not empty, add up the products of a
    sample in one order, whatever the batch, the tile and the place of the sample: they give it the same bits.
    """

    method: str
    variant: str
    steps: tuple[Step, ...]
    workspaces: tuple[Workspace, ...] = ()
    packing_steps: tuple[Step, ...] = ()
    packing_workspaces: tuple[Workspace, ...] = ()
    packed: tuple[Workspace, ...] = ()
    packing_key: tuple[object, ...] = ()
    library_bytes: int = 0
    notes: tuple[str, ...] = field(default=())
    sum_order: str = ""

    @property
    def workspace_bytes(self) -> int:
        """Bytes allocated beside the caller's arrays, packed weights included, at the worst moment."""
        scratch = max(sum(w.bytes for w in self.workspaces), sum(w.bytes for w in self.packing_workspaces))
        return scratch + self.library_bytes + sum(w.bytes for w in self.packed)

    @property
    def launches(self) -> tuple[Launch, ...]:
        """The kernel launches among all steps."""
        return tuple(step for step in self.packing_steps + self.steps if isinstance(step, Launch))

    @property
    def name(self) -> str:
        """Method and variant as they are printed."""
        return f"{self.method}/{self.variant}"
