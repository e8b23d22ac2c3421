# SPDX-License-Identifier: MIT
"""The chooser: every plan that can take a problem, ranked by predicted time, and why each of the others lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

from cupy_convt.core import (
    cost,
    plan_cpu,
    plan_direct,
    plan_fft,
    plan_fft_block,
    plan_gemm,
    plan_hopper,
    plan_implicit,
    plan_weight_stream,
)
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.launch import Plan
from cupy_convt.core.plan_cpu import CpuPlan
from cupy_convt.core.problem import Problem
from cupy_convt.core.size_class import Corrections, Tuned, representative

#: Bytes a plan may allocate beside the caller's arrays unless the caller says otherwise.
DEFAULT_WORKSPACE_LIMIT = 256 << 20

AnyPlan = Plan | CpuPlan
METHODS = ("direct", "gemm", "fft")
_GPU_PLANNERS: dict[str, tuple[ModuleType, ...]] = {
    "direct": (plan_direct,),
    "gemm": (plan_implicit, plan_hopper, plan_weight_stream, plan_gemm),
    "fft": (plan_fft_block, plan_fft),
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
    """The plan that will run and the ranking it comes from, fastest first.

    `by_item`: the plan is for one item of the batch and runs once for each. `kept`: times are of calls whose weight is
    packed already, as a prepared operator's is; otherwise they include the packing.
    """

    problem: Problem
    device: DeviceSpec
    requested: str
    workspace_limit: int
    plan: AnyPlan
    ranking: tuple[Candidate, ...]
    by_item: bool = False
    kept: bool = False

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


def _reason(plan: AnyPlan, time: float, best: float, limit: int, how: str) -> str:
    if plan.workspace_bytes > limit:
        return f"needs {plan.workspace_bytes} bytes of workspace, limit {limit}"
    if time <= best:
        return f"least {how} time"
    return f"{how} {time / best:.2f}x the best"


def _time(pair: tuple[float, AnyPlan]) -> float:
    return pair[0]


def _timed(
    problem: Problem, device: DeviceSpec, limit: int, tuned: Tuned | None, kept: bool
) -> tuple[list[tuple[float, AnyPlan]], list[Candidate]]:
    """Every plan with its time, and the methods that have none; measurements correct the calls, not the packing."""
    timed: list[tuple[float, AnyPlan]] = []
    refused: list[Candidate] = []
    for name in METHODS:
        plans, why = _plans(problem, device, name, limit)
        timed += [(cost.seconds(problem, plan, device), plan) for plan in plans]
        if not plans:
            refused.append(Candidate(name, None, None, why))
    measured = {} if tuned is None else tuned.times(problem)
    if measured:
        predicted, _ = _timed(representative(problem), device, limit, None, True)
        corrections = Corrections.of(measured, {plan.name: time for time, plan in predicted})
        if corrections is not None:
            timed = [(time * corrections.factor(plan.method, plan.name), plan) for time, plan in timed]
    if not kept:
        timed = [(time + cost.packing_seconds(problem, plan, device), plan) for time, plan in timed]
    return timed, refused


@lru_cache(maxsize=1024)
def choose(
    problem: Problem,
    device: DeviceSpec,
    method: str = "auto",
    workspace_limit: int = DEFAULT_WORKSPACE_LIMIT,
    batch_invariant: bool = False,
    tuned: Tuned | None = None,
    kept: bool = False,
) -> Choice:
    """Pick the plan of least predicted time among those within the workspace limit.

    The ranking holds every method whichever was asked for; `method` restricts only what may be picked.
    `batch_invariant`: an item of the batch gets the bits that it would get alone. `tuned`: measurements of the device,
    which correct the predictions. `kept`: the weight is packed already, or will be used often enough for that not to
    count.

    Raises:
        ValueError: the method asked for cannot take the problem, or only with more workspace than the limit.
    """
    if batch_invariant:
        return _for_any_batch(problem, device, method, workspace_limit, tuned, kept)
    timed, refused = _timed(problem, device, workspace_limit, tuned, kept)
    how = "predicted" if tuned is None or not tuned.times(problem) else "tuned"
    timed.sort(key=_time)
    allowed = [pair for pair in timed if pair[1].workspace_bytes <= workspace_limit]
    eligible = [pair for pair in allowed if method in ("auto", pair[1].method)]
    best = allowed[0][0] if allowed else 0.0
    ranking = [Candidate(p.method, p, t, _reason(p, t, best, workspace_limit, how)) for t, p in timed]
    ranking += refused
    if not eligible:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in ranking if row.method == method)
        raise ValueError(f"method: expected one that can take {problem}, got {method!r} ({reasons})")
    return Choice(problem, device, method, workspace_limit, eligible[0][1], tuple(ranking), kept=kept)


def _for_any_batch(
    problem: Problem, device: DeviceSpec, method: str, limit: int, tuned: Tuned | None, kept: bool
) -> Choice:
    """The plan that an item would take alone, whatever the batch.

    A plan of a known order of sums gives way to the fastest one of that order for the whole batch. Any other runs once
    for each item, since libraries choose their order by the size of what they are handed.
    """
    item = choose(replace(problem, batch=1), device, method, limit, tuned=tuned, kept=kept)
    together: dict[str, tuple[float, AnyPlan]] = {}
    for time, plan in _timed(problem, device, limit, tuned, kept)[0]:
        if plan.sum_order and plan.workspace_bytes <= limit:
            together[plan.sum_order] = min(together.get(plan.sum_order, (time, plan)), (time, plan), key=_time)
    rows: dict[AnyPlan | None, Candidate] = {}
    ran: dict[AnyPlan, AnyPlan] = {}
    for row in item.ranking:
        if row.plan is None or row.seconds is None:
            rows[None] = row
        elif row.plan.sum_order in together:
            time, whole = together[row.plan.sum_order]
            ran[row.plan] = whole
            rows.setdefault(whole, Candidate(row.method, whole, time, f"{row.reason}, for an item"))
        else:
            reason = f"{row.reason}, for an item; item by item"
            rows[row.plan] = Candidate(row.method, row.plan, problem.batch * row.seconds, reason)
    plan = ran.get(item.plan, item.plan)
    by_item = item.plan not in ran
    return Choice(problem, device, method, limit, plan, tuple(rows.values()), by_item, kept)
