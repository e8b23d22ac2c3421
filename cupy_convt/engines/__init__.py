# SPDX-License-Identifier: MIT
"""Which engine an array belongs to. CuPy is imported only when one of its arrays arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.problem import Problem


class Engine(Protocol):
    """What the API asks of an engine; x is (N, C_in, L_in), out (N, C_out, L_out), of any strides."""

    def device(self) -> DeviceSpec:
        """The device that the next call runs on."""

    def complaint(self, name: str, array: Any) -> str | None:
        """Why an array of this kind cannot be used here and now, or None."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new uninitialised array on that device."""

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array as an array on that device, of the same dtype."""

    def overlaps(self, a: Any, b: Any) -> bool:
        """Whether two arrays share memory."""

    def settled(self, plan: Any, x: Any) -> Any:
        """x itself, or a copy wherever the plan's way of summing may depend on the address of x."""

    def ready(self, plan: Any) -> None:
        """Compile and plan all that running the plan needs; compute nothing."""

    def seconds(self, call: Callable[[], object]) -> float:
        """How long the device takes for one call."""

    def pack(self, problem: Problem, plan: Any, weight: Any) -> Any:
        """What plan.packing_key names: the weight in the form that the plan reads."""

    def run(self, problem: Problem, plan: Any, x: Any, weight: Any, bias: Any, out: Any, packed: Any = None) -> None:
        """Compute the problem into `out`; every element of it is written."""


_engines: dict[str, Engine] = {}
#: Array class -> name and factory of its engine; the first class that fits decides.
_kinds: list[tuple[Callable[[Any], bool], str, Callable[[], Engine]]] = []


def register(accepts: Callable[[Any], bool], name: str, factory: Callable[[], Engine]) -> None:
    """Add a kind of array; later registrations are asked first."""
    _kinds.insert(0, (accepts, name, factory))


def kind_of(array: Any) -> str | None:
    """Name of the kind of an array ("numpy", "cupy"), or None for anything else."""
    return next((name for accepts, name, _ in _kinds if accepts(array)), None)


def engine_of(kind: str) -> Engine:
    """The engine of a kind, made at first use."""
    if kind not in _engines:
        _engines[kind] = next(factory for _, name, factory in _kinds if name == kind)()
    return _engines[kind]


def _cpu() -> Engine:
    from cupy_convt.engines.cpu import CpuEngine

    return CpuEngine()


def _gpu() -> Engine:
    from cupy_convt.engines.gpu import make_engine

    return make_engine()


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy" and type(array).__name__ == "ndarray"


register(_is_cupy, "cupy", _gpu)
register(lambda array: isinstance(array, np.ndarray), "numpy", _cpu)
