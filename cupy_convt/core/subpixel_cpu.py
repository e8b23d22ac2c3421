# SPDX-License-Identifier: MIT
"""The layer as a sub-pixel convolution: a convolution without a stride whose channels are phases.

    z[(co, f), u] = bias[co] + sum_m w[ci, co, f + m s] x[ci, u - m],  m < J = ceil(K / s)    rows of s samples
    F[co, u s + f] = z[(co, f), u]                                                             interleaved

The result is a range of whole rows but for `head` samples of its first and `tail` of its last one. What the rows read
before the first x and after the last one are zeros, as many for every length: a graph of any N and L.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cupy_convt.core.problem import ITEM_BYTES, Problem, ceil_div, is_complex

#: Taps of a phase beyond which nothing is gained.
MOST_TAPS = 8
#: How many times a weight is kept, as measured: as it is packed, in the library's order, and while that is made. The
#: library takes other orders for some other lengths and keeps them too: ten copies after 140 lengths, and no more then.
COPIES = 3


@dataclass(frozen=True)
class SubpixelForm:
    """A geometry as a sub-pixel convolution of C_in channels; `half`: of bfloat16 operands, summed in float32.

    `packed`: the weight is a constant of the graph; otherwise windows of x are multiplied by the weight of the call.
    """

    taps: int
    before: int
    after: int
    head: int
    tail: int
    half: bool
    packed: bool

    @property
    def name(self) -> str:
        """Its name as a variant."""
        return ("subpixel" if self.packed else "im2col") + "_bf16" * self.half

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it."""
        products = ("bfloat16 products of OpenVINO: subnormal numbers count as zero",)
        copies = ("OpenVINO keeps further copies of the weight, up to ten, as it meets other lengths",)
        return products * self.half + copies * self.packed


def subpixel_forms(problem: Problem, *, half: bool) -> list[SubpixelForm]:
    """The forms of a problem whose library has products of bfloat16 when `half`; none where it does not apply."""
    s, taps = problem.stride, ceil_div(problem.kernel_size, problem.stride)
    narrow = problem.x_dtype == problem.weight_dtype == "bfloat16"
    if problem.out_dtype != "float32" and not (narrow and half):
        return []
    if is_complex(problem.x_dtype) or is_complex(problem.weight_dtype) or problem.beta:
        return []
    if problem.dilation > 1 or problem.groups > 1 or problem.kernel_size < s or taps > MOST_TAPS:
        return []
    first, last = problem.p_left // s, (problem.p_left + problem.l_out - 1) // s
    before, after = taps - 1 - first, last - (problem.l_in - 1)
    if not (0 <= before < taps and 0 <= after < taps):
        return []  # rows that see no x, or less of it than there is: the library is not safe with such zeros
    head, tail = problem.p_left - first * s, (last + 1) * s - (problem.p_left + problem.l_out)
    kinds = (True, False) if narrow else (True,)
    return [SubpixelForm(taps, before, after, head, tail, narrow, packed) for packed in kinds]


def kept_bytes(problem: Problem, form: SubpixelForm) -> int:
    """Bytes of a packed weight."""
    taps = problem.c_in * form.taps * problem.c_out * problem.stride
    return COPIES * taps * ITEM_BYTES[problem.weight_dtype] if form.packed else 0


def subpixel_bytes(problem: Problem, form: SubpixelForm, items: int, inputs: int) -> int:
    """Bytes of working memory for so many items and inputs of each."""
    item, width = ITEM_BYTES[problem.x_dtype], problem.c_out * problem.stride
    depth = problem.c_in * form.taps + 1
    rows = inputs + form.before + form.after - form.taps + 1
    if form.packed:  # x and phases, and both in the library's order
        return 2 * items * (inputs * problem.c_in + rows * width) * item
    # phases, what they are interleaved to before it is cropped, and a tile's own result
    results = items * rows * width * (3 if form.head or form.tail else 2)
    return (2 * depth * (width + items * rows) + results) * item


def subpixel_tile(problem: Problem, form: SubpixelForm, limit: int) -> tuple[int, int]:
    """Items and inputs of a tile: all of them if they fit, else as many items, or as many inputs of one, as do."""
    fixed = subpixel_bytes(problem, form, 0, problem.l_in)
    one = subpixel_bytes(problem, form, 1, problem.l_in) - fixed
    if one <= limit - fixed:
        return min(problem.batch, (limit - fixed) // one), problem.l_in
    fixed = subpixel_bytes(problem, form, 1, 0)
    one = subpixel_bytes(problem, form, 1, 1) - fixed
    return 1, min(max((limit - fixed) // one, 2 * form.taps + 2), problem.l_in)


def subpixel_tiles(problem: Problem, most_items: int, most_inputs: int) -> Iterator[tuple[slice, slice, slice]]:
    """Items, inputs of each, and the samples that no other input reaches and no tile before has written."""
    s, kernel, p_left = problem.stride, problem.kernel_size, problem.p_left
    for n in range(0, problem.batch, most_items):
        items = slice(n, min(n + most_items, problem.batch))
        start = written = 0
        while written < problem.l_out:
            stop, reached = min(start + most_inputs, problem.l_in), problem.l_out
            if stop < problem.l_in:
                reached = min(stop * s, (stop - 1) * s + kernel - problem.p_right) - p_left
            yield items, slice(start, stop), slice(written, reached)
            # the next tile has the next sample, and every input that it sees
            start, written = min(reached // s, (reached + p_left - kernel) // s + 1), reached
