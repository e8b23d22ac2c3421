# SPDX-License-Identifier: MIT
"""How the CPU engine cuts a problem into circular convolutions: how long they are, of what, and what is kept of them.

In the rows of rows_cpu.py every phase is a filter h of `span` + 1 taps on x itself, delayed so that all phases share
one grid: row q is sample v = q + lookahead of the convolution of x with h. Three forms compute it with transforms of M
points:

    blocks  windows of x, one every M - span samples, times the spectra of the whole filter: x much longer than h
    whole   all the inputs that matter times the whole filter, in one transform: lengths of one kind
    taps    all the inputs that matter times windows of the filter, one every M - (inputs - 1) taps: x much shorter

Spectra of weights depend on the form's `packing` only. It holds no length of x but its size class, of which there are
seven in an octave, so a prepared operator that meets new lengths packs a handful of times in all.

A transform of a single signal cannot use the vector registers, which hold four of them, and a long one leaves the
cache. `split` = A makes it two steps over A rows of B = M/A samples: A-point transforms down the columns, a twiddle
factor on every element, B-point transforms along the rows. Spectra then stand in the order that this leaves, which a
product does not mind, and the inverse undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

from cupy_convt.core.lengths import SHORTEST, length_class
from cupy_convt.core.problem import Problem, ceil_div
from cupy_convt.core.rows_cpu import RealShape, RowGrid

#: Shortest transform that two steps are worth their calls for, and longest one left in one step.
SPLIT_FROM, ONE_STEP = 8192, 1 << 16
#: Longest transform in two steps: its twiddle factors are a table of half as many complex numbers.
LONGEST_SPLIT = 1 << 22
#: Points of the filters that are transformed together.
PACKED_POINTS = 1 << 16
#: Bytes of a vector register, as SciPy's wheels use it.
VECTOR_BYTES = 16


@dataclass(frozen=True)
class FftForm:
    """Windows and what is kept of them: samples [drop, drop + hop) of window k are rows from first + k*hop on.

    Windows are of x, from row 0 on, in the form "blocks", else of the filter; then x[x_start:x_stop] is the other
    factor. `room` is how many inputs a window of the filter leaves place for. Rows before the first and behind the last
    window are zero.
    """

    kind: str
    length: int
    split: int
    first: int
    drop: int
    hop: int
    windows: int
    tap_windows: int = 1
    x_start: int = 0
    x_stop: int = 0
    room: int = 0

    @property
    def bins(self) -> int:
        """Complex numbers of a spectrum."""
        return (self.split // 2 + 1) * (self.length // self.split) if self.split else self.length // 2 + 1

    def __str__(self) -> str:
        of = {"blocks": "windows of x", "whole": "window of x", "taps": "windows of the taps"}[self.kind]
        steps = f", in two steps of {self.split} and {self.length // self.split}" if self.split else ""
        return f"{self.windows} {of}, {self.length} samples each{steps}; {self.hop} rows of each are kept"

    @property
    def filter_samples(self) -> int:
        """Samples of a filter with the zeros around it, of which the windows are parts."""
        return self.hop * (self.tap_windows - 1) + self.length if self.room else self.length

    def filters_at_once(self, phases: int, item: int) -> int:
        """Filters that packing transforms together: they share their twiddles and fill the vector registers."""
        lanes = 1 if self.split else ceil_div(VECTOR_BYTES // item, phases * self.tap_windows)
        return ceil_div(max(PACKED_POINTS // (self.filter_samples * phases), 1), lanes) * lanes

    @property
    def packing(self) -> tuple[object, ...]:
        """What spectra of the filter depend on beside the filter."""
        return self.length, self.split, self.room


@lru_cache(maxsize=4096)
def split_of(length: int) -> int:
    """The even divisor of a length that is nearest to its square root from below."""
    return next(rows for rows in range(isqrt(length), 0, -1) if length % rows == 0 and rows % 2 == 0)


def _split(length: int, lanes: int, item: int) -> int:
    """Rows of two steps, or 0 for one: several short transforms at a time fill the registers by themselves."""
    if SPLIT_FROM <= length <= LONGEST_SPLIT and (lanes < VECTOR_BYTES // item or length * item > 4 * ONE_STEP):
        return split_of(length)
    return 0


def fft_forms(problem: Problem, real: RealShape, grid: RowGrid) -> list[FftForm]:
    """The forms that may be the fastest for a problem."""
    span, item = grid.span, real.item
    start, stop = max(0, -grid.lookback), min(problem.l_in, grid.rows + grid.lookahead)
    inputs = max(stop - start, 0)
    if not inputs:
        return [FftForm("whole", length_class(span + 1), 0, 0, 0, 1, 0)]
    lanes = problem.groups * real.c_out * len(problem.phases.active)
    # samples of the convolution of these inputs with the filter that are rows of the result
    low = max(grid.lookahead - start, 0)
    high = min(grid.lookahead - start + grid.rows, inputs + span)
    if low >= high:
        return [FftForm("whole", length_class(span + 1), 0, 0, 0, 1, 0)]
    # a sample below `low` may be wrapped around to, as nobody keeps it
    whole = length_class(max(inputs + span - low, high, inputs, span + 1))
    first = start + low - grid.lookahead
    window = dict(x_start=start, x_stop=stop)
    found = [FftForm("whole", whole, _split(whole, lanes, item), first, low, high - low, 1, **window)]
    for factor in (1, 2, 4, 8, 16):
        length = max(1 << (2 * span + 1).bit_length(), SHORTEST) * factor
        hop = length - span
        if length < whole and hop < grid.rows:
            split = _split(length, max(lanes, 4), item)
            found.append(FftForm("blocks", length, split, 0, span, hop, ceil_div(grid.rows, hop)))
    room = length_class(inputs)
    for factor in (2, 4, 8, 16):
        length = (1 << (room - 1).bit_length()) * factor
        hop = length - room + 1
        if room < span and hop < inputs + span:
            split = _split(length, 4, item)
            count, of_taps = ceil_div(high, hop), ceil_div(room + span, hop)
            origin = start - grid.lookahead
            found.append(FftForm("taps", length, split, origin, room - 1, hop, count, of_taps, room=room, **window))
    return found
