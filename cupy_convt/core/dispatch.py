# SPDX-License-Identifier: MIT
"""The chooser: every plan that can take a problem, ranked by predicted time, and why each of the others lost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from cupy_convt.core import cost, plan_cpu, plan_direct, plan_fft, plan_gemm, plan_implicit
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Plan
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem

#: Bytes a plan may allocate beside the caller's arrays unless the caller says otherwise.
DEFAULT_WORKSPACE_LIMIT = 256 << 20

AnyPlan = Plan | CpuPlan
_GPU_PLANNERS: dict[str, tuple[ModuleType, ...]] = {
    "direct": (plan_direct,),
    "gemm": (plan_implicit, plan_gemm),
    "fft": (plan_fft,),
}


@dataclass(frozen=True)
class Candidate:
    """One row of a ranking; a method that cannot take the problem has no plan and no time."""

    method: str
    plan: AnyPlan | None
    seconds: float | None
    reason: str

    @property
    def name(self) -> str:
        """Method and variant."""
        return self.method if self.plan is None else self.plan.name

    @property
    def workspace_bytes(self) -> int | None:
        """Bytes allocated beside the caller's arrays."""
        return None if self.plan is None else self.plan.workspace_bytes


@dataclass(frozen=True)
class Choice:
    """The plan that will run and the ranking it comes from, fastest first."""

    problem: Problem
    device: DeviceSpec
    requested: str
    workspace_limit: int
    plan: AnyPlan
    ranking: tuple[Candidate, ...]

    @property
    def method(self) -> str:
        """Method of the plan."""
        return self.plan.method

    @property
    def seconds(self) -> float:
        """Predicted time of the plan."""
        chosen = next(row.seconds for row in self.ranking if row.plan == self.plan)
        assert chosen is not None
        return chosen


def _plans(problem: Problem, device: DeviceSpec, method: str, limit: int) -> tuple[tuple[AnyPlan, ...], str]:
    """Plans of one method, and why there is none."""
    if device.is_cpu:
        found = tuple(p for p in plan_cpu.candidates(problem, device, limit) if p.method == method)
        return found, "" if found else plan_cpu.why_not(problem, method) or "no plan"
    planners = _GPU_PLANNERS[method]
    plans: tuple[AnyPlan, ...] = tuple(p for planner in planners for p in planner.candidates(problem, device, limit))
    reasons = [planner.why_not(problem, device) or "more workspace than the limit" for planner in planners]
    return plans, "" if plans else "; ".join(reasons)


def _reason(plan: AnyPlan, time: float, best: float, limit: int) -> str:
    if plan.workspace_bytes > limit:
        return f"needs {plan.workspace_bytes} bytes of workspace, limit {limit}"
    if time <= best:
        return "least predicted time"
    return f"predicted {time / best:.2f}x the best"


@lru_cache(maxsize=1024)
def choose(
    problem: Problem, device: DeviceSpec, method: str = "auto", workspace_limit: int = DEFAULT_WORKSPACE_LIMIT
) -> Choice:
    """Pick the plan of least predicted time among those within the workspace limit.

    The ranking holds every method whichever was asked for; `method` restricts only what may be picked.

    Raises:
        ValueError: the method asked for cannot take the problem, or only with more workspace than the limit.
    """
    timed: list[tuple[float, AnyPlan]] = []
    refused: list[Candidate] = []
    for name in ("direct", "gemm", "fft"):
        plans, why = _plans(problem, device, name, workspace_limit)
        timed += [(cost.seconds(problem, plan, device), plan) for plan in plans]
        if not plans:
            refused.append(Candidate(name, None, None, why))
    timed.sort(key=lambda pair: pair[0])
    allowed = [pair for pair in timed if pair[1].workspace_bytes <= workspace_limit]
    eligible = [pair for pair in allowed if method in ("auto", pair[1].method)]
    best = allowed[0][0] if allowed else 0.0
    ranking = [Candidate(p.method, p, t, _reason(p, t, best, workspace_limit)) for t, p in timed]
    ranking += refused
    if not eligible:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in ranking if row.method == method)
        raise ValueError(f"method: expected one that can take {problem}, got {method!r} ({reasons})")
    return Choice(problem, device, method, workspace_limit, eligible[0][1], tuple(ranking))
