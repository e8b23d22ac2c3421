# SPDX-License-Identifier: MIT
"""A problem as rows of samples and real planes: what the plans and methods of the CPU engine are written in.

Row q of the result holds the s samples y[q s], ..., y[q s + s - 1]. Seen that way the operator has no padding and no
stride left; a sample is a short dot product of x around index q:

    y[q s + r] = bias + sum_{m < taps(r)} w[first_tap(r) + m tap_step] x[q + lead(r) - m input_step]

with tap_step = s/c, input_step = d/c, c = gcd(s, d).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cupy_convt.core.problem import ITEM_BYTES, Phase, Problem, ceil_div, is_complex, real_dtype


@dataclass(frozen=True)
class Run:
    """Consecutive residues of the result whose taps are consecutive too, and which read the same inputs.

    For k < count: y[q s + residue + k] = sum_{m < taps} w[first_tap + k + m tap_step] x[q + lead - m input_step].
    A run with taps = 0 is bias only.
    """

    residue: int
    count: int
    first_tap: int
    taps: int
    lead: int


@dataclass(frozen=True)
class RowGrid:
    """The result as rows of s samples; of the last row only the first `tail` samples exist.

    The rows q0 .. q1-1 read x[q0 - lookback : q1 + lookahead], zero outside its range. `lookback`, `lookahead` and
    `max_taps` count every residue, whether this result is long enough to have it or not, so that what is packed for
    one length serves any other.
    """

    rows: int
    tail: int
    tap_step: int
    input_step: int
    max_taps: int
    lookback: int
    lookahead: int
    runs: tuple[Run, ...]

    @property
    def span(self) -> int:
        """Inputs that a block of rows needs beside one for each row."""
        return self.lookback + self.lookahead

    @property
    def active(self) -> int:
        """Residues that receive taps."""
        return sum(run.count for run in self.runs if run.taps)


def _continues(last: Run, run: Run) -> bool:
    return last.lead == run.lead and last.first_tap + last.count == run.first_tap


def _row_grid(stride: int, phases: tuple[Phase, ...], steps: tuple[int, int], p_left: int, l_out: int) -> RowGrid:
    rows = ceil_div(l_out, stride)
    tail = l_out - (rows - 1) * stride
    single: dict[int, Run] = {}
    for phase in phases:
        residue = (phase.residue - p_left) % stride
        lead = (residue + p_left - phase.residue) // stride + phase.offset
        single[residue] = Run(residue, 1, phase.first_tap, phase.taps, lead)
    runs: list[Run] = []
    for residue in range(min(stride, l_out)):
        run = single.get(residue, Run(residue, 1, 0, 0, 0))
        last = runs[-1] if runs and residue != tail else None
        if last and last.taps == run.taps and (not run.taps or _continues(last, run)):
            runs[-1] = Run(last.residue, last.count + 1, last.first_tap, last.taps, last.lead)
        else:
            runs.append(run)
    lookback = max((run.taps - 1) * steps[1] - run.lead for run in single.values())
    lookahead = max(run.lead for run in single.values())
    max_taps = max(run.taps for run in single.values())
    return RowGrid(rows, tail, steps[0], steps[1], max_taps, lookback, lookahead, tuple(runs))


@lru_cache(maxsize=1024)
def row_grid(problem: Problem) -> RowGrid:
    """The rows of a problem."""
    phases = problem.phases
    steps = (phases.tap_step, phases.input_step)
    return _row_grid(problem.stride, phases.active, steps, problem.p_left, problem.l_out)


@dataclass(frozen=True)
class RealShape:
    """The sizes of a problem in real arithmetic: complex data are planes.

    A complex x with a real weight is twice the batch; a complex weight doubles the output channels, and the input
    channels too when x is complex. What is `converted` is not read or not summed where it lies.
    """

    planes: int
    c_in: int
    c_out: int
    item: int
    converted: bool

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(problem: Problem) -> RealShape:
        """The real sizes of a problem, channels counted within one group."""
        x, weight = is_complex(problem.x_dtype), is_complex(problem.weight_dtype)
        return RealShape(
            planes=2 if x and not weight else 1,
            c_in=problem.c_in_group * (2 if x and weight else 1),
            c_out=problem.c_out_group * (2 if weight else 1),
            item=ITEM_BYTES[real_dtype(problem.accumulator)],
            converted=problem.x_dtype != real_dtype(problem.accumulator)
            or problem.out_dtype != problem.accumulator
            or problem.beta != 0,
        )
