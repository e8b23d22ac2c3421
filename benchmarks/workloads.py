# SPDX-License-Identifier: MIT
"""The rows: 81 transposed convolutions read from published models and from issue threads (layers.json).

Some rows are far too large for the rivals on a CPU (minutes, or more memory than there is). They are shortened for
everybody, first in batch, then in length, then in channels (depthwise rows in channels before length), until they keep
the bounds below, which are five times tighter for long filters of one channel, where a multiply-accumulate takes
PyTorch a nanosecond. Such a row says so and keeps its taps, stride and kind of grouping.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cupy_convt.core.problem import Problem

LAYERS = Path(__file__).with_name("layers.json")
#: Bounds of a row: multiply-accumulates, bytes of x, weight and result, and bytes of the matrix (C_out/g K, L_in) that
#: PyTorch makes for every item and group.
MAX_MACS = 2 * 10**10
MAX_BYTES = 1 << 30
MAX_COLUMN_BYTES = 4 << 30


@dataclass(frozen=True)
class Workload:
    """One row, with torch's names for its geometry. `scaled` says what was shortened, or is empty."""

    name: str
    category: str
    n: int
    c_in: int
    l_in: int
    c_out: int
    k: int
    stride: int
    padding: int
    output_padding: int
    groups: int
    dilation: int
    dtype: str
    scaled: str = ""

    def problem(self, dtype: str | None = None) -> Problem:
        """The row as a Problem, with a bias."""
        return Problem(
            self.n,
            self.c_in,
            self.l_in,
            self.c_out,
            self.k,
            self.stride,
            self.dilation,
            self.groups,
            self.padding,
            self.padding - self.output_padding,
            dtype or self.dtype,
            dtype or self.dtype,
            has_bias=True,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Geometry as keyword arguments of conv_transpose1d, ours and torch's."""
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        return {name: getattr(self, name) for name in names}

    @property
    def is_mono(self) -> bool:
        """One channel in, one out: the rows that scipy.signal.upfirdn can do."""
        return self.c_in == self.c_out == 1 and self.dilation == 1

    @property
    def is_depthwise(self) -> bool:
        """One channel a group."""
        return self.groups == self.c_in == self.c_out and self.groups > 1

    @property
    def is_long(self) -> bool:
        """Hundreds of taps a phase."""
        return self.category.startswith("longfir")

    @property
    def kind(self) -> str:
        """The class of rows a target is stated for."""
        if self.is_long:
            return "long taps"
        if self.is_mono:
            return "one channel"
        return "depthwise" if self.is_depthwise else "dense"


def _over(workload: Workload) -> float:
    """How far the row exceeds its bounds; 1 or less when it does not."""
    problem = workload.problem()
    columns = 4 * problem.c_out_group * problem.kernel_size * problem.l_in
    macs = problem.macs * (5 if workload.is_long and problem.c_in_group == 1 else 1)
    return max(macs / MAX_MACS, problem.bytes / MAX_BYTES, columns / MAX_COLUMN_BYTES)


def shorten(workload: Workload) -> Workload:
    """The row within its bounds."""
    changes = []
    # channels that are independent of each other go before the length, which is what a filter's cost depends on
    for name in ("n", "c_in", "l_in") if workload.is_depthwise else ("n", "l_in", "c_in"):
        over = _over(workload)
        if over <= 1:
            break
        before = getattr(workload, name)
        least = min(before, max(512, workload.k // 64)) if name == "l_in" else 1
        after = max(int(before / over), least)
        if name == "c_in":
            if workload.groups == 1:
                after = max(int(before / over**0.5), 1)
                workload = replace(workload, c_in=after, c_out=max(int(workload.c_out / over**0.5), 1))
            else:
                ratio = workload.c_out // workload.groups, before // workload.groups
                workload = replace(workload, c_in=after * ratio[1], c_out=after * ratio[0], groups=after)
        else:
            changed: dict[str, Any] = {name: after}
            workload = replace(workload, **changed)
        if after != before:
            changes.append(f"{name} {before} -> {after}")
    return replace(workload, scaled=", ".join(changes))


def load(pattern: str = "*", *, full: bool = False) -> Iterator[Workload]:
    """Rows whose names match one of the patterns, with commas between them; shortened unless `full`."""
    fields = Workload.__dataclass_fields__
    for row in json.loads(LAYERS.read_text()):
        workload = Workload(**{key: value for key, value in row.items() if key in fields})
        if any(fnmatch.fnmatch(workload.name, part) for part in pattern.split(",")):
            yield workload if full else shorten(workload)
