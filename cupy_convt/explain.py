# SPDX-License-Identifier: MIT
"""A choice as a printable object."""

from __future__ import annotations

from typing import Any

from cupy_convt.core.cost import floor_seconds
from cupy_convt.core.dispatch import Candidate, Choice
from cupy_convt.core.launch import Launch, Plan


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


class Explanation:
    """What was chosen for a problem and why; `print` it.

    Times are predictions of the cost model for `device`, not measurements.
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
        names = ("stride", "dilation", "groups", "p_left", "p_right", "x_dtype", "weight_dtype", "precision")
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
            "candidates": [
                {
                    "method": row.method,
                    "variant": None if row.plan is None else row.plan.variant,
                    "seconds": row.seconds,
                    "workspace_bytes": row.workspace_bytes,
                    "reason": row.reason,
                }
                for row in choice.ranking
            ],
        }

    def __str__(self) -> str:
        choice = self._choice
        problem, floor = choice.problem, floor_seconds(choice.problem, choice.device)
        lines = [
            f"{problem}",
            f"on {choice.device.name}: {format_bytes(problem.bytes)} to move, {problem.flops:.3g} flop, "
            f"floor {format_seconds(floor)}",
            f"runs {self.reason}",
            f"  {'method':34s} {'predicted':>10s} {'workspace':>10s}  why",
        ]
        for row in choice.ranking:
            time = "-" if row.seconds is None else format_seconds(row.seconds)
            space = "-" if row.workspace_bytes is None else format_bytes(row.workspace_bytes)
            mark = "*" if row.plan is not None and row.plan == choice.plan else " "
            lines.append(f"{mark} {row.name:34s} {time:>10s} {space:>10s}  {row.reason}")
        lines += [f"  {line}" for line in _steps(choice)]
        return "\n".join(lines)

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
        else:
            lines.append(str(step))
        if len(lines) >= 12:
            lines.append(f"... {len(plan.steps)} steps in all")
            break
    return lines
