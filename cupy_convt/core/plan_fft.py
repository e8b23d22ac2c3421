# SPDX-License-Identifier: MIT
"""FFT method: one transform of x shared by every residue class of the output, in blocks, by library transforms.

Nothing is zero-stuffed: class p of the taps is a filter of J = ceil(K c / s) taps on x itself, its result a plane
u -> F[(u - shift)*s + r], and the planes are interleaved as they are stored. It wins on long filters (K/s of hundreds)
and loses on short ones, where transforms move more bytes than the direct kernels.

The spectra of the weight are the plan's packed buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cupy_convt.core import plan_fft_matrices
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.fft_blocks import MOST_ELEMENTS, Blocks, choose_blocks
from cupy_convt.core.fft_tiles import (
    MOST_TILES,
    Part,
    buffer_dtypes,
    choose_layout,
    class_count,
    dtypes,
    filter_count,
    library_bytes,
    packed_spectra,
    tile_budget,
    tile_count,
    tiles_of,
    workspaces,
)
from cupy_convt.core.interleave import BLOCK, crop_arguments, interleave, tap_arguments
from cupy_convt.core.interleave import why_not as interleave_why_not
from cupy_convt.core.launch import (
    CUDA_TYPES,
    DTYPE_PAIRS,
    F64,
    I32,
    I64,
    Argument,
    At,
    Fft,
    Launch,
    Plan,
    Step,
    Stride,
    Variant,
    Workspace,
    epilogue,
)
from cupy_convt.core.problem import Problem, ceil_div, is_complex, real_dtype, result_dtype

PACK_SPAN = 1024
PRODUCT_BLOCK, PRODUCT_ROWS, PRODUCT_COLUMNS = 128, 4, 4
#: How the product at each frequency is made: this library's kernel, or the vendor's products of matrices, complex ones
#: or three real ones in place of each.
_FORMS = ("", "matrices, ", "three-product matrices, ")


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    found: list[Variant] = []
    for x, weight in DTYPE_PAIRS:
        time, spectrum = buffer_dtypes(x, weight)
        found += [_pack_variant(x, time), weights_variant(weight, time), _finish_variant(result_dtype(x, weight))]
        found += [_product_variant(spectrum, columns) for columns in (1, PRODUCT_COLUMNS)]
        found += plan_fft_matrices.variants(spectrum)
    return tuple(dict.fromkeys(found))


def why_not(problem: Problem, device: DeviceSpec, workspace_limit: int = 256 << 20) -> str:
    """Why the method cannot take the problem under a limit; empty if it can."""
    if problem.operation != "forward":
        return f"no FFT plan for {problem.operation}"
    if problem.phases.span >= MOST_ELEMENTS // 8:
        return "the filter of one residue class is too long for a transform"
    if why := interleave_why_not(problem):
        return why
    blocks = choose_blocks(problem)
    budget = tile_budget(packed_spectra(problem, blocks), workspace_limit)
    tiles = tile_count(problem, choose_layout(problem, blocks, budget))
    return f"its spectra would be cut into {tiles} tiles" if tiles > MOST_TILES else ""


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """Tiled over batch, groups, time and channels until they fit the limit (or cannot shrink)."""
    if not problem.batch or why_not(problem, device, workspace_limit):
        return ()
    blocks = choose_blocks(problem)
    kind = "one block" if blocks.whole else "overlap-save"
    found = []
    for form in _FORMS[: 2 if problem.precision == "ieee" else 3]:
        matrices, planes = bool(form), form == _FORMS[2]
        packed = packed_spectra(problem, blocks, planes)
        budget = tile_budget(packed, workspace_limit)
        layout = choose_layout(problem, blocks, budget, planes)
        buffers = workspaces(problem, blocks, layout, planes)
        if planes and (tile_count(problem, layout) > MOST_TILES or max(b.count for b in buffers) > MOST_ELEMENTS):
            continue
        parts = list(tiles_of(problem, blocks, layout))
        if matrices and not plan_fft_matrices.pays(problem, parts):
            continue
        packing_steps, scratch = _packing(problem, blocks, packed, budget, matrices, planes)
        found.append(
            Plan(
                method="fft",
                variant=f"{form}{kind} of {blocks.length}",
                steps=tuple(step for part in parts for step in _steps(problem, blocks, part, matrices, planes)),
                workspaces=buffers,
                packing_steps=tuple(packing_steps),
                packing_workspaces=scratch,
                packed=(packed,),
                library_bytes=library_bytes(problem, blocks, layout),
                packing_key=("fft", form, blocks.length, problem.stride, problem.dilation, *dtypes(problem)),
                notes=(f"{blocks.step} of {blocks.length} samples kept, {len(problem.phases.active)} residue classes",),
            )
        )
    return tuple(found)


# ---- variants ------------------------------------------------------------------------------------------------------


def _pack_variant(x: str, time: str) -> Variant:
    return "fft_pack", (("CONVT_X", CUDA_TYPES[x]), ("CONVT_T", CUDA_TYPES[time]))


def weights_variant(weight: str, time: str) -> Variant:
    """The kernel that lays out filters of a time dtype."""
    return "fft_weights", (("CONVT_W", CUDA_TYPES[weight]), ("CONVT_T", CUDA_TYPES[time]))


def _product_variant(spectrum: str, columns: int) -> Variant:
    return "fft_product", (("CONVT_T", CUDA_TYPES[spectrum]), ("CONVT_COLUMNS", columns))


def _finish_variant(out: str) -> Variant:
    return "fft_finish", (("CONVT_Y", CUDA_TYPES[out]),)


# ---- steps ----------------------------------------------------------------------------------------------------------


def _steps(problem: Problem, blocks: Blocks, part: Part, matrices: bool, planes: bool) -> Iterator[Step]:
    """Transform x once, then product, inverse transforms and finish for each chunk of channels.

    With `matrices` the spectra lie frequency by frequency and the product is the library's, with `planes` in real ones.
    """
    real = not is_complex(problem.out_dtype)
    precision = real_dtype(dtypes(problem)[0])
    x_spectra, y_spectra = ("spectra", "spectra") if planes else ("x_spectra", "y_spectra")
    if part.first_chunk:
        rows = part.batch * part.groups * problem.c_in_group * part.blocks
        yield _pack(problem, blocks, part, rows)
        forward = "r2c" if real else "c2c"
        spread = rows if matrices else 0
        yield Fft(forward, blocks.length, rows, At("time", 0), At(x_spectra, 0), precision, spread)
        if planes:
            yield plan_fft_matrices.split(problem, blocks, rows, x_spectra, At("x_planes", 0), rows, weight=False)
    if matrices:
        yield from plan_fft_matrices.products(problem, blocks, part, planes)
    else:
        yield _product(problem, blocks, part)
    rows = part.batch * part.groups * part.channels * class_count(problem) * part.blocks
    inverse = "c2r" if real else "c2c_inverse"
    spread = rows if matrices else 0
    yield Fft(inverse, blocks.length, rows, At(y_spectra, 0), At("time", 0), precision, spread)
    yield _finish(problem, blocks, part)


def _pack(problem: Problem, blocks: Blocks, part: Part, rows: int) -> Launch:
    # inputs that no kept sample sees may wrap around to one that is kept: they count as zero
    end = min(problem.l_in, part.u_first + part.u_count) if blocks.whole else problem.l_in
    parts = ceil_div(blocks.length, PACK_SPAN)
    arguments: tuple[Argument, ...] = (
        *("x", "time", Stride("x", 0), Stride("x", 1), I64(end), I64(part.u_first - blocks.lead), I64(blocks.step)),
        *(I32(part.n), I32(part.group * problem.c_in_group), I32(part.groups * problem.c_in_group)),
        *(I32(part.blocks), I32(blocks.length), I32(parts)),
    )
    kernel, defines = _pack_variant(problem.x_dtype, dtypes(problem)[0])
    return Launch(kernel, defines, rows * parts, 256, 0, arguments)


def _product(problem: Problem, blocks: Blocks, part: Part) -> Launch:
    columns = PRODUCT_COLUMNS if part.batch * part.blocks > 1 else 1
    classes = class_count(problem)
    channel_step = problem.c_out_group * classes * blocks.bins
    group_step = problem.c_in_group * channel_step
    rows = part.channels * classes
    tiles = (
        ceil_div(blocks.bins, PRODUCT_BLOCK),
        ceil_div(rows, PRODUCT_ROWS),
        ceil_div(part.batch * part.blocks, columns),
    )
    arguments: tuple[Argument, ...] = (
        *("x_spectra", At("w_spectra", part.group * group_step + part.channel * classes * blocks.bins), "y_spectra"),
        *(I64(group_step), I64(channel_step), I32(blocks.bins), I32(part.batch), I32(part.groups)),
        *(I32(problem.c_in_group), I32(rows), I32(part.blocks), *(I32(t) for t in tiles)),
    )
    kernel, defines = _product_variant(dtypes(problem)[1], columns)
    grid = tiles[0] * tiles[1] * tiles[2] * part.groups
    return Launch(kernel, defines, grid, PRODUCT_BLOCK, 0, arguments)


def _finish(problem: Problem, blocks: Blocks, part: Part) -> Launch:
    channels = part.groups * part.channels
    tiles = interleave(problem, part.batch * channels, part.q_count)
    first_co = part.group * problem.c_out_group + part.channel
    arguments: tuple[Argument, ...] = (
        *("time", "bias", "out", Stride("out", 0), Stride("out", 1), I64(problem.l_out), *crop_arguments(problem)),
        *(I64(part.q), I64(part.q_count), I64(part.u_first), I32(part.u_count), I32(blocks.step), I32(blocks.lead)),
        *(I32(blocks.length), I32(part.blocks), I32(class_count(problem)), F64(1.0 / blocks.length)),
        *(I32(part.n), I32(first_co), I32(channels)),
        *(*tap_arguments(problem), *tiles.arguments, *epilogue(problem)),
    )
    kernel, defines = _finish_variant(problem.out_dtype)
    return Launch(kernel, defines, tiles.grid, BLOCK, tiles.shared_bytes, arguments)


# ---- weight spectra -------------------------------------------------------------------------------------------------


def _packing(
    problem: Problem, blocks: Blocks, packed: Workspace, budget: int, matrices: bool, planes: bool
) -> tuple[list[Step], tuple[Workspace, ...]]:
    """Steps that fill the packed spectra, a chunk of filters at a time, and their scratch buffers."""
    time, spectrum = dtypes(problem)
    count = filter_count(problem)
    filters, spectra = Workspace("filters", blocks.length, time), Workspace("filter_spectra", blocks.bins, spectrum)
    each = 2 * filters.bytes + (spectra.bytes if planes else 0)
    chunk = max(1, min(count, budget // each, MOST_ELEMENTS // blocks.length))
    forward = "c2c" if is_complex(time) else "r2c"
    steps: list[Step] = []
    for first in range(0, count, chunk):
        rows = min(chunk, count - first)
        steps.append(weights_launch(problem, blocks.length, first, rows))
        target, spread = At("w_spectra", first if matrices else first * blocks.bins), count if matrices else 0
        if planes:
            target, spread = At("filter_spectra", 0), rows
        steps.append(Fft(forward, blocks.length, rows, At("filters", 0), target, real_dtype(time), spread))
        if planes:
            kept = At("w_spectra", first)
            steps.append(plan_fft_matrices.split(problem, blocks, rows, "filter_spectra", kept, count, weight=True))
    used = (filters, spectra) if planes else (filters,)
    return steps, tuple(replace(buffer, count=chunk * buffer.count) for buffer in used)


def weights_launch(problem: Problem, length: int, first: int, rows: int) -> Launch:
    """Lays out `rows` filters from number `first` on in the buffer "filters", each `length` samples long."""
    classes, parts = problem.phases, ceil_div(length, PACK_SPAN)
    kernel, defines = weights_variant(problem.weight_dtype, dtypes(problem)[0])
    arguments: tuple[Argument, ...] = (
        *("weight", "filters", I64(first), I32(class_count(problem)), I32(problem.kernel_size)),
        *(I32(classes.tap_step), I32(classes.input_step), I32(length), I32(parts)),
    )
    return Launch(kernel, defines, rows * parts, 256, 0, arguments)
