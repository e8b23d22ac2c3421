# SPDX-License-Identifier: MIT
"""GEMM method: one library product of the weight with x for every tap, then a gathering overlap-add.

    cols[(co,j)][i] = sum_ci w[ci,co,j] x[ci,i]      y[co,t] = bias[co] + sum_{i*s + j*d = t + p_left} cols[(co,j)][i]

Right for any dtype and geometry; it writes and reads K columns for every input and output channel, so it wins where
C_in is large against that (dense layers) and loses on few channels. Real by complex stays two real products: complex x
is read as twice as many real columns, a complex weight as twice as many real rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.interleave import BLOCK, crop_arguments, interleave, q_count, tap_arguments
from cupy_convt.core.interleave import why_not as interleave_why_not
from cupy_convt.core.launch import (
    CUDA_TYPES,
    DTYPE_PAIRS,
    I32,
    I64,
    Gemm,
    Launch,
    Matrix,
    Plan,
    Step,
    Stride,
    Variant,
    Workspace,
    epilogue,
)
from cupy_convt.core.problem import ACCUMULATOR, ITEM_BYTES, Problem, ceil_div, is_complex, real_dtype, result_dtype
from cupy_convt.core.tiling import shrink

_LEAST_TILE_Q = 256
#: Tiles are not made smaller than this, whatever the limit.
LEAST_BUDGET = 1 << 20
#: A plan of more tiles is refused: the direct method is faster than so many launches.
MOST_TILES = 1024


def variants() -> tuple[Variant, ...]:
    """Every (kernel, defines) that a plan of this method can launch."""
    return tuple(dict.fromkeys(("overlap_add", _defines(*pair)) for pair in DTYPE_PAIRS))


def why_not(problem: Problem, device: DeviceSpec, workspace_limit: int = 256 << 20) -> str:
    """Why the method cannot take the problem under a limit; empty if it can."""
    if problem.operation != "forward":
        return f"no GEMM plan for {problem.operation}"
    if problem.l_in >= 2**29 or problem.c_out_group * problem.kernel_size >= 2**29 or problem.c_in_group >= 2**30:
        return "a matrix side does not fit in the 32-bit integers of the library"
    if why := interleave_why_not(problem):
        return why
    tiles = _tiles(problem, _layout(problem, max(workspace_limit, LEAST_BUDGET)))
    return f"its columns would be cut into {tiles} tiles" if tiles > MOST_TILES else ""


def candidates(problem: Problem, device: DeviceSpec, workspace_limit: int) -> tuple[Plan, ...]:
    """One plan, its columns tiled over batch, time and channels until they fit the limit (or cannot shrink)."""
    if not problem.batch or why_not(problem, device, workspace_limit):
        return ()
    layout = _layout(problem, max(workspace_limit, LEAST_BUDGET))
    steps: list[Step] = []
    for part in _parts(problem, layout):
        if part.inputs:
            steps.append(_product(problem, part))
        steps.append(_overlap_add(problem, part))
    count = layout.batch * layout.channels * problem.kernel_size * _planes(problem) * _most_inputs(problem, layout)
    columns = Workspace("columns", max(1, count), _columns_dtype(problem))
    tiles = sum(isinstance(step, Launch) for step in steps)
    notes = (f"{tiles} tile(s) of {layout.batch} batch entries, {layout.channels} channels, {layout.q} q",)
    return (Plan("gemm", "overlap_add", tuple(steps), (columns,), notes=notes),)


# ---- dtypes ---------------------------------------------------------------------------------------------------------


def _columns_dtype(problem: Problem) -> str:
    """Dtype of the columns: that of the sums, but real when only the weight is complex."""
    if is_complex(problem.weight_dtype) and not is_complex(problem.x_dtype):
        return problem.x_dtype
    return problem.accumulator


def _planes(problem: Problem) -> int:
    """Rows of columns for one tap: 2 when real and imaginary parts of the weight are rows of their own."""
    return 2 if is_complex(problem.weight_dtype) and not is_complex(problem.x_dtype) else 1


def _pairs(problem: Problem) -> int:
    """Real columns for one input: 2 when complex inputs meet a real weight."""
    return 2 if is_complex(problem.x_dtype) and not is_complex(problem.weight_dtype) else 1


def _defines(x_dtype: str, weight_dtype: str) -> tuple[tuple[str, str | int], ...]:
    out = result_dtype(x_dtype, weight_dtype)
    planes = int(is_complex(weight_dtype) and not is_complex(x_dtype))
    columns = x_dtype if planes else ACCUMULATOR.get(out, out)
    return ("CONVT_C", CUDA_TYPES[columns]), ("CONVT_Y", CUDA_TYPES[out]), ("CONVT_PLANES", planes)


# ---- tiles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Tile sizes. A product is batched over batch entries of one group, or over the groups of one batch entry."""

    over_groups: bool
    batch: int
    channels: int
    q: int


@dataclass(frozen=True)
class Part:
    """One tile: `batch` products, from entry or group `first` on, of inputs [i_first, i_first + inputs)."""

    over_groups: bool
    n: int
    group: int
    batch: int
    channel: int
    channels: int
    q: int
    q_count: int
    i_first: int
    inputs: int


def _inputs(problem: Problem, q: int, count: int) -> tuple[int, int]:
    """(first, number) of the inputs with 0 <= t + p_left - i*s < k for an output t in [q*s, (q + count)*s)."""
    newest = ((q + count) * problem.stride - 1 + problem.p_left) // problem.stride
    oldest = ceil_div(q * problem.stride + problem.p_left - problem.effective_kernel + 1, problem.stride)
    first, last = max(0, oldest), min(problem.l_in - 1, newest)
    return (first, last - first + 1) if first <= last else (0, 0)


def _most_inputs(problem: Problem, layout: Layout) -> int:
    reach = layout.q + ceil_div(problem.effective_kernel, problem.stride) + 1
    return min(problem.l_in, reach)


def _bytes(problem: Problem, layout: Layout) -> int:
    row = problem.kernel_size * _planes(problem) * ITEM_BYTES[_columns_dtype(problem)]
    return layout.batch * layout.channels * row * _most_inputs(problem, layout)


def _layout(problem: Problem, limit: int) -> Layout:
    """The largest tile within the limit: first fewer batch entries, then shorter times, then fewer channels."""
    over_groups = problem.groups > problem.batch
    batch = max(1, problem.groups if over_groups else problem.batch)
    layout = Layout(over_groups, batch, problem.c_out_group, q_count(problem))
    axes = (("batch", 1), ("q", _LEAST_TILE_Q), ("channels", 1))
    return shrink(layout, axes, lambda smaller: _bytes(problem, smaller) <= limit)


def _tiles(problem: Problem, layout: Layout) -> int:
    outer, inner = (problem.batch, problem.groups) if layout.over_groups else (problem.groups, problem.batch)
    channels = ceil_div(problem.c_out_group, layout.channels)
    return outer * ceil_div(inner, layout.batch) * channels * ceil_div(q_count(problem), layout.q)


def _parts(problem: Problem, layout: Layout) -> Iterator[Part]:
    outer, inner = (problem.batch, problem.groups) if layout.over_groups else (problem.groups, problem.batch)
    total = q_count(problem)
    for fixed in range(outer):
        for first in range(0, inner, layout.batch):
            batch = min(layout.batch, inner - first)
            n, group = (fixed, first) if layout.over_groups else (first, fixed)
            for channel in range(0, problem.c_out_group, layout.channels):
                channels = min(layout.channels, problem.c_out_group - channel)
                for q in range(0, total, layout.q):
                    count = min(layout.q, total - q)
                    i_first, inputs = _inputs(problem, q, count)
                    yield Part(layout.over_groups, n, group, batch, channel, channels, q, count, i_first, inputs)


# ---- steps ----------------------------------------------------------------------------------------------------------


def _product(problem: Problem, part: Part) -> Gemm:
    planes, pairs, k = _planes(problem), _pairs(problem), problem.kernel_size
    mixed = problem.x_dtype != problem.weight_dtype
    weight_row = problem.c_out_group * k * planes
    group_rows = problem.c_in_group
    left = Matrix(
        buffer="weight",
        offset=part.group * group_rows * weight_row + part.channel * k * planes,
        rows=group_rows,
        columns=part.channels * k * planes,
        row_stride=weight_row,
        batch_stride=group_rows * weight_row if part.over_groups else 0,
    )
    entry, channel = Stride("x", 0, pairs), Stride("x", 1, pairs)
    right = Matrix(
        buffer="x",
        offset=part.i_first * pairs,
        rows=group_rows,
        columns=part.inputs * pairs,
        row_stride=channel,
        batch_stride=Stride("x", 1, pairs * group_rows) if part.over_groups else entry,
        stride_offsets=((entry, part.n), (channel, part.group * group_rows)),
    )
    rows = part.channels * k * planes
    out = Matrix("columns", 0, rows, part.inputs * pairs, part.inputs * pairs, rows * part.inputs * pairs)
    dtype = real_dtype(problem.x_dtype) if mixed else problem.x_dtype
    out_dtype = dtype if mixed else problem.accumulator
    tf32 = problem.precision == "tf32" and dtype == "float32"
    return Gemm(left, right, out, part.batch, True, dtype, out_dtype, tf32)


def _overlap_add(problem: Problem, part: Part) -> Launch:
    blocks = interleave(problem, part.batch * part.channels, part.q_count)
    first_co = part.group * problem.c_out_group + part.channel
    arguments = (
        *("columns", "bias", "out", Stride("out", 0), Stride("out", 1), I64(problem.l_out), *crop_arguments(problem)),
        *(I64(part.q), I64(part.q_count), I64(part.i_first), I32(part.inputs)),
        *(I32(part.n), I32(int(not part.over_groups))),
        *(I32(first_co), I32(problem.c_out_group if part.over_groups else 0), I32(part.channels)),
        *(*tap_arguments(problem), *blocks.arguments, *epilogue(problem)),
    )
    defines = _defines(problem.x_dtype, problem.weight_dtype)
    return Launch("overlap_add", defines, blocks.grid, BLOCK, blocks.shared_bytes, arguments)
