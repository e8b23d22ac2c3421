# SPDX-License-Identifier: MIT
"""Long taps: one forward transform for all phases, and inverse transforms that interleave what they write.

Every phase r is a plain convolution of x with its own taps h_r, so with X the transform of a window of x

    y[q s + r] = inverse(X H_r)[q]

The s products are inverted as one array (bins, s) along the bins' axis: the result (q, s) is the block of y in order,
interleaved by the transform's own stride; the zero-stuffed signal never exists. Windows are of x, or of the
taps where those are the longer ones, and overlap by as many samples as the circular convolution spoils
(core/transforms_cpu.py). Several input channels are added up bin by bin, as a product of matrices when there are many.

It wins from about a hundred taps a phase for one channel, from more for a dense layer. Its error is relative to the
loudest part of a window, not of a sample, and a NaN spreads over its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RowGrid, row_grid
from cupy_convt.core.tiles_fft_cpu import MATRIX_CHANNELS, filled
from cupy_convt.core.transforms_cpu import FftForm
from cupy_convt.engines.cpu_arrays import Pieces
from cupy_convt.engines.cpu_fft_pack import active_residues, pack_tile
from cupy_convt.engines.cpu_threads import Array, Scratch, cores, for_each
from cupy_convt.engines.cpu_transforms import complex_of, forward, inverse

#: Samples of a lone transform from which SciPy's own threads share it.
PARALLEL_SAMPLES = 1 << 18


@dataclass(frozen=True)
class FftTile:
    """Part of the result: items, groups, channels within each of them, rows; and the windows those rows come from."""

    items: slice
    groups: slice
    channels: slice
    rows: slice
    windows: slice


def tiles(problem: Problem, plan: CpuPlan, grid: RowGrid) -> Iterator[FftTile]:
    """Tiles whose rows are whole windows; channels fastest, so that the spectra of x serve them all."""
    form = plan.fft
    assert form is not None
    origin = form.first % plan.row_tile if form.kind == "taps" else 0
    cuts = sorted({0, grid.rows, *range(origin, grid.rows, plan.row_tile)})
    for n in range(0, problem.batch, plan.batch_tile):
        items = slice(n, min(n + plan.batch_tile, problem.batch))
        for g in range(0, problem.groups, plan.group_tile):
            groups = slice(g, min(g + plan.group_tile, problem.groups))
            for start, stop in pairwise(cuts):
                first = min(max((start - form.first) // form.hop, 0), form.windows)
                last = min(max(ceil_div(stop - form.first, form.hop), first), form.windows)
                for c in range(0, problem.c_out_group, plan.channel_tile):
                    channels = slice(c, min(c + plan.channel_tile, problem.c_out_group))
                    yield FftTile(items, groups, channels, slice(start, stop), slice(first, last))


def run(pieces: Pieces, plan: CpuPlan, operand: Array, *, packed: bool, parallel: bool) -> None:
    """Compute every tile with the spectra that `pack` made or, not `packed`, with its own of the weight."""
    form = plan.fft
    assert form is not None
    call = _Call(pieces, form, operand, packed)
    parts = list(tiles(pieces.problem, plan, call.grid))
    lone = len(parts) == 1 and form.length * len(call.residues) >= PARALLEL_SAMPLES
    call.workers = cores() if lone and parallel else 1
    for_each(call.tile, parts, parallel=parallel and len(parts) > 1, products=call.many)


class _Call:
    """One call: what its tiles share."""

    def __init__(self, pieces: Pieces, form: FftForm, operand: Array, packed: bool) -> None:
        self.pieces, self.form, self.packed = pieces, form, packed
        shape = pieces.problem.groups, pieces.real.c_in, pieces.real.c_out, pieces.problem.kernel_size
        self.operand = operand if packed else operand.reshape(shape)
        self.grid = row_grid(pieces.problem)
        self.residues = [residue for residue, *_ in active_residues(pieces.problem)]
        self.many = pieces.real.c_in >= MATRIX_CHANNELS
        self.workers = 1
        #: spectra of x that a thread's last tile has made, and of which part of x
        self.kept: dict[int, tuple[object, Array]] = {}

    def tile(self, tile: FftTile, scratch: Scratch) -> None:
        """Compute one tile."""
        pieces, problem, form = self.pieces, self.pieces.problem, self.form
        start, stop = tile.rows.start * problem.stride, min(tile.rows.stop * problem.stride, problem.l_out)
        piece = pieces.result(scratch, tile.items, tile.groups, tile.channels, start, stop)
        if tile.windows.start == tile.windows.stop:
            piece[...] = 0
            pieces.finish(piece, tile.items, tile.groups, tile.channels, start, stop)
            return
        scale = pieces.real.c_out // problem.c_out_group
        channels = slice(tile.channels.start * scale, tile.channels.stop * scale)
        taps = tile.windows if form.kind == "taps" else slice(0, 1)
        inputs = self._inputs(tile, scratch)
        if self.many:
            items = pieces.real.planes * (tile.items.stop - tile.items.start)
            rows = self._many_channels(inputs, self.operand[tile.groups, :, :, taps, channels], items, scratch)
        else:
            filters = self.operand[tile.groups, :, channels]
            spectra = filters[:, :, :, taps] if self.packed else pack_tile(problem, form, filters, taps, scratch)
            rows = self._few_channels(tile, inputs, spectra, scratch)
        first = form.first + tile.windows.start * form.hop - tile.rows.start
        biased = self._store(piece, rows[:, :, :, :, form.drop : form.drop + form.hop], first, tile)
        self._clear_beyond(piece, tile, start, biased)
        pieces.finish(piece, tile.items, tile.groups, tile.channels, start, stop, biased=biased)

    def _inputs(self, tile: FftTile, scratch: Scratch) -> Array:
        """Spectra of the tile's part of x: (n, g, ci, windows, bins), or (g, bins, n windows, ci) for many channels."""
        key = tile.items.start, tile.groups.start, tile.windows.start if self.form.kind == "blocks" else 0
        last = self.kept.get(id(scratch))
        if last is not None and last[0] == key:
            return last[1]
        self.kept.pop(id(scratch), None)
        transformed = self._forward(tile, scratch)
        if self.many:
            items, groups, c_in, windows, bins = transformed.shape
            turned = scratch.get("turned", (groups, bins, items, windows, c_in), transformed.dtype)
            np.copyto(turned, transformed.transpose(1, 4, 0, 3, 2))
            transformed = turned.reshape(groups, bins, items * windows, c_in)
        self.kept[id(scratch)] = key, transformed
        return transformed

    def _forward(self, tile: FftTile, scratch: Scratch) -> Array:
        pieces, form, real = self.pieces, self.form, self.pieces.real
        per_group = pieces.problem.c_in_group
        channels = slice(tile.groups.start * per_group, tile.groups.stop * per_group)
        items, groups = real.planes * (tile.items.stop - tile.items.start), tile.groups.stop - tile.groups.start
        windows, start, stop = 1, form.x_start, form.x_stop
        if form.kind == "blocks":
            windows = tile.windows.stop - tile.windows.start
            windows = filled(form, windows, real.item, items * groups * real.c_in == 1)
            start = tile.rows.start - self.grid.lookback
            stop = start + (windows - 1) * form.hop + form.length
        shape = items, groups, real.c_in, windows, form.length
        view = self._windows(tile.items, channels, start, stop, shape, scratch)
        spectra = scratch.get("spectra", (*shape[:-1], form.bins), complex_of(pieces.dtype))
        return forward(view, form, -1, spectra, self.workers)

    def _windows(
        self, items: slice, channels: slice, start: int, stop: int, shape: tuple[int, ...], scratch: Scratch
    ) -> Array:
        """Windows (n, g, ci, windows, samples) of x: views of x where it holds them all, else of a copy."""
        pieces, hop = self.pieces, self.form.hop
        samples = (shape[-2] - 1) * hop + shape[-1]
        offset, x = 0, pieces.x
        if pieces.plain_x and x.flags.c_contiguous and start >= 0 and start + samples <= min(stop, x.shape[-1]):
            n, c, i = x.strides
            offset = items.start * n + channels.start * c + start * i
        else:
            x = scratch.get("slab", (shape[0], shape[1] * shape[2], samples), pieces.dtype)
            pieces.fill_inputs(x[..., : stop - start], items, channels, start)
            x[..., stop - start :] = 0
            n, c, i = x.strides
        strides = n, c * shape[2], c, i * hop, i
        return np.ndarray(shape, x.dtype, x.data, offset, strides)

    def _few_channels(self, tile: FftTile, inputs: Array, spectra: Array, scratch: Scratch) -> Array:
        """Rows (n, g, co, windows, q, phases) of spectra (g, ci, co, windows, phases, bins)."""
        items = inputs.shape[0]
        groups, c_in, c_out, _, phases, bins = spectra.shape
        windows, alone = max(tile.windows.stop - tile.windows.start, 1), items * groups * c_out * phases == 1
        transforms = filled(self.form, windows, self.pieces.real.item, alone)
        shape = (items, groups, c_out, transforms, phases, bins)
        sums = scratch.get("sums", shape, spectra.dtype)
        total = sums[:, :, :, :windows]
        sums[:, :, :, windows:] = 0
        # each of them one window or all
        by_channel = inputs[:, :, :, None, :windows, None]
        np.multiply(by_channel[:, :, 0], spectra[:, 0], out=total)
        for ci in range(1, c_in):
            product = scratch.get("product", total.shape, spectra.dtype)
            np.multiply(by_channel[:, :, ci], spectra[:, ci], out=product)
            total += product
        rows = scratch.get("rows", (*shape[:-2], self.form.length, phases), self.pieces.dtype)
        return inverse(sums.swapaxes(-1, -2), self.form, -2, rows, self.workers)[:, :, :, :windows]

    def _many_channels(self, inputs: Array, spectra: Array, items: int, scratch: Scratch) -> Array:
        """The same from spectra (g, bins, ci, windows, co, phases): a product of matrices in every bin."""
        groups, bins, c_in, taps, c_out, phases = spectra.shape
        columns = inputs.shape[2]
        total = scratch.get("sums", (groups, bins, columns, taps * c_out * phases), spectra.dtype)
        if spectra.strides[3] == c_out * spectra.strides[4] or taps == 1:
            np.matmul(inputs, spectra.reshape(groups, bins, c_in, -1), out=total)
        else:  # windows times a part of the channels: not one matrix
            by_window = total.reshape(groups, bins, columns, taps, c_out * phases)
            for index in range(taps):
                np.matmul(
                    inputs, spectra[:, :, :, index].reshape(groups, bins, c_in, -1), out=by_window[:, :, :, index]
                )
        rows = scratch.get("rows", (groups, self.form.length, *total.shape[2:]), self.pieces.dtype)
        inverse(total, self.form, -3, rows, self.workers)
        shape = groups, self.form.length, items, columns * taps // items, c_out, phases
        return rows.reshape(shape).transpose(2, 0, 4, 3, 1, 5)

    def _store(self, piece: Array, rows: Array, first: int, tile: FftTile) -> bool:
        """Put rows (n, g, co, windows, q, phases), the first of them row `first` of a tile (n, g, co, t), into it.

        Returns whether the bias has been added on the way.
        """
        stride, hop, windows = self.pieces.problem.stride, rows.shape[4], rows.shape[3]
        wanted = tile.rows.stop - tile.rows.start
        complete = len(self.residues) == stride and first <= 0 and first + windows * hop >= wanted
        bias = self.pieces.bias
        if not complete:
            piece[...] = 0
            bias = None
        elif bias is not None:
            bias = self._bias(piece, tile)[..., None, None]
        whole = range(0)
        if len(self.residues) == stride and first >= 0:
            whole = range(min(piece.shape[-1] // stride - first, windows * hop) // hop)
            home = piece[..., first * stride : (first + len(whole) * hop) * stride]
            _put(rows[:, :, :, : len(whole)], bias, home.reshape(*piece.shape[:3], len(whole), hop, stride))
        for window in range(len(whole), windows):
            begin = first + window * hop
            skip = max(-begin, 0)
            count = min(hop - skip, wanted - begin - skip)
            if count > 0:
                part = piece[..., (begin + skip) * stride : (begin + skip + count) * stride]
                self._store_window(part, rows[:, :, :, window, skip : skip + count], bias)
        return bias is not None

    def _clear_beyond(self, piece: Array, tile: FftTile, start: int, biased: bool) -> None:
        """Make the samples before and behind the response exact: they are zero, or the bias where it has been added."""
        problem = self.pieces.problem
        before, behind = -problem.p_left - start, problem.l_full - problem.p_left - start
        for part in (piece[..., : max(before, 0)], piece[..., max(behind, 0) :]):
            if part.size:
                part[...] = self._bias(part, tile) if biased else 0

    def _bias(self, piece: Array, tile: FftTile) -> Array:
        """The bias of a tile's samples (n, g, co, 1)."""
        bias = self.pieces.bias_of(tile.groups, tile.channels)
        repeated: Array = np.repeat(bias, piece.shape[0] // bias.shape[0], axis=0)[..., None]
        return repeated

    def _store_window(self, part: Array, rows: Array, bias: Array | None) -> None:
        """Put rows (n, g, co, q, phases) into samples (n, g, co, t), of which the last row may be cut short."""
        stride = self.pieces.problem.stride
        by_row = None if bias is None else bias[..., 0]
        if len(self.residues) < stride:
            for index, residue in enumerate(self.residues):
                home = part[..., residue::stride]
                np.copyto(home, rows[:, :, :, : home.shape[-1], index])
            return
        whole, left = divmod(part.shape[-1], stride)
        home = part[..., : whole * stride].reshape(*part.shape[:3], whole, stride)
        _put(rows[:, :, :, :whole], by_row, home)
        if left:
            _put(rows[:, :, :, whole : whole + 1, :left], by_row, part[..., None, whole * stride :])


def _put(rows: Array, bias: Array | None, home: Array) -> None:
    if bias is None:
        np.copyto(home, rows)
    else:
        np.add(rows, bias, out=home)
