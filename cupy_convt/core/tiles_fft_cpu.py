# SPDX-License-Identifier: MIT
"""How large the tiles of the CPU engine's transforms are: near a cache's size, full vector registers, busy cores."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape
from cupy_convt.core.tiles_cpu import fit
from cupy_convt.core.transforms_cpu import VECTOR_BYTES, FftForm

#: Input channels from which adding up spectra is left to BLAS.
MATRIX_CHANNELS = 4
#: Samples that the transforms of one tile give, and samples in all from which every core gets a tile.
TILE_SAMPLES, PARALLEL_SAMPLES = 1 << 19, 1 << 15


@dataclass(frozen=True)
class FftTiles:
    """Items, groups, output channels of a group (all unless groups is 1) and windows of a tile; and what it takes."""

    batch: int
    groups: int
    channels: int
    windows: int
    workspace_bytes: int
    packed_bytes: int


def fft_tiles(problem: Problem, real: RealShape, form: FftForm, workers: int, limit: int) -> FftTiles:
    """The largest tiles within the limit, or the smallest there are."""
    smallest = _sizes(problem, real, form, 1, workers)
    cells = TILE_SAMPLES
    while True:
        sizes = _sizes(problem, real, form, cells, workers)
        packed, workspace = _bytes(problem, real, form, workers, sizes)
        if workspace <= limit or sizes == smallest:
            return FftTiles(*sizes, workspace, packed)
        cells //= 2


def filled(form: FftForm, windows: int, item: int, alone: bool) -> int:
    """Transforms made for so many windows: those of a lone signal are filled up with zeros to whole registers.

    Not for a single one that is left: it costs about as much by itself as four do together.
    """
    lanes = VECTOR_BYTES // item
    left = windows % lanes
    return windows + lanes - left if left > 1 and alone and not form.split else windows


def _bytes(
    problem: Problem, real: RealShape, form: FftForm, workers: int, sizes: tuple[int, int, int, int]
) -> tuple[int, int]:
    """(bytes of the packed weight, bytes allocated in all) for tiles of these sizes."""
    batch, groups, channels, windows = sizes
    phases, outputs = len(problem.phases.active), real.c_out // problem.c_out_group
    filters = problem.groups * real.c_in * real.c_out
    packed = filters * phases * form.tap_windows * form.bins * 2
    # some filters at a time, with their zeros, and their spectra
    at_once = min(form.filters_at_once(phases, real.item), filters)
    laid_out = at_once * phases * form.filter_samples
    transformed = at_once * phases * 2 * form.tap_windows * form.bins
    packing = laid_out + transformed
    tables = 4 * form.bins if form.split else 0
    signals = real.planes * batch * groups
    windows_of_x = filled(form, windows, real.item, signals * real.c_in == 1) if form.kind == "blocks" else 1
    inputs = signals * real.c_in * windows_of_x
    windows = filled(form, windows, real.item, signals * channels * outputs * phases == 1)
    results = signals * channels * outputs * windows * phases
    sums = 2 if 1 < real.c_in < MATRIX_CHANNELS else 1
    # windows and spectra, where packing has left its own; a second order of those; sums, products and results
    tile = max(inputs * form.length, laid_out) + max(inputs * 2 * form.bins, transformed) + inputs * 2 * form.bins
    tile += results * (form.length + 2 * sums * form.bins)
    if real.converted:
        tile += signals * (real.c_in * form.length + 2 * channels * outputs * form.hop * windows * problem.stride)
    return packed * real.item, (packed + tables + max(packing, tile) * workers) * real.item


def _sizes(problem: Problem, real: RealShape, form: FftForm, cells: int, workers: int) -> tuple[int, int, int, int]:
    """(items, groups, channels, windows) of a tile of about `cells` samples, and work for every core."""
    phases, windows = len(problem.phases.active), max(form.windows, 1)
    outputs = real.c_out // problem.c_out_group
    source, result = form.length * real.c_in * real.planes, form.length * phases * outputs * real.planes
    per_window = source if form.kind == "blocks" else 0
    channels = ceil_div(
        problem.c_out_group, ceil_div(problem.c_out_group, max(cells - source, source, result) // result)
    )
    extents = [windows, problem.groups, problem.batch, problem.c_out_group]
    sizes = fit(cells, (windows, per_window + channels * result), (problem.groups, 1), (problem.batch, 1))
    sizes.append(channels)
    if channels < problem.c_out_group:
        sizes[1] = 1
    lanes = 1 if form.split else VECTOR_BYTES // real.item
    # one dimension is cut to suit the lanes and the cores: the first that is cut already, or that can be
    cut = [axis for axis in range(4) if sizes[axis] < extents[axis]]
    able = [axis for axis in (2, 1, 0, 3) if extents[axis] > 1 and not (axis == 3 and sizes[1] > 1)]
    if (cut or able) and prod(extents) * result > PARALLEL_SAMPLES:
        axis = (cut or able)[0]
        others = prod(ceil_div(extents[i], sizes[i]) for i in range(4) if i != axis)
        sizes[axis] = _even(extents[axis], sizes[axis], lanes, others, workers)
    return sizes[2], sizes[1], sizes[3], sizes[0]


def _even(extent: int, most: int, lanes: int, others: int, workers: int) -> int:
    """The size, at most `most`, of tiles that keep the workers busy for the shortest time, in multiples of `lanes`.

    A call of a transform for a tile costs about as much as half a lane of it; `others` is how often the tiles come.
    The first tile is the caller's own, who begins while the others are being woken: it may be the larger one.
    """

    def time(size: int) -> float:
        rounds = ceil_div(ceil_div(extent, size) * others, workers)
        return rounds * (ceil_div(size, lanes) * lanes + 0.5 * lanes)

    multiples = range(most // lanes * lanes, most // 8, -lanes)
    best: int = min((*multiples, most, *range(min(most, lanes), 0, -1)), key=time)
    return best
