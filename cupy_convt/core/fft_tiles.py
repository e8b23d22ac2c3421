# SPDX-License-Identifier: MIT
"""Buffers of the FFT method and how a problem is cut until they fit a workspace limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cupy_convt.core.fft_blocks import MOST_ELEMENTS, Blocks, reach
from cupy_convt.core.interleave import q_count
from cupy_convt.core.launch import Workspace
from cupy_convt.core.lengths import count_class
from cupy_convt.core.problem import ACCUMULATOR, Problem, ceil_div, is_complex, real_dtype, result_dtype
from cupy_convt.core.tiling import shrink

#: Tiles are not made smaller than this, whatever the limit.
LEAST_BUDGET = 1 << 20
#: A plan of more tiles is refused.
MOST_TILES = 1024
#: Real planes in place of complex spectra where a complex product is three real ones.
PLANES = 3


def buffer_dtypes(x_dtype: str, weight_dtype: str) -> tuple[str, str]:
    """(time, spectrum) dtypes of the buffers: real transforms unless something is complex."""
    out = result_dtype(x_dtype, weight_dtype)
    time = ACCUMULATOR.get(out, out)
    return time, {"float32": "complex64", "float64": "complex128"}.get(time, time)


def dtypes(problem: Problem) -> tuple[str, str]:
    """(time, spectrum) dtypes of a problem's buffers."""
    return buffer_dtypes(problem.x_dtype, problem.weight_dtype)


def filter_count(problem: Problem) -> int:
    """Filters whose spectra are kept: one for each weight row and residue class."""
    return problem.c_in * problem.c_out_group * class_count(problem)


def packed_spectra(problem: Problem, blocks: Blocks, planes: bool = False) -> Workspace:
    """The buffer of the weight's spectra, for each filter (C_in, C_out/g, class) and frequency, or of their planes."""
    count, dtype = filter_count(problem) * blocks.bins, dtypes(problem)[1]
    return Workspace("w_spectra", PLANES * count, real_dtype(dtype)) if planes else Workspace("w_spectra", count, dtype)


@dataclass(frozen=True)
class Layout:
    """Tile sizes: batch entries, groups, output channels of a group (all unless groups is 1), values of q."""

    batch: int
    groups: int
    channels: int
    q: int


@dataclass(frozen=True)
class Part:
    """One tile; `channel` is within the group."""

    n: int
    batch: int
    group: int
    groups: int
    channel: int
    channels: int
    q: int
    q_count: int
    u_first: int
    u_count: int
    blocks: int
    first_chunk: bool


def class_count(problem: Problem) -> int:
    """Residue classes of the taps that are not empty."""
    return len(problem.phases.active)


def _rows(problem: Problem, layout: Layout) -> tuple[int, int]:
    """(input, output) transforms of a tile for each block of time."""
    inputs = layout.batch * layout.groups * problem.c_in_group
    return inputs, layout.batch * layout.groups * layout.channels * class_count(problem)


def _most_blocks(problem: Problem, blocks: Blocks, layout: Layout) -> int:
    if blocks.whole:
        return 1
    _, u_count = reach(problem, 0, q_count(problem))
    shift_range = ceil_div(problem.effective_kernel + problem.stride, problem.stride) + 1
    return count_class(max(1, ceil_div(min(u_count, layout.q + shift_range), blocks.step)))


def workspaces(problem: Problem, blocks: Blocks, layout: Layout, planes: bool = False) -> tuple[Workspace, ...]:
    """The buffers that every tile of a layout uses in turn."""
    time, spectrum = dtypes(problem)
    inputs, outputs = _rows(problem, layout)
    count = _most_blocks(problem, blocks, layout)
    if planes:
        # the products' planes also lie where the blocks do, the spectra of x and of the result in one place
        real = 2 if is_complex(time) else 1
        samples = max(max(inputs, outputs) * blocks.length, ceil_div(PLANES * outputs * blocks.bins, real))
        return (
            Workspace("time", samples * count, time),
            Workspace("spectra", max(inputs, outputs) * count * blocks.bins, spectrum),
            Workspace("x_planes", PLANES * inputs * count * blocks.bins, real_dtype(spectrum)),
        )
    # the input blocks are dead once transformed: the inverse transforms take their place
    return (
        Workspace("time", max(inputs, outputs) * count * blocks.length, time),
        Workspace("x_spectra", inputs * count * blocks.bins, spectrum),
        Workspace("y_spectra", outputs * count * blocks.bins, spectrum),
    )


def library_bytes(problem: Problem, blocks: Blocks, layout: Layout) -> int:
    """Work area of the largest library transform: about as much as its data when it takes several passes."""
    return max(buffer.bytes for buffer in workspaces(problem, blocks, layout))


def tile_budget(packed: Workspace, limit: int) -> int:
    """Bytes for the buffers of a tile. Packed spectra beyond the limit rule the plan out, however small its tiles."""
    return max(limit - packed.bytes, limit // 4, LEAST_BUDGET)


def tile_count(problem: Problem, layout: Layout) -> int:
    """Tiles that a layout cuts the problem into."""
    rows = ceil_div(problem.batch, layout.batch) * ceil_div(problem.groups, layout.groups)
    return rows * ceil_div(problem.c_out_group, layout.channels) * ceil_div(q_count(problem), layout.q)


def choose_layout(problem: Problem, blocks: Blocks, limit: int, planes: bool = False) -> Layout:
    """The largest tile within the limit: first fewer batch entries, then groups, shorter times, fewer channels."""
    layout = Layout(max(1, problem.batch), problem.groups, problem.c_out_group, q_count(problem))

    def fits(smaller: Layout) -> bool:
        buffers = workspaces(problem, blocks, smaller, planes)
        needed = sum(b.bytes for b in buffers) + library_bytes(problem, blocks, smaller)
        return needed <= limit and max(b.count for b in buffers) <= MOST_ELEMENTS

    least_q = layout.q if blocks.whole else blocks.step
    return shrink(layout, (("batch", 1), ("groups", 1), ("q", least_q), ("channels", 1)), fits)


def tiles_of(problem: Problem, blocks: Blocks, layout: Layout) -> Iterator[Part]:
    """The tiles of a layout, channels fastest, so that the spectra of x serve them all."""
    total = q_count(problem)
    for n in range(0, problem.batch, layout.batch):
        batch = min(layout.batch, problem.batch - n)
        for group in range(0, problem.groups, layout.groups):
            groups = min(layout.groups, problem.groups - group)
            for q in range(0, total, layout.q):
                count = min(layout.q, total - q)
                u_first, u_count = reach(problem, q, count)
                number = 1 if blocks.whole else count_class(max(1, ceil_div(u_count, blocks.step)))
                for channel in range(0, problem.c_out_group, layout.channels):
                    channels = min(layout.channels, problem.c_out_group - channel)
                    yield Part(
                        n, batch, group, groups, channel, channels, q, count, u_first, u_count, number, channel == 0
                    )
