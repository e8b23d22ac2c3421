# SPDX-License-Identifier: MIT
"""A choice as a printable object."""

from __future__ import annotations

import textwrap
from typing import Any

from cupy_convt.core.accuracy import SUMS, ErrorBound, error_bound
from cupy_convt.core.cost import floor_seconds
from cupy_convt.core.dispatch import Candidate, Choice
from cupy_convt.core.launch import Fft, Launch, Plan
from cupy_convt.core.work import roofline_seconds, work


def format_seconds(value: float) -> str:
    """Seconds with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def format_bytes(value: int) -> str:
    """Bytes with a binary unit."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} GiB"


#: Columns of the printed table, and how wide it may be.
_HEAD = (" ", "method", "predicted", "roof", "flop", "bytes", "workspace", "error", "why")
_WIDTH = 120


class Explanation:
    """What was chosen for a problem and why; `print` it.

    Every row of the table is one plan: its predicted time; "roof", the share of the device's full rates that its own
    operations and bytes then take; what it allocates; the bound of its rounding errors (core/accuracy.py); and why it
    was not taken. Times are predictions of the cost model for `device`, not measurements.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice

    @property
    def method(self) -> str:
        """One of "direct", "gemm" and "fft"."""
        return self._choice.method

    @property
    def variant(self) -> str:
        """Which form of the method."""
        return self._choice.plan.variant

    @property
    def seconds(self) -> float:
        """Predicted time of a call, in seconds."""
        return self._choice.seconds

    @property
    def workspace_bytes(self) -> int:
        """Bytes allocated beside the arrays of the call."""
        return self._choice.plan.workspace_bytes

    @property
    def error_bound(self) -> ErrorBound:
        """How far rounding can take the result from the exact one."""
        return error_bound(self._choice.problem, self._choice.plan)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(N, C_out, L_out)."""
        return self._choice.problem.out_shape

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every method and variant, fastest first, those that cannot take the problem last."""
        return self._choice.ranking

    @property
    def reason(self) -> str:
        """One sentence: what runs and why."""
        choice = self._choice
        text = f"{choice.plan.name}: predicted {format_seconds(choice.seconds)} on {choice.device.name}"
        if choice.requested != "auto":
            return f"{text}; method={choice.requested!r} was asked for"
        others = [row for row in choice.ranking if row.method != choice.method and row.seconds is not None]
        if not others:
            return f"{text}; no other method takes this problem"
        rival = others[0]
        assert rival.seconds is not None
        return f"{text}, {rival.seconds / choice.seconds:.2g}x faster than {rival.name}"

    def as_dict(self) -> dict[str, Any]:
        """The same for programs: plain numbers and strings under names that stay, ready for JSON."""
        choice = self._choice
        problem = choice.problem
        names = ("stride", "dilation", "groups", "p_left", "p_right", "x_dtype", "weight_dtype", "precision", "beta")
        return {
            "problem": {
                "x_shape": problem.x_shape,
                "weight_shape": problem.weight_shape,
                "out_shape": problem.out_shape,
                **{name: getattr(problem, name) for name in names},
            },
            "device": choice.device.name,
            "requested": choice.requested,
            "method": self.method,
            "variant": self.variant,
            "seconds": self.seconds,
            "floor_seconds": floor_seconds(problem, choice.device),
            "bytes": problem.bytes,
            "flops": problem.flops,
            "workspace_bytes": self.workspace_bytes,
            "workspace_limit": choice.workspace_limit,
            "weight_kept": choice.kept,
            "candidates": [self._candidate(row) for row in choice.ranking],
        }

    def _candidate(self, row: Candidate) -> dict[str, Any]:
        found: dict[str, Any] = {
            "method": row.method,
            "variant": None if row.plan is None else row.plan.variant,
            "seconds": row.seconds,
            "bytes": None,
            "flops": None,
            "share_of_roofline": None,
            "workspace_bytes": row.workspace_bytes,
            "error_bound": None,
            "error_bound_of": None,
            "reason": row.reason,
        }
        if row.plan is not None:
            done, bound = work(self._choice.problem, row.plan), error_bound(self._choice.problem, row.plan)
            found |= {"bytes": done.bytes, "flops": done.flops, "share_of_roofline": self._share(row)}
            found |= {"error_bound": bound.factor, "error_bound_of": bound.of}
        return found

    def _share(self, row: Candidate) -> float | None:
        """Time of the plan's own bytes and operations at the device's full rates over its predicted time."""
        if row.plan is None or not row.seconds:
            return None
        return roofline_seconds(self._choice.problem, row.plan, self._choice.device) / row.seconds

    def __str__(self) -> str:
        choice = self._choice
        problem, floor = choice.problem, floor_seconds(choice.problem, choice.device)
        lines = [
            f"{problem}",
            f"on {choice.device.name}: {format_bytes(problem.bytes)} to move, {problem.flops:.3g} flop, "
            f"floor {format_seconds(floor)}; {'the weight is kept packed' if choice.kept else 'times include packing'}",
            f"runs {self.reason}",
        ]
        table = [_HEAD, *(self._row(row) for row in choice.ranking)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for mark, name, *cells, reason in table:
            text = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths[2:-1], strict=True))
            start = f"{mark} {name:{widths[1]}} {text}  "
            lines += textwrap.wrap(start + reason, _WIDTH, subsequent_indent=" " * len(start))
        lines += ["  error: at most so many times s = sum |x||w| or n = sum ||x|| ||w|| of a sample, then one rounding"]
        if self.method == "fft":
            lines += ["  transforms: a NaN or an Inf in x reaches every sample of the windows of its row that it is in"]
        for line in _steps(choice):
            lines += textwrap.wrap(f"  {line}", _WIDTH, subsequent_indent="    ")
        return "\n".join(lines)

    def _row(self, row: Candidate) -> tuple[str, ...]:
        """The cells of a candidate, as in _HEAD."""
        if row.plan is None or row.seconds is None or row.workspace_bytes is None:
            return (" ", row.name, *["-"] * 6, row.reason)
        problem = self._choice.problem
        done, bound = work(problem, row.plan), error_bound(problem, row.plan)
        return (
            "*" if row.plan == self._choice.plan else " ",
            row.name,
            format_seconds(row.seconds),
            f"{100 * (self._share(row) or 0):.0f} %",
            f"{done.flops:.2g}",
            format_bytes(done.bytes),
            format_bytes(row.workspace_bytes),
            f"{bound.factor:.1e} {'s' if bound.of == SUMS else 'n'}",
            row.reason,
        )

    def __repr__(self) -> str:
        return str(self)


def _steps(choice: Choice) -> list[str]:
    """What the plan runs: tile, grid and shared bytes of each distinct launch."""
    plan = choice.plan
    if not isinstance(plan, Plan):
        return list(plan.notes)
    lines = list(plan.notes)
    for step in dict.fromkeys(plan.steps):
        if isinstance(step, Launch):
            defines = " ".join(f"{name}={value}" for name, value in step.defines)
            shared = format_bytes(step.shared_bytes)
            lines.append(f"{step.kernel}: grid {step.grid}, block {step.block}, shared {shared}, {defines}")
        elif isinstance(step, Fft):
            lines.append(f"library transform {step.kind}: {step.batch} of {step.length} points, {step.dtype}")
        else:
            sizes = f"({step.out.rows}, {step.right.rows}) by ({step.right.rows}, {step.out.columns})"
            lines.append(f"library product: {step.batch} of {sizes}, {step.dtype}{' in TF32' if step.tf32 else ''}")
        if len(lines) >= 12:
            lines.append(f"... {len(plan.steps)} steps in all")
            break
    return lines
