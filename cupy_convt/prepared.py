# SPDX-License-Identifier: MIT
"""Arrays meet what has been decided for them: the checks that need arrays, packed weights, and the engine's call."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from types import NoneType
from typing import Any, overload

from cupy_convt.calls import CALLS, chosen, circumstances, decided
from cupy_convt.core.dispatch import Choice
from cupy_convt.core.geometry import Geometry, Operand, make_geometry, make_problem
from cupy_convt.engines import Engine, class_of, engine_of, engine_of_classes, kind_of
from cupy_convt.explain import Explanation

#: Forms of one weight that a prepared operator keeps: one for each size class it meets.
_FORMS = 8
#: Forms of one weight by what they are good for.
Kept = OrderedDict[Hashable, Any]


def array_kind(name: str, array: Any) -> str:
    """Kind of an array argument, refused when it is none."""
    kind = kind_of(array)
    if kind is None:
        raise TypeError(f"{name}: expected a NumPy or CuPy array, got {type(array).__name__}")
    return kind


def check_kinds(named: list[tuple[str, Any]]) -> tuple[str, str | None]:
    """Kind of the first array, and a complaint if another one is of a different kind or on another device."""
    first_name, first_array = named[0]
    first, here = array_kind(first_name, first_array), getattr(first_array, "device", None)
    complaint = None
    for name, array in named[1:]:
        kind, there = array_kind(name, array), getattr(array, "device", None)
        if complaint is None and kind != first:
            complaint = f"{name}: expected a {first} array as {first_name} is, got a {kind} array"
        if complaint is None and here != there:
            complaint = f"{name}: expected device {here} as {first_name} has, got {there}"
    return first, complaint


@overload
def operand_of(array: None) -> None: ...
@overload
def operand_of(array: Any) -> Operand: ...
def operand_of(array: Any) -> Operand | None:
    """Shape and dtype name of an array, None of None."""
    return None if array is None else Operand(tuple(array.shape), array.dtype.name)


def _named(x: Any, weight: Any, bias: Any, out: Any) -> list[tuple[str, Any]]:
    optional = [(name, array) for name, array in (("bias", bias), ("out", out)) if array is not None]
    return [("x", x), ("weight", weight), *optional]


def common_engine(x: Any, weight: Any, bias: Any, out: Any) -> Engine | None:
    """The engine of all arguments, None if their kinds differ.

    Raises:
        TypeError: one of them is not an array.
    """
    engine = engine_of_classes(class_of(x), class_of(weight), class_of(bias), class_of(out))
    if engine is None:
        for name, array in _named(x, weight, bias, out):
            array_kind(name, array)
    return engine


def _refuse(geometry: Geometry, x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Refuse arrays that are not all of one kind on the current device, after what comes before that."""
    kind, complaint = check_kinds(_named(x, weight, bias, out))
    complaint = complaint or engine_of(kind).complaint("x", x)
    if x.ndim not in (2, 3):
        raise ValueError(f"x: expected 2 axes (C_in, L) or 3 axes (N, C_in, L), got {x.ndim}")
    make_problem(geometry, operand_of(x), operand_of(weight), operand_of(bias), complaint)


def _refuse_out(engine: Engine, out: Any, x: Any, weight: Any, bias: Any) -> None:
    if not engine.writeable(out):
        raise ValueError("out: expected a writeable array, got a read-only one")
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is not None and engine.overlaps(out, array):
            raise ValueError(f"out: expected an array that shares no memory with {name}, got one that overlaps it")


def _keep(kept: Kept, key: Hashable, form: Any) -> Any:
    kept[key] = form
    if len(kept) > _FORMS:
        kept.popitem(last=False)
    return form


def _cast(array: Any, dtype: Any, name: str = "", kept: Kept | None = None) -> Any:
    """The array in a dtype; a copy is kept by the array's name."""
    if array is None or array.dtype == dtype:
        return array
    found = None if kept is None else kept.get((name, dtype))
    if found is None:
        found = array.astype(dtype)
        if kept is not None:
            _keep(kept, (name, dtype), found)
    return found


def compute(
    engine: Engine | None, geometry: Geometry, x: Any, weight: Any, bias: Any, out: Any, kept: Kept | None
) -> Any:
    """The transposed convolution; what is made of the weight goes into `kept` and comes from there.

    Raises:
        TypeError, ValueError: as :func:`cupy_convt.conv_transpose1d`.
    """
    number = None if engine is None else engine.home(x, weight, bias, out)
    if engine is None or number is None:
        _refuse(geometry, x, weight, bias, out)
        raise AssertionError("expected a complaint about arrays that are not all on the current device")
    call = decided(
        engine,
        number,
        circumstances(),
        geometry,
        kept is not None,
        (x.shape, x.strides, x.dtype),
        (weight.shape, weight.strides, weight.dtype),
        None if bias is None else (bias.shape, bias.strides, bias.dtype),
        None if out is None else (out.shape, out.strides, out.dtype),
    )
    if out is not None:
        _refuse_out(engine, out, x, weight, bias)
    elif geometry.beta:
        raise ValueError(f"beta: expected 0 without out, got {geometry.beta!r}")
    if call.converted is not None:
        dtypes = call.converted
        weight, bias = _cast(weight, dtypes[1], "weight", kept), _cast(bias, dtypes[2], "bias", kept)
        return compute(engine, geometry, _cast(x, dtypes[0]), weight, bias, out, kept)
    if out is None:
        out = engine.empty(call.out_shape, call.problem.out_dtype)
    if call.choice is None or call.run is None:
        return out
    if os.environ.get("CUPY_CONVT_EXPLAIN", "0") not in ("", "0"):
        _explain_once(call.choice)
    packed, key = None, call.packing_key
    if kept is not None and key is not None:
        packed = kept.get(key)
        if packed is None:
            packed = _keep(kept, key, engine.pack(call.problem, call.choice.plan, weight))
    call.run(x, weight, bias, out, packed)
    return out


@lru_cache(maxsize=CALLS, typed=True)
def _changed(geometry: Geometry, output_size: Any, beta: Any, x_ndim: int) -> Geometry:
    made = make_geometry(output_size=output_size, beta=beta, x_ndim=x_ndim)
    size = geometry.output_size if output_size is None else made.output_size
    return replace(geometry, output_size=size, beta=made.beta)


class Operator:
    """A weight, a bias and a geometry, ready to be called on inputs of any batch and length.

    Made by :func:`cupy_convt.prepare`. What a plan wants of the weight (packed tiles, Toeplitz blocks, spectra) is
    computed at the first input of a size class and kept; a later call of the same class plans nothing and packs
    nothing. The arrays are not copied: do not modify them afterwards.
    """

    def __init__(self, weight: Any, bias: Any, geometry: Geometry) -> None:
        self.geometry = geometry
        self.weight, self.bias = weight, bias
        self._kept: Kept = OrderedDict()

    def __call__(self, x: Any, out: Any = None, *, output_size: Any = None, beta: float = 0.0) -> Any:
        """The transposed convolution of x, plus `beta` times what `out` held.

        `output_size` overrides that of the geometry.

        Shape:
            x: (N, C_in, L_in) or (C_in, L_in).
            out and the result: (N, C_out, L_out) or (C_out, L_out).

        Raises:
            TypeError, ValueError: as :func:`cupy_convt.conv_transpose1d`.
        """
        engine, geometry = common_engine(x, self.weight, self.bias, out), self.geometry
        if output_size is not None or type(beta) is not float or beta:
            plain = type(output_size) in (int, NoneType) and type(beta) in (int, float)
            geometry = (_changed if plain else _changed.__wrapped__)(geometry, output_size, beta, x.ndim)
        return compute(engine, geometry, x, self.weight, self.bias, out, self._kept)

    def explain(self, x_shape: tuple[int, ...], dtype: str | None = None) -> Explanation:
        """Which plan inputs of that shape take, and why. `dtype` is x's; None is the weight's."""
        operand = Operand(tuple(x_shape), dtype or self.weight.dtype.name)
        problem = make_problem(self.geometry, operand, operand_of(self.weight), operand_of(self.bias))
        engine = engine_of(array_kind("weight", self.weight))
        return Explanation(chosen(problem, engine.device(), self.geometry, kept=True))


_explained: set[Choice] = set()


def _explain_once(choice: Choice) -> None:
    if choice not in _explained:
        _explained.add(choice)
        print(Explanation(choice), file=sys.stderr)
