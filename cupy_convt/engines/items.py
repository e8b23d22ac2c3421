# SPDX-License-Identifier: MIT
"""A batch one item at a time: for callers to whom an item's bits must not depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cupy_convt.core.problem import Problem
from cupy_convt.engines import Engine, Run
from cupy_convt.engines.layout import Layout


def bind_items(
    engine: Engine, problem: Problem, plan: Any, x: Layout, weight: Layout, bias: Layout | None, out: Layout
) -> Run:
    """A plan for one item, ready to be run on every item of batches of these layouts."""
    item = replace(problem, batch=1)
    run_item = engine.bind(item, plan, x.item(), weight, bias, out.item(), settled=True)

    def run(x: Any, weight: Any, bias: Any, out: Any, packed: Any = None) -> None:
        if packed is None and plan.packing_key:
            packed = engine.pack(item, plan, weight)
        if x.ndim == 2:
            x, out = x[None], out[None]
        for n in range(problem.batch):
            run_item(x[n : n + 1], weight, bias, out[n : n + 1], packed)

    return run
