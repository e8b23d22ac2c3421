# SPDX-License-Identifier: MIT
"""Size classes: what is measured once and holds for all problems of about that size.

Two problems are of one class when their batches and their lengths round to the same power of the square root of 2,
and everything else that a plan's time depends on is equal: channels, groups, taps, stride, dilation, dtypes, precision.
Crops do not count, nor does what is done to the sums: bias, activation, beta. What was measured is not the time that is
predicted for another problem of the class: it corrects the prediction of each plan, by the ratio that was found in the
middle of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp, log, log2

from cupy_convt.core.problem import Problem

#: Measured seconds of each plan by its name.
Times = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was measured on one device: size class -> plan -> seconds."""

    classes: Mapping[str, Times]

    def times(self, problem: Problem) -> Times:
        """The measurements of the problem's class, empty if there are none."""
        return self.classes.get(size_class(problem), {})


def middle(size: int) -> int:
    """The whole number nearest to the power of sqrt(2) that stands for a size >= 1."""
    return round(2 ** (round(2 * log2(size)) / 2))


def size_class(problem: Problem) -> str:
    """The name of a problem's class."""
    p = problem
    geometry = f"K={p.kernel_size} stride={p.stride} dilation={p.dilation} groups={p.groups}"
    dtypes = p.x_dtype if p.x_dtype == p.weight_dtype else f"{p.x_dtype} x, {p.weight_dtype} weight"
    sizes = f"({middle(max(p.batch, 1))}, {p.c_in}, {middle(p.l_in)}) -> {p.c_out}"
    return f"{sizes} {geometry} {dtypes}" + (f" {p.precision}" if p.precision else "")


def representative(problem: Problem) -> Problem:
    """The problem in the middle of the class: what is measured. A length that leaves no result stays as it is."""
    found = replace(problem, batch=middle(max(problem.batch, 1)), l_in=middle(problem.l_in))
    return found if found.l_out >= 1 else replace(found, l_in=problem.l_in)


@dataclass(frozen=True)
class Corrections:
    """Measured over predicted time: of plans, of methods where a plan was not measured, else of everything."""

    plans: Mapping[str, float]
    methods: Mapping[str, float]
    everything: float

    @staticmethod
    def of(measured: Times, predicted: Times) -> Corrections | None:
        """From seconds by plan name; None when no plan is in both."""
        plans = {name: measured[name] / predicted[name] for name in measured if name in predicted}
        if not plans:
            return None
        by_method: dict[str, list[float]] = {}
        for name, ratio in plans.items():
            by_method.setdefault(name.partition("/")[0], []).append(ratio)
        return Corrections(
            plans, {name: _mean(found) for name, found in by_method.items()}, _mean(list(plans.values()))
        )

    def factor(self, method: str, name: str) -> float:
        """What the prediction of a plan is multiplied by."""
        return self.plans.get(name, self.methods.get(method, self.everything))


def _mean(ratios: list[float]) -> float:
    return exp(sum(log(ratio) for ratio in ratios) / len(ratios))
