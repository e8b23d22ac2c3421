# SPDX-License-Identifier: MIT
"""The FFT method's product as matrices: at every frequency one product of the vendor's library, for many channels.

The spectra lie frequency by frequency, as the transforms' own strides leave them. A complex product is four real ones
to the library. In planes it is three (D. E. Knuth, The Art of Computer Programming 2, section 4.6.4): with

    T_0 = (X_r + X_i) W_r,   T_1 = X_r (W_i - W_r),   T_2 = X_i (W_r + W_i)

X W = (T_0 - T_2) + i (T_0 + T_1), three quarters of the multiplications for one more pass over the spectra of x and of
the result; the weight's planes are kept in place of its spectra. The sums of real and imaginary parts make its error
relative to whole numbers, not to their parts (N. J. Higham, Stability of a method for multiplying complex matrices with
three real matrix multiplications, SIAM J. Matrix Anal. Appl. 13, 681-687, 1992); core/accuracy.py bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator

from cupy_convt.core.fft_blocks import Blocks
from cupy_convt.core.fft_tiles import PLANES, Part, class_count, dtypes, filter_count
from cupy_convt.core.launch import CUDA_TYPES, I32, I64, At, Gemm, Launch, Matrix, Step, Variant
from cupy_convt.core.problem import Problem, ceil_div, real_dtype

#: Least side of the matrices of one frequency, and most library products of a call.
MATRIX_SIDE, MOST_PRODUCTS = 3, 1024
#: Elements of a block of fft_split and fft_join.
RUN = 1024


def variants(spectrum: str) -> tuple[Variant, ...]:
    """The kernels that take spectra of a dtype apart and put them together."""
    return _split_variant(spectrum, False), _split_variant(spectrum, True), _join_variant(spectrum)


def _split_variant(spectrum: str, weight: bool) -> Variant:
    return "fft_split", (("CONVT_T", CUDA_TYPES[spectrum]), ("CONVT_WEIGHT", int(weight)))


def _join_variant(spectrum: str) -> Variant:
    return "fft_join", (("CONVT_T", CUDA_TYPES[spectrum]),)


def pays(problem: Problem, parts: list[Part]) -> bool:
    """Whether the product at each frequency is a matrix product worth a library call, and they are few."""
    rows = problem.c_out_group * class_count(problem)
    calls = sum(len(_calls(part)) for part in parts)
    return min(problem.c_in_group, rows) >= MATRIX_SIDE and calls <= MOST_PRODUCTS


def _calls(part: Part) -> list[tuple[int, int]]:
    """(entry, group) of each library call of a tile; the entries of one block each are one matrix together."""
    entries = range(part.batch if part.blocks > 1 else 1)
    return [(n, group) for n in entries for group in range(part.groups)]


def products(problem: Problem, blocks: Blocks, part: Part, planes: bool) -> Iterator[Step]:
    """At every frequency (r, ci) by (ci, b), for each entry and group; of one block each, (n, ci) by (ci, r).

    In planes the three of them are a batch three times as large, in front of what puts its results together.
    """
    c_in, classes, dtype = problem.c_in_group, class_count(problem), dtypes(problem)[1]
    rows, row_step = part.channels * classes, problem.c_out_group * classes
    x_step = part.batch * part.groups * c_in * part.blocks
    y_step = part.batch * part.groups * rows * part.blocks
    x_name, y_name, batch = "x_spectra", "y_spectra", blocks.bins
    if planes:
        # what is packed there is dead by now
        x_name, y_name, batch, dtype = "x_planes", "time", PLANES * blocks.bins, real_dtype(dtype)
    for n, group in _calls(part):
        first = (part.group + group) * c_in * row_step + part.channel * classes
        weight = Matrix("w_spectra", first, c_in, rows, row_step, filter_count(problem))
        if part.blocks == 1:
            x = Matrix(x_name, group * c_in, part.batch, c_in, part.groups * c_in, x_step)
            y = Matrix(y_name, group * rows, part.batch, rows, part.groups * rows, y_step)
            yield Gemm(x, weight, y, batch, False, dtype, dtype)
            continue
        entry = n * part.groups + group
        x = Matrix(x_name, entry * c_in * part.blocks, c_in, part.blocks, part.blocks, x_step)
        y = Matrix(y_name, entry * rows * part.blocks, rows, part.blocks, part.blocks, y_step)
        yield Gemm(weight, x, y, batch, True, dtype, dtype)
    if planes:
        kernel, defines = _join_variant(dtypes(problem)[1])
        count = y_step * blocks.bins
        yield Launch(kernel, defines, ceil_div(count, RUN), 256, 0, ("time", "spectra", I64(count), I32(count)))


def split(problem: Problem, blocks: Blocks, rows: int, source: str, planes: At, pitch: int, weight: bool) -> Launch:
    """Takes `rows` spectra in the buffer `source` apart, into planes whose frequencies are `pitch` apart."""
    kernel, defines = _split_variant(dtypes(problem)[1], weight)
    count = rows * blocks.bins
    numbers = (I64(pitch * blocks.bins), I64(pitch), I32(rows), I32(count))
    return Launch(kernel, defines, ceil_div(count, RUN), 256, 0, (source, planes, *numbers))


def plane_bytes(launch: Launch, real: int) -> int:
    """Bytes of `real` a number that a launch moves between spectra and planes; none if it is another kernel."""
    return (2 + PLANES) * real * RUN * launch.grid if launch.kernel in ("fft_split", "fft_join") else 0
