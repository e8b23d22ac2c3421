# SPDX-License-Identifier: MIT
"""Predicted seconds of a CPU plan: products by BLAS, element-wise passes, transforms, and the overhead of calls.

Each method is a sum of a few terms with one constant of constants_cpu.py each. Seconds on one core are divided by the
cores; the rates of products scale with the device's peak.
"""

from __future__ import annotations

from math import log2

from cupy_convt.core.constants_cpu import FITTED, FITTED_PEAK, Constants
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.phases_cpu import rows_of
from cupy_convt.core.plan_cpu import MERGED_BELOW, CpuPlan, block_by_block
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape, RowGrid, row_grid
from cupy_convt.core.tiles_cpu import DENSE_TAPS, threads
from cupy_convt.core.tiles_fft_cpu import MATRIX_CHANNELS, filled
from cupy_convt.core.transforms_cpu import VECTOR_BYTES, FftForm

#: Bytes that memory moves at once.
LINE_BYTES = 64
#: Multiplications of a product up to which BLAS reads its operands where they lie; for larger ones it copies both.
SMALL_PRODUCT = 10**6


def seconds(problem: Problem, plan: CpuPlan, device: DeviceSpec, constants: Constants = FITTED) -> float:
    """Predicted seconds of one call whose weight is packed already."""
    real, grid = RealShape.of(problem), row_grid(problem)
    product = _phases if plan.form else _subpixel if plan.subpixel else _toeplitz if plan.block else _dense
    model = {"direct": _direct, "fft": _fft}.get(plan.method, product)
    return model(problem, plan, device, real, grid, constants)


def packing_seconds(problem: Problem, plan: CpuPlan, device: DeviceSpec, constants: Constants = FITTED) -> float:
    """Predicted seconds of packing the weight, which a call that is handed none does first."""
    if plan.fft:
        return _fft_packing(problem, plan, device, RealShape.of(problem), constants)
    if plan.subpixel:
        return constants.subpixel_compile + plan.packed_bytes * constants.subpixel_pack if plan.packing_key else 0.0
    real = RealShape.of(problem)
    if plan.block:  # the zeros beside the taps stay from call to call
        stored = problem.groups * real.c_in * real.c_out * problem.kernel_size * plan.block
        return stored * constants.toeplitz_pack * (real.item / 4)
    each = constants.phases_pack if plan.form else constants.convert
    return plan.packed_bytes / 4 * each / (device.multiprocessors if plan.form else 1)


def _outputs(problem: Problem, real: RealShape) -> int:
    return real.planes * problem.batch * problem.groups * real.c_out * problem.l_out


def _tiles(problem: Problem, plan: CpuPlan, grid: RowGrid) -> int:
    """Tiles of a plan that is cut along items, groups, channels and rows."""
    channels = ceil_div(problem.groups, plan.group_tile) * ceil_div(problem.c_out_group, plan.channel_tile)
    return ceil_div(problem.batch, plan.batch_tile) * channels * ceil_div(grid.rows, plan.row_tile)


def _scale(real: RealShape, device: DeviceSpec) -> float:
    """How much faster than the fitted machine's float32 the products of this dtype are."""
    return (device.fp64 if real.item == 8 else device.fp32) / FITTED_PEAK


def _shared(seconds: float, problem: Problem, device: DeviceSpec, tiles: int, c: Constants) -> float:
    """Seconds of one core's work on all the cores that have something to do, which have to be woken."""
    busy = min(threads(problem, device.multiprocessors), max(tiles, 1))
    return seconds / busy + (c.wake if busy > 1 else 0.0)


def _apart(problem: Problem, real: RealShape) -> int:
    """Samples between two that are stored one after the other, up to a line of the cache: what such a store costs."""
    return min(problem.stride, LINE_BYTES // real.item)


def _cold_bytes(problem: Problem, device: DeviceSpec) -> float:
    """About as many bytes of the arrays as no cache of a core holds."""
    return problem.bytes * problem.bytes / (problem.bytes + device.multiprocessors * device.cache_bytes)


def _passes(real: RealShape) -> float:
    """Element-wise work of a dtype relative to float32: twice the bytes, or a conversion besides."""
    return real.item / 4 + (1.0 if real.converted else 0.0)


def _direct(problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants) -> float:
    element, outputs = c.direct_element * _passes(real), _outputs(problem, real)
    if problem.l_in < grid.max_taps:  # input by input, in loops along the taps
        calls, taps = 2 * real.c_in * problem.l_in, min(problem.kernel_size, problem.l_out)
        each = outputs / problem.l_out * calls * (taps * element + c.direct_loop) + outputs * element
    else:
        calls = sum(2 * real.c_in * run.taps + 1 for run in grid.runs)
        passes = 1 + 2 * real.c_in * sum(run.count * run.taps for run in grid.runs) / min(problem.stride, problem.l_out)
        element += c.direct_loop / min(plan.row_tile, grid.rows)
        each = outputs * (passes * element + c.direct_store * _apart(problem, real))
    tiles = _tiles(problem, plan, grid)
    each += tiles * (c.direct_tile + calls * c.direct_pass)
    each += _cold_bytes(problem, device) * c.cold_byte
    return c.direct_call + _shared(each, problem, device, tiles, c)


def _dense(problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants) -> float:
    outputs = _outputs(problem, real)
    chunks = ceil_div(max(grid.max_taps, 1), DENSE_TAPS)
    halo = min((min(grid.max_taps, DENSE_TAPS) - 1) * grid.input_step / min(plan.row_tile, problem.l_in), grid.max_taps)
    repeated = 1 + halo * (plan.row_tile < grid.rows)
    products = real.planes * problem.batch * problem.l_in * problem.groups * real.c_out * problem.kernel_size
    width = real.c_out * problem.kernel_size
    rate = c.dense_rate * _scale(real, device)
    rate *= real.c_in / (real.c_in + c.dense_half_channels) * width / (width + c.dense_half_width)
    cuts = ceil_div(problem.c_out_group, plan.channel_tile)
    element = c.columns_element * _passes(real)
    if plan.variant == "rows":
        element = c.rows_element * _passes(real) + c.rows_loop / problem.stride
    tiles = _tiles(problem, plan, grid) * plan.tap_parts
    each = tiles * chunks * c.dense_tile + (products * repeated + outputs * plan.tap_parts) * element
    # BLAS copies both operands of every product
    times = ceil_div(problem.batch, plan.batch_tile) * ceil_div(grid.rows, plan.row_tile)
    cuts *= chunks * plan.tap_parts
    copied = times * problem.groups * real.c_in * width + cuts * problem.batch * problem.c_in * problem.l_in
    each += copied * c.dense_operand
    multiplying = 2 * products * repeated * real.c_in / rate * device.multiprocessors
    return c.dense_call + _shared(multiplying + each, problem, device, tiles, c)


def _phases(problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants) -> float:
    assert plan.form is not None
    form, taps = plan.form, problem.phases.max_taps
    summed, beside = form.summed(taps), form.beside(taps)
    first, stop = rows_of(problem)
    columns = real.planes * problem.batch * problem.groups * ceil_div(stop - first, form.outputs) * form.points
    depth, width = summed * real.c_in, real.c_out * problem.stride * beside
    cuts = ceil_div(problem.c_out_group, plan.channel_tile)
    times = ceil_div(stop - first, plan.row_tile) * ceil_div(problem.batch, plan.batch_tile)
    tiles = times * problem.groups * cuts
    plain = form.points == 1
    call, tile = (c.phases_call, c.phases_tile) if plain else (c.winograd_call, c.winograd_tile)
    rate, an_operand = (c.phases_rate, c.phases_operand) if plain else (c.winograd_rate, c.winograd_operand)
    half_depth = c.phases_half_depth if plain else c.winograd_half_depth
    half_width = c.phases_half_width if plain else c.winograd_half_width
    an_input, a_result = (c.phases_input, c.phases_result) if plain else (c.winograd_input, c.winograd_result)
    rate *= _scale(real, device) * depth / (depth + half_depth) * width / (width + half_width)
    copied = times * problem.groups * form.points * depth * width + cuts * columns * depth
    each = columns * (min(cuts, device.multiprocessors) * depth * an_input + width * a_result) + copied * an_operand
    each = each * _passes(real) + tiles * tile
    multiplying = 2.0 * columns * depth * width / rate * device.multiprocessors
    return call + _shared(multiplying + each, problem, device, tiles, c)


def _subpixel(
    problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants
) -> float:
    form = plan.subpixel
    assert form is not None
    rows = problem.batch * (problem.l_in + form.before + form.after - form.taps + 1)
    depth, width = problem.c_in * form.taps, problem.c_out * problem.stride
    rate = (
        c.subpixel_half_rate * device.fp16 / (2 * FITTED_PEAK) if form.half else c.subpixel_rate * _scale(real, device)
    )
    rate *= depth / (depth + c.subpixel_half_depth) * width / (width + c.subpixel_half_width)
    cut = 2 if form.head or form.tail else 1
    cold = _cold_bytes(problem, device) / problem.bytes
    each = problem.batch * problem.c_in * problem.l_in * (c.subpixel_input + cold * c.subpixel_cold)
    each += cut * rows * width * c.subpixel_result + depth * width * c.subpixel_weight
    if not form.packed:
        each += rows * depth * c.im2col_input + depth * width * c.im2col_weight
    return c.subpixel_call + 2.0 * rows * depth * width / rate + each / device.multiprocessors


def _toeplitz(
    problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants
) -> float:
    window: float = real.c_in * (plan.block + grid.span)
    width = plan.block * problem.stride
    blocks = real.planes * problem.batch * problem.groups * ceil_div(grid.rows, plan.block)
    rows_of_blocks = ceil_div(plan.row_tile, plan.block)
    together, signals = min(rows_of_blocks, ceil_div(grid.rows, plan.block)), plan.batch_tile * real.planes
    apart = block_by_block(real, signals, together)
    if apart:
        together = signals
    elif together < MERGED_BELOW:
        together *= signals
    products, outputs = blocks / together * real.c_out, blocks * width * real.c_out
    each = outputs * c.toeplitz_output
    if apart:
        window = _mean_window(problem, plan, grid)
    else:  # windows are copied, with the bias of a lone channel behind
        window += problem.has_bias and real.c_out == 1
        each += blocks * (real.c_in * c.toeplitz_run + window * c.toeplitz_copy)
    if together * window * width > SMALL_PRODUCT:
        each += products * (together + width) * window * c.toeplitz_operand
    tiles = _tiles(problem, plan, grid)
    each = each * _passes(real) + products * c.toeplitz_product + tiles * c.toeplitz_tile
    again = _met_again(problem, plan, real, grid) if apart else 0.0
    each += _cold_bytes(problem, device) * (1 + again) * c.cold_byte
    lanes = LINE_BYTES // real.item
    multiplied = 2.0 * blocks * real.c_out * ceil_div(width, lanes) * lanes * window
    multiplying = multiplied / (c.toeplitz_rate * _scale(real, device)) * device.multiprocessors
    return c.toeplitz_call + _shared(multiplying + each, problem, device, tiles, c)


def _mean_window(problem: Problem, plan: CpuPlan, grid: RowGrid) -> float:
    """Inputs that a product of one block each meets: its window as far as it lies in x."""
    ends = [(q - grid.lookback, q + plan.block + grid.lookahead) for q in range(0, grid.rows, plan.block)]
    return sum(max(min(stop, problem.l_in) - max(start, 0), 0) for start, stop in ends) / len(ends)


def _met_again(problem: Problem, plan: CpuPlan, real: RealShape, grid: RowGrid) -> float:
    """What products of one block each move besides, for each byte of the arrays.

    Neighbours meet the inputs that they share and the lines in which a block begins or ends, all else in between; a
    line that is written in part is read first.
    """
    besides = grid.span * real.item + LINE_BYTES + 2 * LINE_BYTES
    return besides / (plan.block * (1 + problem.stride) * real.item)


def _fft(problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, grid: RowGrid, c: Constants) -> float:
    form = plan.fft
    assert form is not None
    phases, outputs = len(problem.phases.active), real.c_out // problem.c_out_group
    x_windows = form.windows if form.kind == "blocks" else 1
    signals = real.planes * problem.batch * problem.groups
    inputs, results = signals * real.c_in * x_windows, signals * real.c_out * form.windows * phases
    # signals of a tile that are transformed together, and how often a thread meets the same part of x again
    in_tile = real.planes * plan.batch_tile * plan.group_tile
    windows = max(1, min(plan.row_tile // form.hop, form.windows))
    out_lanes = _lanes_of_tiles(form, in_tile * plan.channel_tile * outputs * phases, form.windows, windows, real, c)
    in_lanes = _lanes_of_tiles(form, in_tile * real.c_in, x_windows, min(windows, max(x_windows, 1)), real, c)
    cuts = ceil_div(problem.c_out_group, plan.channel_tile) * (1 if form.kind == "blocks" else form.windows // windows)
    tiles = cuts * ceil_div(problem.groups, plan.group_tile) * ceil_div(problem.batch, plan.batch_tile)
    if form.kind == "blocks":
        tiles *= ceil_div(form.windows, windows)
    point = c.fft_point * log2(form.length)
    each = inputs * min(max(cuts, 1), device.multiprocessors) * in_lanes * point
    each += results * (out_lanes * point + c.fft_output)
    each = each * form.length + (inputs + results) * c.fft_loop
    if phases < problem.stride:  # the rest is filled with zeros, and samples are stored one by one
        each += _outputs(problem, real) * (c.fft_fill + phases / problem.stride * c.fft_store * _apart(problem, real))
    total = 0.0
    if real.c_in < MATRIX_CHANNELS:
        each += results * form.length * (2 * real.c_in - 1) * c.fft_product  # multiplied, and added to the others
    else:
        rate = c.fft_matrix_rate * real.c_in / (real.c_in + c.fft_half_channels)
        rate = min(rate, FITTED_PEAK) * _scale(real, device)
        total += 4.0 * results * form.length * real.c_in / rate
        each += inputs * form.length * c.fft_turn
        # products of few rows read the spectra at the speed of memory
        spectra = 2.0 * _filter_points(problem, form, real) * real.item
        total += spectra / device.bandwidth * max(1, tiles // max(cuts, 1))
    each *= real.item / 4
    if real.converted:
        each += _outputs(problem, real) * c.fft_convert
    return c.fft_call + total + _shared(each + tiles * c.fft_tile, problem, device, tiles, c)


def _filter_points(problem: Problem, form: FftForm, real: RealShape) -> int:
    phases = len(problem.phases.active)
    return problem.groups * real.c_in * real.c_out * phases * form.tap_windows * form.length


def _fft_packing(problem: Problem, plan: CpuPlan, device: DeviceSpec, real: RealShape, c: Constants) -> float:
    form, phases = plan.fft, len(problem.phases.active)
    assert form is not None
    at_once = form.filters_at_once(phases, real.item)
    point = _lanes(form, at_once * phases * form.tap_windows, real, c) * c.fft_point * log2(form.length) + c.fft_pack
    parts = ceil_div(problem.groups * real.c_in * real.c_out, at_once)
    return _filter_points(problem, form, real) * point / min(device.multiprocessors, parts) * real.item / 4


def _lanes_of_tiles(form: FftForm, signals: int, windows: int, in_tile: int, real: RealShape, c: Constants) -> float:
    """`_lanes` of the windows of some signals, in tiles of which the last one may be smaller."""
    times = 0.0
    for count, often in ((in_tile, windows // in_tile), (windows % in_tile, 1)):
        made = filled(form, count, real.item, signals == 1)
        times += often * made * _lanes(form, signals * made, real, c)
    return times / max(windows, 1)


def _lanes(form: FftForm, signals: int, real: RealShape, c: Constants) -> float:
    """Time of a transform in a group of so many over its share of a full vector register."""
    if form.split:
        return c.fft_split
    lanes = VECTOR_BYTES // real.item
    alone = signals % lanes
    return (signals - alone + alone * c.fft_alone) / max(signals, 1)
