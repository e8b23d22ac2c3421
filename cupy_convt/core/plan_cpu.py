# SPDX-License-Identifier: MIT
"""Plans of the CPU engine: which method, cut into which tiles.

Everything is cut along the rows of the result (rows_cpu.py). A tile is a range of batch items, channels and rows; it
reads what it needs of x and recomputes the few products it shares with its neighbours, so tiles are independent of each
other. Their sizes follow the second-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.phases_cpu import SHORT_ROWS, Form, phase_forms, phase_tiles
from cupy_convt.core.problem import Problem, ceil_div, is_complex, real_dtype
from cupy_convt.core.rows_cpu import RealShape, row_grid
from cupy_convt.core.subpixel_cpu import SubpixelForm, kept_bytes, subpixel_bytes, subpixel_forms, subpixel_tile
from cupy_convt.core.tiles_cpu import DENSE_TAPS, PADDED_FROM, dense_tile, even_block, fit
from cupy_convt.core.tiles_fft_cpu import fft_tiles
from cupy_convt.core.transforms_cpu import FftForm, fft_forms

METHODS = ("direct", "gemm", "fft")
#: Rows, at most, of the blocks that the block-Toeplitz product may use.
TOEPLITZ_BLOCKS = (4, 8, 16, 32, 64)
#: Numbers in a tile: sums of the direct method, products of a dense one, windows and results of blocks. Smaller tiles
#: would stay in nearer caches, but NumPy's calls on them are so short that two threads wait for the interpreter.
DIRECT_SUMS, DENSE_CELLS, TOEPLITZ_CELLS = 1 << 18, 1 << 20, 1 << 20
#: Blocks of a signal below which the signals of a batch share products; signals from which each block has its own.
MERGED_BELOW, APART_FROM = 16, 4


@dataclass(frozen=True)
class CpuPlan:
    """What the CPU engine does for one problem, as data.

    Tiles have `batch_tile` items, `group_tile` groups (or, when that is 1, `channel_tile` output channels of one group)
    and `row_tile` rows of the result; an only tile may be cut into `tap_parts` of its taps. `block` is the rows of a
    Toeplitz block, `form` that of short filters, `fft` that of transforms, `subpixel` that of a sub-pixel convolution.
    Two plans with equal `packing_key` share packed weights; () is nothing to pack. Plans of one `sum_order`, not empty,
    give an item the same bits whatever the batch.
    """

    method: str
    variant: str
    batch_tile: int
    group_tile: int
    channel_tile: int
    row_tile: int
    tap_parts: int = 1
    block: int = 0
    form: Form | None = None
    fft: FftForm | None = None
    subpixel: SubpixelForm | None = None
    workspace_bytes: int = 0
    packing_key: tuple[object, ...] = ()
    packed_bytes: int = 0
    notes: tuple[str, ...] = ()
    sum_order: str = ""

    @property
    def name(self) -> str:
        """Method and variant as they are printed."""
        return f"{self.method}/{self.variant}"


def _packing(problem: Problem) -> tuple[object, ...]:
    """What packed weights depend on beside the weight: crops that differ by whole rows only shift the inputs."""
    return problem.p_left % problem.stride, is_complex(problem.x_dtype)


def _converted_weight(problem: Problem, real: RealShape) -> int:
    """Bytes of the weight as a real array, none when it is one."""
    real_already = problem.weight_dtype == real_dtype(problem.accumulator)
    return 0 if real_already else problem.groups * real.c_in * real.c_out * problem.kernel_size * real.item


def _workers(device: DeviceSpec) -> int:
    return max(device.multiprocessors, 1)


def _direct(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Tiles whose sums stay in the second-level cache."""
    real, grid = RealShape.of(problem), row_grid(problem)
    share = limit // _workers(device)
    packed = _converted_weight(problem, real)
    widest = max(run.count for run in grid.runs)
    # a sum, a product (of all residues, input by input), the inputs that are padded for them, results to be converted
    each = 4 + ceil_div(real.c_in, real.c_out * widest) + ceil_div(problem.stride, widest)
    each += ceil_div(3 * problem.stride, widest) if real.converted else 0
    elements = max(min(DIRECT_SUMS, share // (each * real.item)), 64)
    most_rows = min(grid.rows, max(share // (2 * real.item * real.c_in * real.planes) - grid.span, 64))
    row_tile, channel_tile, group_tile, batch_tile = fit(
        elements,
        (most_rows, real.planes * widest),
        (problem.c_out_group, real.c_out // problem.c_out_group),
        (problem.groups, 1),
        (problem.batch, 1),
    )
    if channel_tile < problem.c_out_group:
        group_tile = 1
    outputs = real.planes * batch_tile * group_tile * channel_tile * (real.c_out // problem.c_out_group)
    inputs = real.planes * batch_tile * group_tile * real.c_in
    by_tap, by_input = 2 * widest * row_tile, min(problem.kernel_size, row_tile * problem.stride)
    tile = outputs * max(by_tap, by_input) + inputs * (row_tile + grid.span)
    if real.converted:
        tile += 3 * outputs * row_tile * problem.stride
    return [
        CpuPlan(
            "direct",
            "taps",
            batch_tile,
            group_tile,
            channel_tile,
            row_tile,
            workspace_bytes=tile * real.item * _workers(device) + packed,
            packing_key=("real", *_packing(problem)) if packed else (),
            packed_bytes=packed,
            sum_order="taps",
        )
    ]


def _dense(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Tiles of one product: its result stays in cache until it is added up."""
    variants = ("columns", DENSE_CELLS), ("rows", DENSE_CELLS // 2)
    return [_dense_plan(problem, device, limit, variant, most) for variant, most in variants]


def _dense_plan(problem: Problem, device: DeviceSpec, limit: int, variant: str, most: int) -> CpuPlan:
    real, grid = RealShape.of(problem), row_grid(problem)
    outputs = real.c_out // problem.c_out_group
    taps = min(DENSE_TAPS, max(grid.max_taps, 1))
    kernel = min(problem.kernel_size, taps * grid.tap_step)
    packed = _converted_weight(problem, real)
    by_tiles = packed > limit // 2
    packed = 0 if by_tiles else packed
    share = max(limit - packed, 0) // (_workers(device) * real.item)
    most = max(min(most, share // 3), kernel)
    batch_tile, channel_tile, row_tile, parts = dense_tile(problem, variant, most, _workers(device))
    if by_tiles:
        channel_tile = max(min(channel_tile, share // (4 * real.c_in * outputs * kernel)), 1)
    longest = problem.l_in + problem.l_in // PADDED_FROM
    columns = real.planes * batch_tile * min(row_tile + (taps - 1) * grid.input_step, longest)
    tile = columns * channel_tile * outputs * ceil_div(kernel, parts) + problem.l_out * (parts > 1)
    if real.converted or batch_tile > 1:
        tile += columns * real.c_in
    if real.converted:
        tile += 3 * real.planes * batch_tile * row_tile * problem.stride * channel_tile * outputs
    if by_tiles:
        tile += 2 * real.c_in * channel_tile * outputs * kernel
    return CpuPlan(
        "gemm",
        variant,
        batch_tile,
        1,
        channel_tile,
        row_tile,
        parts,
        workspace_bytes=tile * real.item * _workers(device) + packed,
        packing_key=("real", *_packing(problem)) if packed else (),
        packed_bytes=packed,
    )


def _subpixel(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Compiled convolutions, where there is a library for them; tiles only where the limit asks for them."""
    plans = []
    for form in subpixel_forms(problem, half=device.fp16 > 0) if device.convolutions else []:
        packed = kept_bytes(problem, form)
        items, inputs = subpixel_tile(problem, form, limit - packed)
        plans.append(
            CpuPlan(
                "gemm",
                form.name,
                items,
                1,
                problem.c_out,
                inputs,
                subpixel=form,
                workspace_bytes=packed + subpixel_bytes(problem, form, items, inputs),
                packing_key=("subpixel", form, problem.activation) if packed else (),
                packed_bytes=packed,
                notes=form.notes,
            )
        )
    return plans


def _phases(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Products phase by phase, plain and by minimal filters."""
    return [phase_plan(problem, device, limit, form) for form in phase_forms(problem)]


def phase_plan(problem: Problem, device: DeviceSpec, limit: int, form: Form) -> CpuPlan:
    """The plan of one form, whether it pays or not."""
    real, workers = RealShape.of(problem), _workers(device)
    sections = form.sections(problem.phases.max_taps)
    packed = form.points * problem.groups * sections * real.c_in * real.c_out * problem.stride * real.item
    cells = max(limit - packed - _converted_weight(problem, real), 0) // (workers * real.item)
    cut = phase_tiles(problem, form, cells // 2, workers)
    beside = form.beside(problem.phases.max_taps)
    columns = real.planes * cut.items * (cut.groups + beside - 1)
    inputs = columns * (sections // beside) * real.c_in * (1 + 2 * form.outputs * (form.points > 1))
    results = columns * cut.channels * (real.c_out // problem.c_out_group) * problem.stride * beside
    tile = inputs + results * (form.points + 3 * form.outputs * real.converted)
    if form.points > 1 and cut.groups <= SHORT_ROWS:
        tile += (results // beside + 2 * columns * problem.stride) * (form.outputs + real.planes - 1)
    return CpuPlan(
        "gemm",
        form.name,
        cut.items,
        1,
        cut.channels,
        cut.groups * form.outputs,
        form=form,
        workspace_bytes=tile * real.item * workers + packed + _converted_weight(problem, real),
        packing_key=("phases", form, real.c_in, is_complex(problem.x_dtype)),
        packed_bytes=packed,
    )


def block_by_block(real: RealShape, signals: int, blocks: int) -> bool:
    """Whether a Toeplitz tile of so many signals makes one product of each block: x itself is its left operand."""
    return real.c_in == 1 and blocks < MERGED_BELOW and signals >= APART_FROM


def _toeplitz(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Blocks of rows as one product with a banded matrix of taps."""
    real, grid = RealShape.of(problem), row_grid(problem)
    plans = []
    for most in TOEPLITZ_BLOCKS:
        block = even_block(problem, grid.rows, most)
        window, width = real.c_in * (block + grid.span) + 1, block * problem.stride
        packed = problem.groups * real.c_out * window * width * real.item
        if packed > min(limit // 2, 64 << 20) or (block > grid.rows and block > TOEPLITZ_BLOCKS[0]):
            continue
        cells = max(min(TOEPLITZ_CELLS, (limit - packed) // (_workers(device) * 3 * real.item)), window + width)
        most_blocks = ceil_div(grid.rows, block)
        per_block = width * real.c_out + window * (not block_by_block(real, problem.batch * real.planes, most_blocks))
        of_signal = most_blocks, per_block * real.planes
        if most_blocks < MERGED_BELOW:
            blocks, batch_tile, group_tile = fit(cells, of_signal, (problem.batch, 1), (problem.groups, 1))
        else:
            blocks, group_tile, batch_tile = fit(cells, of_signal, (problem.groups, 1), (problem.batch, 1))
        tile = real.planes * batch_tile * group_tile * (blocks * per_block + real.c_in * (blocks * block + grid.span))
        plans.append(
            CpuPlan(
                "gemm",
                f"toeplitz{most}",
                batch_tile,
                group_tile,
                problem.c_out_group,
                blocks * block,
                block=block,
                workspace_bytes=packed + tile * real.item * _workers(device),
                packing_key=("toeplitz", block, *_packing(problem)),
                packed_bytes=packed,
            )
        )
    return plans


def _fft(problem: Problem, device: DeviceSpec, limit: int) -> list[CpuPlan]:
    """Windows of x or of the taps, of several lengths, and one transform for everything."""
    real, grid = RealShape.of(problem), row_grid(problem)
    plans = []
    for form in fft_forms(problem, real, grid):
        tiles = fft_tiles(problem, real, form, _workers(device), limit)
        plans.append(
            CpuPlan(
                "fft",
                f"{form.kind}{form.length}",
                tiles.batch,
                tiles.groups,
                tiles.channels,
                grid.rows if form.kind == "whole" else tiles.windows * form.hop,
                fft=form,
                workspace_bytes=tiles.workspace_bytes,
                packing_key=("spectrum", *form.packing, *_packing(problem)),
                packed_bytes=tiles.packed_bytes,
                notes=(str(form),),
            )
        )
    return [plan for plan in plans if plan.workspace_bytes <= limit] or [min(plans, key=lambda p: p.workspace_bytes)]


def why_not(problem: Problem, method: str) -> str | None:
    """Why a method cannot take a problem; None when it can. On the CPU every method takes every problem."""
    if method not in METHODS:
        return f"expected one of {', '.join(METHODS)}, got {method!r}"
    return None


@lru_cache(maxsize=512)
def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[CpuPlan, ...]:
    """Every plan that can take the problem, of all methods."""
    problem = replace(problem, batch=max(problem.batch, 1))
    makers = (_direct, _dense, _phases, _subpixel, _toeplitz, _fft)
    return tuple(plan for maker in makers for plan in maker(problem, device, workspace_limit))
