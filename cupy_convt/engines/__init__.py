# SPDX-License-Identifier: MIT
"""Which engine an array belongs to. CuPy is imported only when one of its arrays arrives."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import NoneType
from typing import Any, Protocol

import numpy as np

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.problem import Problem
from cupy_convt.engines.layout import Layout

#: Runs a bound plan: x, weight, bias or None, out, what `pack` returned or None.
Run = Callable[..., None]


class Engine(Protocol):
    """What the API asks of an engine."""

    def device(self) -> DeviceSpec:
        """The device that the next call runs on."""

    def __hash__(self) -> int:
        """By identity."""

    def home(self, *arrays: Any) -> int | None:
        """The number of the current device if all arrays that are not None lie on it, else None."""

    def complaint(self, name: str, array: Any) -> str | None:
        """Why an array of this kind cannot be used here and now, or None."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new uninitialised array on that device."""

    def asarray(self, values: Any) -> Any:
        """The values of a NumPy array as an array on that device, of the same dtype."""

    def writeable(self, array: Any) -> bool:
        """Whether the array may be written to."""

    def overlaps(self, a: Any, b: Any) -> bool:
        """Whether two arrays share memory."""

    def ready(self, plan: Any) -> None:
        """Compile and plan all that running the plan needs; compute nothing."""

    def seconds(self, call: Callable[[], object]) -> float:
        """How long the device takes for one call."""

    def pack(self, problem: Problem, plan: Any, weight: Any) -> Any:
        """What plan.packing_key names: the weight in the form that the plan reads."""

    def bind(
        self,
        problem: Problem,
        plan: Any,
        x: Layout,
        weight: Layout,
        bias: Layout | None,
        out: Layout,
        *,
        settled: bool = False,
    ) -> Run:
        """The plan, ready to be run on arrays of these layouts on the current device; every element of out is written.

        x is (N, C_in, L_in) or (C_in, L_in), out alike, of any strides. `settled`: x is copied wherever the plan's way
        of summing may depend on its address.
        """


_engines: dict[str, Engine] = {}
#: `type` with a result that a type checker takes for the key of a cache.
class_of: Callable[[Any], Any] = type
#: Which classes of arrays, name and factory of their engine; the first that accepts a class decides.
_kinds: list[tuple[Callable[[type], bool], str, Callable[[], Engine]]] = []


def register(accepts: Callable[[type], bool], name: str, factory: Callable[[], Engine]) -> None:
    """Add a kind of array; later registrations are asked first."""
    _kinds.insert(0, (accepts, name, factory))
    _kind_of_class.cache_clear()
    engine_of_classes.cache_clear()


def kind_of(array: Any) -> str | None:
    """Name of the kind of an array ("numpy", "cupy"), or None for anything else."""
    return _kind_of_class(class_of(array))


@lru_cache(maxsize=64)
def _kind_of_class(array_class: type) -> str | None:
    return next((name for accepts, name, _ in _kinds if accepts(array_class)), None)


def engine_of(kind: str) -> Engine:
    """The engine of a kind, made at first use."""
    if kind not in _engines:
        _engines[kind] = next(factory for _, name, factory in _kinds if name == kind)()
    return _engines[kind]


@lru_cache(maxsize=64)
def engine_of_classes(first: type, second: type, *optional: type) -> Engine | None:
    """The engine that arrays of these classes have in common, if any; NoneType stands for an optional one left out."""
    given = (first, second, *(array_class for array_class in optional if array_class is not NoneType))
    kinds = {_kind_of_class(array_class) for array_class in given}
    kind = kinds.pop()
    return None if kinds or kind is None else engine_of(kind)


def _cpu() -> Engine:
    from cupy_convt.engines.cpu import CpuEngine

    return CpuEngine()


def _gpu() -> Engine:
    from cupy_convt.engines.gpu import make_engine

    return make_engine()


def _is_cupy(array_class: type) -> bool:
    return array_class.__module__.partition(".")[0] == "cupy" and array_class.__name__ == "ndarray"


register(_is_cupy, "cupy", _gpu)
register(lambda array_class: issubclass(array_class, np.ndarray), "numpy", _cpu)
