# SPDX-License-Identifier: MIT
"""A batch one item at a time: for callers to whom an item's bits must not depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cupy_convt.core.problem import Problem
from cupy_convt.engines import Engine


def run_by_item(
    engine: Engine, problem: Problem, plan: Any, x: Any, weight: Any, bias: Any, out: Any, packed: Any = None
) -> None:
    """Run a plan for one item on every item of the batch; arguments are those of Engine.run."""
    item = replace(problem, batch=1)
    if packed is None and plan.packing_key:
        packed = engine.pack(item, plan, weight)
    for n in range(problem.batch):
        engine.run(item, plan, engine.settled(plan, x[n : n + 1]), weight, bias, out[n : n + 1], packed)
