# SPDX-License-Identifier: MIT
"""Dense layers phase by phase: products of sums of x with sums of taps, by the forms of core/phases_cpu.py.

    d_j[ci, p]  = sums of x[ci, p outputs - section + 1 + j],  j < points        made once for each tile of time
    m_j[(co, f), p] = sum_ci v_j[ci, (co, f)] d_j[ci, p]                          one product of matrices each
    F[(p outputs + i) s + f] = bias + sums of m_j                                 added up where the samples belong

With d = x[.. + 0], x[.. + 1], ... and taps g_0, g_1, ... in the order of ascending time:

    d_0 - d_2,  d_1 + d_2,  d_2 - d_1,  d_3 - d_1       (the last with g_last)
    g_0,  (sum of all g) / 2,  (the same with the odd ones negated) / 2,  g_last

    F(3, 2): m_0 + m_1 + m_2,  m_1 - m_2,  m_1 + m_2 + m_3
    F(2, 3): m_0 + m_1 + m_2,  m_1 - m_2 + m_3

and for F(2, 2), d_0 - d_1,  d_1,  d_2 - d_1  with  g_0,  g_0 + g_1,  g_1  to  m_0 + m_1,  m_1 + m_2.

Against the overlap-add of cpu_dense.py, whose products are as many as the taps, a minimal filter has two thirds of
the multiplications and, for two taps, two thirds of the numbers to be added up; it pays where products are most of the
time, that is from some 64 input channels on. It needs its own form of the weight, which is what short inputs have no
time for unless it is kept. The plain form pays for few channels, where adding up is most of the time: it leaves all
of it to the product.

Rounding errors are relative to the largest of the few x and taps that are summed, not to each product. An
infinity or NaN reaches every sample of its group of outputs, and taps that are padding multiply it as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cupy_convt.core.phases_cpu import PHASES_INNER_FROM, SHORT_ROWS, Form, rows_of
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.engines.cpu_arrays import Pieces
from cupy_convt.engines.cpu_phases_pack import pack_tile
from cupy_convt.engines.cpu_threads import Array, Scratch, for_each

#: d_j of the minimal filters of so many points, in terms of the x of a window; itself where there is no operation.
_INPUT_SUMS: dict[int, tuple[tuple[np.ufunc | None, int, int], ...]] = {
    3: ((np.subtract, 0, 1), (None, 1, 1), (np.subtract, 2, 1)),
    4: ((np.subtract, 0, 2), (np.add, 1, 2), (np.subtract, 2, 1), (np.subtract, 3, 1)),
}


# ---- tiles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseTile:
    """Part of the result: items, one group, channels within it, groups of outputs counted from the first u."""

    items: slice
    group: int
    channels: slice
    outputs: slice


def tiles(problem: Problem, plan: CpuPlan) -> Iterator[PhaseTile]:
    """Tiles, the channels of one piece of x one after the other."""
    assert plan.form is not None
    first, stop = rows_of(problem)
    groups, step = ceil_div(stop - first, plan.form.outputs), plan.row_tile // plan.form.outputs
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for group in range(problem.groups):
            for p in range(0, groups, step):
                for c in range(0, problem.c_out_group, plan.channel_tile):
                    channels = slice(c, min(c + plan.channel_tile, problem.c_out_group))
                    yield PhaseTile(items, group, channels, slice(p, min(p + step, groups)))


def run(pieces: Pieces, plan: CpuPlan, operand: Array, *, packed: bool, parallel: bool) -> None:
    """Compute every tile with what cpu_phases_pack.py made of the weight or, not `packed`, of the real one by tiles."""

    def work(tile: PhaseTile, scratch: Scratch) -> None:
        _tile(pieces, plan, operand, packed, tile, scratch)

    for_each(work, tiles(pieces.problem, plan), parallel=parallel, products=True)


def _tile(pieces: Pieces, plan: CpuPlan, operand: Array, packed: bool, tile: PhaseTile, scratch: Scratch) -> None:
    problem, form = pieces.problem, plan.form
    assert form is not None
    scale = pieces.real.c_out // problem.c_out_group
    first = rows_of(problem)[0]
    begin = (first + tile.outputs.start * form.outputs) * problem.stride - problem.p_left
    end = (first + tile.outputs.stop * form.outputs) * problem.stride - problem.p_left
    start, stop = max(begin, 0), min(end, problem.l_out)
    channels = slice(tile.channels.start * scale, tile.channels.stop * scale)
    if packed:
        weight = operand[:, tile.group, :, :, channels]
    else:
        weight = pack_tile(problem, form, operand, tile.group, channels, scratch)
    products = _products(pieces, form, weight, tile, scratch)
    groups = slice(tile.group, tile.group + 1)
    bias = None if pieces.bias is None else pieces.bias_of(groups, tile.channels)[:, 0]
    piece = pieces.result(scratch, tile.items, groups, tile.channels, start, stop)
    _combine(form, problem.stride, products, bias, piece[:, 0], begin - start, scratch)
    pieces.finish(piece, tile.items, groups, tile.channels, start, stop, biased=True)


def _products(pieces: Pieces, form: Form, weight: Array, tile: PhaseTile, scratch: Scratch) -> Array:
    """m (points, n, co, f, p) of a tile, whatever its order in memory, from v (points, section, ci, co, f)."""
    sections, c_in, c_out, phases = weight.shape[1:]
    stride = pieces.problem.stride
    items = pieces.real.planes * (tile.items.stop - tile.items.start)
    groups = tile.outputs.stop - tile.outputs.start + phases // stride - 1
    depth, width, columns = sections * c_in, c_out * phases, items * groups
    matrices = np.lib.stride_tricks.as_strided(
        weight, (form.points, depth, width), (weight.strides[0], weight.strides[2], weight.itemsize)
    )
    inner = stride >= PHASES_INNER_FROM
    out = scratch.get("products", (form.points, *((columns, width) if inner else (width, columns))), pieces.dtype)
    newest = rows_of(pieces.problem)[0] + (tile.outputs.stop - groups) * form.outputs
    for point, sums in enumerate(_input_sums(pieces, form, sections, tile, newest, groups, scratch)):
        right = sums.reshape(depth, columns)
        if inner:
            np.matmul(right.T, matrices[point], out=out[point])
        else:
            np.matmul(matrices[point].T, right, out=out[point])
    if inner:
        return out.reshape(form.points, items, groups, c_out, phases).transpose(0, 1, 3, 4, 2)
    return out.reshape(form.points, c_out, phases, items, groups).transpose(0, 3, 1, 2, 4)


def _input_sums(
    pieces: Pieces, form: Form, sections: int, tile: PhaseTile, newest: int, groups: int, scratch: Scratch
) -> Iterator[Array]:
    """d (section, ci, n, p) of a tile, point after point, in one place of memory; group 0 is that of u = newest."""
    problem, real, step = pieces.problem, pieces.real, form.outputs
    items = real.planes * (tile.items.stop - tile.items.start)
    channels = slice(tile.group * problem.c_in_group, (tile.group + 1) * problem.c_in_group)
    contents = tile.items.start, tile.group, newest, items, groups
    if form.points == 1:
        if sections == items == 1 and newest >= 0 and newest + groups <= problem.l_in:
            yield pieces.inputs(scratch, tile.items, channels, newest, newest + groups)
            return
        out = scratch.get("sums", (sections, real.c_in, items, groups), pieces.dtype)
        if not scratch.holds("sums", contents):
            for section in range(sections):
                pieces.fill_inputs(out[section].transpose(1, 0, 2), tile.items, channels, newest - section)
        yield out
        return
    reach = (sections - 1) * form.section + form.points
    planes = [
        scratch.get(f"plane {plane}", (real.c_in, items, groups + (reach - 1 - plane) // step), pieces.dtype)
        for plane in range(step)
    ]
    if not scratch.holds("planes", contents):
        _fill_planes(pieces, planes, tile.items, channels, newest - sections * form.section + 1, scratch)
    out = scratch.get("sums", (sections, real.c_in, items, groups), pieces.dtype)
    for operation, *places in _INPUT_SUMS[form.points]:
        for section in range(sections):
            offset = (sections - 1 - section) * form.section
            first, second = (
                planes[(offset + place) % step][:, :, (offset + place) // step :][:, :, :groups] for place in places
            )
            if operation is None:
                yield first
            else:
                operation(first, second, out=out[section])
        if operation is not None:
            yield out


def _fill_planes(
    pieces: Pieces, planes: list[Array], items: slice, channels: slice, oldest: int, scratch: Scratch
) -> None:
    """Fill planes (ci, n, p) with x[oldest + plane + p planes], zero outside the range of x."""
    step = len(planes)
    if not pieces.plain_x:
        c_in, planar, length = planes[0].shape
        slab = scratch.get("slab", (planar, c_in, length * step), pieces.dtype)
        pieces.fill_inputs(slab, items, channels, oldest)
        for index, plane in enumerate(planes):
            np.copyto(plane, slab[..., index::step].transpose(1, 0, 2)[..., : plane.shape[-1]])
        return
    for index, plane in enumerate(planes):
        start, length = oldest + index, plane.shape[-1]
        low = min(max(ceil_div(-start, step), 0), length)
        high = max(min(ceil_div(pieces.problem.l_in - start, step), length), low)
        plane[..., :low] = 0
        plane[..., high:] = 0
        if low < high:
            source = pieces.x[items, channels, start + low * step : start + (high - 1) * step + 1 : step]
            np.copyto(plane[..., low:high], source.transpose(1, 0, 2))


# ---- adding up ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _places(first: int, step: int, stride: int, length: int, groups: int) -> tuple[tuple[slice, slice, int], ...]:
    """Runs of phases f, the groups p whose sample first + f + p step exists, and the first such sample."""
    found: list[tuple[slice, slice, int]] = []
    for f in range(stride):
        low = max(ceil_div(-(first + f), step), 0)
        high = min(ceil_div(length - first - f, step), groups)
        if low >= high:
            continue
        if found and found[-1][1] == slice(low, high) and found[-1][0].stop == f:
            found[-1] = slice(found[-1][0].start, f + 1), found[-1][1], found[-1][2]
        else:
            found.append((slice(f, f + 1), slice(low, high), first + f + low * step))
    return tuple(found)


@lru_cache(maxsize=64)
def _sample_places(outputs: int, stride: int, length: int, begin: int, columns: int) -> Array:
    """Where in sums (i, f, column) the samples of a row are, the first of them sample -begin of column 0."""
    group, rest = np.divmod(np.arange(length) - begin, outputs * stride)
    return np.asarray(rest * columns + group)


def _combine(
    form: Form, stride: int, m: Array, bias: Array | None, target: Array, begin: int, scratch: Scratch
) -> None:
    """Add up m (points, n, co, f, p) into the samples of target (n, co, t); group 0 begins at sample `begin` of it.

    Where sections lie beside each other in f, the last of them has that group at p = 0, the first one at the end.
    """
    items, c_out, phases, columns = m.shape[1:]
    later = phases // stride - 1
    if form.points > 1 and columns - later <= SHORT_ROWS and m.strides[-1] == m.itemsize:
        flat = m.transpose(0, 2, 3, 1, 4).reshape(form.points, c_out, phases, items * columns)
        low = flat[:, :, :stride, later:]
        for section in range(1, later + 1):
            np.add(low, flat[:, :, section * stride : (section + 1) * stride, later - section : -section], out=low)
        shift = None if bias is None else bias.T[:, None]
        if bias is not None and len(bias) > 1:  # a plane's items have its bias
            shift = np.repeat(bias.T, items // len(bias) * columns, 1)[:, None, later:]
        # where the tile's weight may have been, which has been multiplied
        sums = scratch.get("weight", (c_out, form.outputs, stride, items * columns), m.dtype)
        _outputs(form, low, shift, lambda operation, a, b, i: operation(a, b, out=sums[:, i, :, later:]))
        samples = _sample_places(form.outputs, stride, target.shape[-1], begin, items * columns) + later
        places = samples + np.arange(0, items * columns, columns)[:, None]
        # two calls for all items, with the products' memory between them: short calls wait for the interpreter
        rows = scratch.get("products", (c_out, items, target.shape[-1]), m.dtype)
        np.take(sums.reshape(c_out, -1), places, axis=1, out=rows, mode="wrap")  # "raise" would want a buffer
        np.copyto(target, rows.transpose(1, 0, 2))
        return
    if bias is not None:  # (planes, co) for each item
        bias = np.broadcast_to(bias[:, None], (len(bias), items // len(bias), c_out)).reshape(items, c_out, 1, 1)
    first = m[:, :, :, :stride, later:]
    for section in range(1, later + 1):
        begins = later - section
        part = m[:, :, :, section * stride : (section + 1) * stride, begins : begins + first.shape[-1]]
        np.add(first, part, out=first)
    step = form.outputs * stride

    def store(operation: np.ufunc, a: Array, b: Array, i: int) -> None:
        for phases, there, sample in _places(begin + i * stride, step, stride, target.shape[-1], a.shape[-1]):
            shape = items, c_out, phases.stop - phases.start, there.stop - there.start
            n, c, t = target.strides
            home = np.lib.stride_tricks.as_strided(target[..., sample:], shape, (n, c, t, t * step))
            operation(a[:, :, phases, there], b[:, :, phases, there] if b.shape == a.shape else b, out=home)

    _outputs(form, first, bias, store)


def _outputs(form: Form, m: Array, bias: Array | None, store: Callable[[np.ufunc, Array, Array, int], None]) -> None:
    """Sums of m (points, ...), which are overwritten, and the bias: store(operation, a, b, i) for each output i."""
    if form.points == 1:
        store(np.add, m[0], np.zeros((1,) * (m.ndim - 1), m.dtype) if bias is None else bias, 0)
        return
    if bias is not None:
        np.add(m[1], bias, out=m[1])
    if form.points == 3:
        store(np.add, m[0], m[1], 0)
        store(np.add, m[1], m[2], 1)
        return
    low, even, odd, high = m
    if form.outputs == 3:
        store(np.subtract, even, odd, 1)
        np.add(even, odd, out=even)
        store(np.add, low, even, 0)
        store(np.add, even, high, 2)
    else:
        np.add(low, even, out=low)
        store(np.add, low, odd, 0)
        np.subtract(even, odd, out=even)
        store(np.add, even, high, 1)
