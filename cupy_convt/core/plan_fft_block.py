# SPDX-License-Identifier: MIT
"""FFT method in one kernel: blocks of overlap-save that never leave the chip, for one input channel a group.

A block of x is loaded and transformed once; each residue class of the taps multiplies its spectrum by its own, goes
back and leaves interleaved (kernels/fft_block.cu). Memory sees x a little more than once, the spectra of the weight,
which mostly come from cache, and the result once. It is meant for filters of about a hundred to thousands of taps a
phase; shorter ones are left to the direct kernels, longer ones do not fit the blocks.

The spectra of the weight, in the kernel's own order of frequencies, and its roots of one are the plan's packed buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.fft_tiles import buffer_dtypes, class_count, dtypes, filter_count
from cupy_convt.core.interleave import crop_arguments, q_count, tap_arguments
from cupy_convt.core.launch import (
    CUDA_TYPES,
    DTYPE_PAIRS,
    GRID_LIMIT,
    I32,
    I64,
    Argument,
    At,
    Launch,
    Plan,
    Step,
    Stride,
    Variant,
    Workspace,
    epilogue,
)
from cupy_convt.core.plan_fft import weights_launch, weights_variant
from cupy_convt.core.problem import ACCUMULATOR, ITEM_BYTES, Problem, ceil_div, is_complex, result_dtype

#: Least and most log2 of the complex points of a transform, by the dtype of the sums; a thread holds 16 points, or 8 in
#: double. Longer ones would spill registers.
_LEAST_LOG, _MOST_LOG = 7, {"float32": 13, "float64": 11, "complex64": 13, "complex128": 12}
_POINTS_A_THREAD = {"complex64": 16, "complex128": 8}
#: Blocks of overlap-save share a block of threads until it has two warps.
_LEAST_THREADS = 64
_ROOTS_BLOCK = 256
#: Transforms offered to the chooser, from the shortest that keeps a quarter of its samples on.
_MOST_PLANS = 3
#: Scratch of packing: filters as long as the block.
_PACKING_BYTES = 1 << 24
_SECTOR = 32


@dataclass(frozen=True)
class FusedBlock:
    """Overlap-save of one row: block b keeps the outputs of q in [b*step, (b + 1)*step), from inputs first + b*step on.

    `length` samples a block; inputs from `end` on count as zero. A block of threads has `neighbours` of them and stages
    `residue_tile` residues at a time.
    """

    length: int
    points: int
    first: int
    step: int
    end: int
    neighbours: int
    threads: int
    tiles: int
    residue_tile: int
    shared_bytes: int

    @property
    def log(self) -> int:
        """log2 of the complex points."""
        return self.points.bit_length() - 1


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found: list[Variant] = []
    for x, weight in DTYPE_PAIRS:
        time, spectrum = buffer_dtypes(x, weight)
        found += [weights_variant(weight, time), _roots_variant(spectrum)]
        for log in _logs(result_dtype(x, weight)):
            found += [_block_variant(x, result_dtype(x, weight), log), _spectra_variant(time, log)]
    return tuple(dict.fromkeys(found))


def why_not(problem: Problem, device: DeviceSpec, workspace_limit: int = 256 << 20) -> str:
    """Why the kernel cannot take the problem; empty if it can."""
    if problem.operation != "forward":
        return f"no fused FFT blocks for {problem.operation}"
    if problem.c_in_group != 1:
        return "fused FFT blocks take one input channel a group"
    late = problem.beta or (problem.activation and problem.activation[0] == "tanh")
    if late and ITEM_BYTES[problem.out_dtype] == 2:
        return "fused FFT blocks of halves take neither tanh nor beta"
    if problem.stride * problem.phases.input_step >= 2**30 or problem.effective_kernel >= 2**30:
        return "the least common multiple of stride and dilation, and the kernel's reach, must be below 2^30"
    blocks = fused_blocks(problem, device)
    if not blocks:
        return "the filter of one residue class is too long for a fused FFT block"
    if all(_grid(problem, block) > GRID_LIMIT for block in blocks):
        return "more than 2^31 tiles"
    return ""


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """One plan for each of the shortest suitable block lengths."""
    if not problem.batch or why_not(problem, device):
        return ()
    blocks = fused_blocks(problem, device)
    return tuple(_plan(problem, block) for block in blocks if _grid(problem, block) <= GRID_LIMIT)


def block_of(problem: Problem, plan: Plan, device: DeviceSpec) -> FusedBlock:
    """The block that a plan of this method runs."""
    return next(block for block in fused_blocks(problem, device) if _variant_name(block) == plan.variant)


# ---- variants -------------------------------------------------------------------------------------------------------


def _logs(out: str) -> range:
    return range(_LEAST_LOG + is_complex(out), _MOST_LOG[ACCUMULATOR.get(out, out)] + 1)


def _block_variant(x: str, out: str, log: int) -> Variant:
    return "fft_block", (("CONVT_X", CUDA_TYPES[x]), ("CONVT_Y", CUDA_TYPES[out]), ("CONVT_LOG", log))


def _spectra_variant(time: str, log: int) -> Variant:
    return "fft_block_spectra", (("CONVT_T", CUDA_TYPES[time]), ("CONVT_LOG", log))


def _roots_variant(spectrum: str) -> Variant:
    return "fft_block_roots", (("CONVT_T", CUDA_TYPES[spectrum]),)


def _variant_name(block: FusedBlock) -> str:
    return f"fused block of {block.length}"


# ---- blocks ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def fused_blocks(problem: Problem, device: DeviceSpec) -> tuple[FusedBlock, ...]:
    """Blocks of the shortest suitable lengths, shortest first."""
    found: list[FusedBlock] = []
    for log in _logs(problem.out_dtype):
        block = _block(problem, device, 1 << log)
        if block is not None:
            found.append(block)
            if len(found) == _MOST_PLANS or block.tiles == 1:
                break
    return tuple(found)


def _shifts(problem: Problem) -> tuple[int, int]:
    """Least and most of u - q over the residue classes: output q of a class is sample u of its filtered x."""
    p_q, p_r = divmod(problem.p_left, problem.stride)
    shifts = [p_q + phase.offset + (phase.residue < p_r) for phase in problem.phases.active]
    return min(shifts), max(shifts)


def _block(problem: Problem, device: DeviceSpec, points: int) -> FusedBlock | None:
    """The block of that many complex points, if it keeps a quarter of its samples or holds the whole row."""
    length = points if is_complex(problem.out_dtype) else 2 * points
    span, (low, high), total = problem.phases.span, _shifts(problem), q_count(problem)
    # blocks start at sectors of an aligned row
    align = _SECTOR // ITEM_BYTES[problem.x_dtype]
    first = (low - span) // align * align
    step = (length - high + first) // align * align
    end = problem.l_in
    if step < total:
        # one block: nothing that is kept wraps, so it need not hold zeros before the row
        whole_first = max(0, first)
        newest = min(total - 1 + high, problem.l_in + span - 1)
        whole_end = min(problem.l_in, newest + 1)
        wrapped = whole_end - whole_first + span - (max(low, 0) - whole_first)
        if total <= length and newest - whole_first < length and wrapped <= length:
            first, step, end = whole_first, total, whole_end
    if span >= length or step < max(align, min(total, length // 4)):
        return None
    return _tiled(problem, device, length, points, first, min(step, ceil_div(total, align) * align), end)


def _tiled(
    problem: Problem, device: DeviceSpec, length: int, points: int, first: int, step: int, end: int
) -> FusedBlock | None:
    """The block with its threads and shared memory: transforms, and a staging area of as many residues as fit."""
    spectrum = dtypes(problem)[1]
    line = 128 // ITEM_BYTES[spectrum]
    team = points // _POINTS_A_THREAD[spectrum]
    neighbours = max(1, _LEAST_THREADS // team)
    work = neighbours * (points + points // line) * ITEM_BYTES[spectrum]
    item = ITEM_BYTES[problem.out_dtype]
    most = (device.shared_bytes - work - 128) // (neighbours * step * item)
    if most < 1:
        return None
    residues = problem.stride if most >= problem.stride else max(_whole_sectors(most, item), 1)
    residue_tile = ceil_div(problem.stride, ceil_div(problem.stride, residues))
    if residue_tile < problem.stride:
        residue_tile = min(most, ceil_div(residue_tile, _SECTOR // item) * (_SECTOR // item))
    staged = ceil_div(neighbours * step * residue_tile * item, 128) * 128
    tiles = ceil_div(q_count(problem), neighbours * step)
    threads = neighbours * team
    return FusedBlock(length, points, first, step, end, neighbours, threads, tiles, residue_tile, work + staged)


def _whole_sectors(residues: int, item: int) -> int:
    """The most residues whose runs are whole sectors, or all of them when they do not fill one."""
    unit = _SECTOR // item
    return residues // unit * unit or residues


def _grid(problem: Problem, block: FusedBlock) -> int:
    return problem.batch * problem.c_out * block.tiles


# ---- plans ----------------------------------------------------------------------------------------------------------


def _plan(problem: Problem, block: FusedBlock) -> Plan:
    spectrum = dtypes(problem)[1]
    roots = Workspace("roots", block.points // 2, spectrum)
    spectra = Workspace("spectra", filter_count(problem) * block.points, spectrum)
    packing_steps, filters = _packing(problem, block)
    share = f"{block.step} of {block.length} samples kept"
    return Plan(
        "fft",
        _variant_name(block),
        (_launch(problem, block),),
        packing_steps=(_roots(spectrum, roots.count), *packing_steps),
        packing_workspaces=(filters,),
        packed=(roots, spectra),
        packing_key=("fft_block", block.points, problem.stride, problem.dilation, *dtypes(problem)),
        sum_order=f"fft block {block.length}",
        notes=(f"{share}, {block.residue_tile} of {problem.stride} residues staged at a time",),
    )


def _launch(problem: Problem, block: FusedBlock) -> Launch:
    kernel, defines = _block_variant(problem.x_dtype, problem.out_dtype, block.log)
    u_end = problem.l_in + problem.phases.span
    strides = (Stride("x", 0), Stride("x", 1), Stride("out", 0), Stride("out", 1))
    lengths = (I64(block.end), I64(u_end), I64(problem.l_out), I64(q_count(problem)), I64(block.first))
    arguments: tuple[Argument, ...] = (
        *("x", "spectra", "roots", "bias", "out", *strides, *lengths, *crop_arguments(problem)),
        *(I32(block.step), I32(block.tiles), I32(problem.c_out), I32(problem.c_out_group)),
        *(I32(class_count(problem)), *tap_arguments(problem), I32(block.residue_tile), *epilogue(problem)),
    )
    return Launch(kernel, defines, _grid(problem, block), block.threads, block.shared_bytes, arguments)


def _roots(spectrum: str, count: int) -> Launch:
    kernel, defines = _roots_variant(spectrum)
    return Launch(kernel, defines, ceil_div(count, _ROOTS_BLOCK), _ROOTS_BLOCK, 0, ("roots", I32(count)))


def _packing(problem: Problem, block: FusedBlock) -> tuple[tuple[Step, ...], Workspace]:
    """Steps that fill the spectra, a chunk of filters at a time, and their scratch buffer."""
    time = dtypes(problem)[0]
    chunk = max(1, min(filter_count(problem), _PACKING_BYTES // (block.length * ITEM_BYTES[time])))
    return tuple(_packing_steps(problem, block, chunk)), Workspace("filters", chunk * block.length, time)


def _packing_steps(problem: Problem, block: FusedBlock, chunk: int) -> Iterator[Step]:
    time, spectrum = dtypes(problem)
    kernel, defines = _spectra_variant(time, block.log)
    line = 128 // ITEM_BYTES[spectrum]
    shared = block.neighbours * (block.points + block.points // line) * ITEM_BYTES[spectrum]
    for first in range(0, filter_count(problem), chunk):
        rows = min(chunk, filter_count(problem) - first)
        yield weights_launch(problem, block.length, first, rows)
        target = At("spectra", first * block.points)
        arguments: tuple[Argument, ...] = ("filters", "roots", target, I32(rows))
        yield Launch(kernel, defines, ceil_div(rows, block.neighbours), block.threads, shared, arguments)
