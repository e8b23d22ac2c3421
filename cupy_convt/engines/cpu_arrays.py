# SPDX-License-Identifier: MIT
"""The arrays of one call as real arrays in the accumulator's dtype, piece by piece.

The methods know real float32 or float64 arrays only. Here complex data become planes (see RealShape), halves become
float32, and results go back: piece by piece, in the cache, and not at all where the caller's own memory will do.

Axes of a piece: inputs (n, c, i), results (n, g, c, t), n counting planes of a complex x with a real weight, c counting
planes otherwise: real and imaginary part side by side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cupy_convt.core.problem import Problem, is_complex, real_dtype
from cupy_convt.core.rows_cpu import RealShape, Run
from cupy_convt.engines.cpu_threads import Array, Scratch

#: Elements of the longest run that is copied as one item.
LONGEST_ITEM = 128
#: Samples of rows, and of an item (a quarter of the second-level cache), for which a bias is written out before it is
#: added to the items of a batch.
SPREAD_ROW, SPREAD_ITEM = 512, 1 << 16


def convert(source: Array, out: Array) -> None:
    """Copy between real dtypes, rounding to nearest even; bfloat16 by ml_dtypes, which every such array comes from."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.copyto(out, source, casting="unsafe")


@lru_cache(maxsize=64)
def _void(nbytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, nbytes))


def copy_runs(source: Array, home: Array) -> None:
    """Copy runs along the last axis, contiguous in both, each as one item: many times faster where runs are short."""
    run, item = source.shape[-1], source.itemsize
    if source.strides[-1] == home.strides[-1] == item and 1 < run <= LONGEST_ITEM:
        whole = _void(run * item)
        np.copyto(home.view(whole), source.view(whole))
    else:
        np.copyto(home, source)


@lru_cache(maxsize=1024)
def _traits(problem: Problem) -> tuple[RealShape, np.dtype[Any], bool, bool]:
    dtype = np.dtype(real_dtype(problem.accumulator))
    return RealShape.of(problem), dtype, is_complex(problem.x_dtype), is_complex(problem.weight_dtype)


#: An array that is contiguous, a byte of it, and the distances to what is found there along some axes.
Placed = tuple[Array, int, tuple[int, ...]]


def copy_runs_between(runs: tuple[tuple[int, ...], int], source: Placed, home: Placed) -> None:
    """As copy_runs, for runs of one length, (shape, length), at places of two contiguous arrays: with fewer views."""
    (shape, length), dtype = runs, source[0].dtype
    if 1 < length <= LONGEST_ITEM:
        dtype = _void(length * dtype.itemsize)
    else:
        shape = *shape, length
        source, home = ((array, byte, (*strides, array.itemsize)) for array, byte, strides in (source, home))
    (array, byte, strides), (there, at, steps) = source, home
    np.copyto(np.ndarray(shape, dtype, there, at, steps), np.ndarray(shape, dtype, array, byte, strides))


def real_weight(problem: Problem, weight: Array) -> Array:
    """The weight (C_in, C_out/g, K) as a real array (C_in', C_out'/g, K), itself where it is one already."""
    _, real, _, complex_weight = _traits(problem)
    if not complex_weight:
        if weight.dtype == real:
            return weight
        out = np.empty(weight.shape, real)
        convert(weight, out)
        return out
    c_in, c_out, taps = weight.shape
    planes = 2 if is_complex(problem.x_dtype) else 1
    out = np.empty((c_in, planes, c_out, 2, taps), real)
    out[:, 0, :, 0], out[:, 0, :, 1] = weight.real, weight.imag
    if planes == 2:
        np.negative(weight.imag, out=out[:, 1, :, 0])
        out[:, 1, :, 1] = weight.real
    return out.reshape(c_in * planes, c_out * 2, taps)


class Pieces:
    """Inputs and results of one call, handed out as real pieces."""

    def __init__(self, problem: Problem, x: Array, bias: Array | None, out: Array) -> None:
        self.problem = problem
        self.real, self.dtype, self.complex_x, self.complex_weight = _traits(problem)
        self.x, self.out = x, out.reshape(problem.out_shape)
        self.plain_x = x.dtype == self.dtype
        self.plain_out = out.dtype == self.dtype and not problem.beta
        self.bias = None if bias is None else self._real_bias(bias)

    def _real_bias(self, bias: Array) -> Array:
        """The bias (planes of n, g, c); adding zero turns a negative zero into the positive one sums start from."""
        grouped = bias.reshape(1, self.problem.groups, -1)
        planes: Array
        if grouped.dtype == self.dtype:
            planes = grouped + self.dtype.type(0)
            return planes
        if self.real.planes == 2:
            planes = np.concatenate([grouped.real, grouped.imag])
        elif self.complex_weight:
            planes = np.stack([grouped.real, grouped.imag], axis=-1).reshape(1, self.problem.groups, -1)
        else:
            planes = np.empty(grouped.shape, self.dtype)
            convert(grouped, planes)
        planes += self.dtype.type(0)
        return planes

    def fill_inputs(self, dest: Array, items: slice, channels: slice, start: int) -> None:
        """Fill dest (n, c, i) with x[items, channels, start : start + its length], zero outside the range of x."""
        length = dest.shape[-1]
        first, stop = max(start, 0), min(start + length, self.problem.l_in)
        stop = max(first, stop)
        head, tail = min(first - start, length), max(length - (stop - start), 0) if stop > first else 0
        if stop == first:
            dest[...] = 0
            return
        if head:
            dest[..., :head] = 0
        if tail:
            dest[..., length - tail :] = 0
        inner = dest[..., head : length - tail]
        source = self.x[items, channels, first:stop]
        if self.plain_x:
            np.copyto(inner, source)
        elif not self.complex_x:
            convert(source, inner)
        elif self.complex_weight:
            inner[:, 0::2], inner[:, 1::2] = source.real, source.imag
        else:
            count = source.shape[0]
            inner[:count], inner[count:] = source.real, source.imag

    def inputs(self, scratch: Scratch, items: slice, channels: slice, start: int, stop: int) -> Array:
        """x[items, channels, start:stop] as (n, c, i), zero outside the range of x: a view if x is real and has it."""
        if self.plain_x and 0 <= start <= stop <= self.problem.l_in:
            return self.x[items, channels, start:stop]
        shape = (
            self.real.planes * (items.stop - items.start),
            (channels.stop - channels.start) * (2 if self.complex_x and self.complex_weight else 1),
            max(stop - start, 0),
        )
        dest = scratch.get("inputs", shape, self.dtype)
        if not scratch.holds("inputs", (items.start, channels.start, start, shape)):
            self.fill_inputs(dest, items, channels, start)
        return dest

    def result(self, scratch: Scratch, items: slice, groups: slice, channels: slice, start: int, stop: int) -> Array:
        """Where to put the results of a tile: the caller's own memory, or a buffer that `finish` copies there."""
        if self.plain_out:
            return self._grouped(items)[:, groups, channels, start:stop]
        shape = (
            self.real.planes * (items.stop - items.start),
            groups.stop - groups.start,
            (channels.stop - channels.start) * (2 if self.complex_weight else 1),
            stop - start,
        )
        return scratch.get("result", shape, self.dtype)

    def _grouped(self, items: slice) -> Array:
        part = self.out[items]
        return part.reshape(part.shape[0], self.problem.groups, self.problem.c_out_group, self.problem.l_out)

    def finish(
        self, piece: Array, items: slice, groups: slice, channels: slice, start: int, stop: int, *, biased: bool = False
    ) -> None:
        """Bias (unless the method has added it), activation, what was there before, rounding, and the way home."""
        if self.bias is not None and not biased:
            self._add_bias(piece, groups, channels)
        if self.problem.activation is not None:
            apply_activation(piece, *self.problem.activation)
        if self.plain_out:
            return
        home = self._grouped(items)[:, groups, channels, start:stop]
        for part, place in self._parts(piece, home):
            if self.problem.beta:
                part += np.multiply(place, self.dtype.type(self.problem.beta), dtype=self.dtype)
            convert(part, place)

    def _parts(self, piece: Array, home: Array) -> list[tuple[Array, Array]]:
        """The real arrays of a piece, each with its place in the result."""
        if not self.complex_x and not self.complex_weight:
            return [(piece, home)]
        if self.complex_weight:
            return [(piece[:, :, 0::2], home.real), (piece[:, :, 1::2], home.imag)]
        count = home.shape[0]
        return [(piece[:count], home.real), (piece[count:], home.imag)]

    def _add_bias(self, piece: Array, groups: slice, channels: slice) -> None:
        by_plane = piece.reshape(self.real.planes, -1, *piece.shape[1:]) if self.real.planes > 1 else piece[None]
        bias = self.bias_of(groups, channels)[:, None, :, :, None]
        item, short = piece[0], piece.shape[-1] <= SPREAD_ROW
        if short and by_plane.shape[1] > 1 and item.size <= SPREAD_ITEM and item.flags.c_contiguous:
            spread = np.empty((by_plane.shape[0], 1, *by_plane.shape[2:]), piece.dtype)
            spread[...] = bias  # one loop an item instead of one a row
            bias = spread
        by_plane += bias

    def bias_of(self, groups: slice, channels: slice) -> Array:
        """The bias of a tile (planes of n, g, c)."""
        assert self.bias is not None
        scale = 2 if self.complex_weight else 1
        return self.bias[:, groups, channels.start * scale : channels.stop * scale]


def apply_activation(piece: Array, name: str, slope: float) -> None:
    """Apply an activation in place."""
    if name == "relu":
        np.maximum(piece, piece.dtype.type(0), out=piece)
    elif name == "leaky_relu":
        np.multiply(piece, piece.dtype.type(slope), out=piece, where=piece < 0)
    elif name == "tanh":
        np.tanh(piece, out=piece)
    else:
        raise ValueError(f"activation: expected 'relu', 'leaky_relu' or 'tanh', got {name!r}")


def residues_of(samples: Array, run: Run, stride: int) -> Array:
    """The samples of a run of residues within whole rows: (..., t) seen as (..., count, rows), never a copy."""
    length = samples.shape[-1]
    rows = max(-(-(length - run.residue) // stride), 0)
    if run.count == 1:
        return samples[..., None, run.residue :: stride]
    if rows * stride == length:
        return samples.reshape(*samples.shape[:-1], rows, stride)[..., run.residue : run.residue + run.count].swapaxes(
            -1, -2
        )
    view: Array = np.lib.stride_tricks.as_strided(
        samples[..., run.residue :],
        (*samples.shape[:-1], run.count, rows),
        (*samples.strides[:-1], samples.strides[-1], samples.strides[-1] * stride),
    )
    return view
