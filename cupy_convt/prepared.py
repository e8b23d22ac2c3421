# SPDX-License-Identifier: MIT
"""A weight and a geometry ready to be called: checks, choice, packed weights, and the call of the engine."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, overload

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.dispatch import DEFAULT_WORKSPACE_LIMIT, Choice, choose
from cupy_convt.core.geometry import Geometry, Operand, integer, make_geometry, make_problem
from cupy_convt.core.problem import Problem, is_complex
from cupy_convt.engines import Engine, engine_of, kind_of
from cupy_convt.engines.items import run_by_item
from cupy_convt.explain import Explanation
from cupy_convt.tunefile import tuned_for

#: Packed forms of one weight that a prepared operator keeps: one for each size class it meets.
_PACKED_FORMS = 8
#: Kinds of call (geometry, shapes, dtypes, device, limit) whose decisions are remembered.
_CALLS = 1024


def _default_limit() -> int:
    text = os.environ.get("CUPY_CONVT_WORKSPACE_LIMIT")
    if text is None:
        return DEFAULT_WORKSPACE_LIMIT
    if not text.isdigit():
        raise ValueError(f"CUPY_CONVT_WORKSPACE_LIMIT: expected a number of bytes, got {text!r}")
    return int(text)


_limit: ContextVar[int | None] = ContextVar("workspace_limit", default=None)


def current_limit() -> int:
    """Bytes that a call may allocate beside its arrays, here and now."""
    limit = _limit.get()
    return _default_limit() if limit is None else limit


@contextmanager
def workspace_limit(nbytes: int) -> Iterator[None]:
    """Bound the bytes that calls inside the block may allocate beside their arguments and their result.

    Longer problems are tiled to stay under it. The default is 256 MiB, or the environment variable
    CUPY_CONVT_WORKSPACE_LIMIT.

    Raises:
        TypeError: nbytes is not an int.
        ValueError: nbytes is negative.
    """
    nbytes = integer("nbytes", nbytes)
    if nbytes < 0:
        raise ValueError(f"nbytes: expected an int >= 0, got {nbytes}")
    token = _limit.set(nbytes)
    try:
        yield
    finally:
        _limit.reset(token)


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


def _native(array: Any) -> Any:
    """The array in the machine's byte order."""
    if array is None or array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def _check_out(
    engine: Engine, out: Any, problem: Problem, shape: tuple[int, ...], inputs: list[tuple[str, Any]]
) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out: expected shape {shape}, got {tuple(out.shape)}")
    if out.dtype.name != problem.out_dtype or not out.dtype.isnative:
        raise TypeError(f"out: expected dtype {problem.out_dtype}, got {out.dtype}")
    if not getattr(out.flags, "writeable", True):
        raise ValueError("out: expected a writeable array, got a read-only one")
    for name, array in inputs:
        if engine.overlaps(out, array):
            raise ValueError(f"out: expected an array that shares no memory with {name}, got one that overlaps it")


@dataclass(frozen=True)
class _Call:
    """What has been decided for inputs of one shape and dtype; no choice for an empty batch."""

    engine: Engine
    problem: Problem
    choice: Choice | None
    out_shape: tuple[int, ...]


_calls: OrderedDict[tuple[object, ...], _Call] = OrderedDict()


def chosen(problem: Problem, device: DeviceSpec, geometry: Geometry, *, kept: bool = False) -> Choice:
    """What runs here and now, for a prepared operator when the packed weight is `kept`.

    Raises:
        ValueError: the method asked for cannot take the problem.
    """
    limit, tuned = current_limit(), tuned_for(device)
    return choose(problem, device, geometry.method, limit, geometry.batch_invariant, tuned, kept)


def problems_met(device: DeviceSpec) -> list[Problem]:
    """The problems that calls have met on a device, as far as they are remembered; one item of those run by item."""
    met = [call for call in _calls.values() if call.choice is not None and call.choice.device == device]
    return [replace(call.problem, batch=1) if call.choice and call.choice.by_item else call.problem for call in met]


def forget_calls() -> None:
    """Choose anew at the next call of anything."""
    _calls.clear()


class Operator:
    """A weight, a bias and a geometry, ready to be called on inputs of any batch and length.

    Made by :func:`cupy_convt.prepare`. What a plan wants of the weight (packed tiles, Toeplitz blocks, spectra) is
    computed at the first input of a size class and kept; a later call of the same class plans nothing and packs
    nothing. The arrays are not copied: do not modify them afterwards.
    """

    def __init__(self, weight: Any, bias: Any, geometry: Geometry, *, keep: bool = True) -> None:
        self.geometry = geometry
        self.weight, self.bias = weight, bias
        self._keep = keep
        self._packed: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        traits = [(array.shape, array.dtype) for array in (weight, bias) if array is not None]
        self._fixed = (keep, geometry, *traits)

    def __call__(self, x: Any, out: Any = None, *, output_size: Any = None) -> Any:
        """The transposed convolution of x; `output_size` overrides that of the geometry.

        Shape:
            x: (N, C_in, L_in) or (C_in, L_in).
            out and the result: (N, C_out, L_out) or (C_out, L_out).

        Raises:
            TypeError, ValueError: as :func:`cupy_convt.conv_transpose1d`.
        """
        arrays = [("x", x), ("weight", self.weight)] + ([("bias", self.bias)] if self.bias is not None else [])
        kind, complaint = check_kinds(arrays + ([("out", out)] if out is not None else []))
        geometry = self.geometry
        if output_size is not None:
            size = make_geometry(output_size=output_size, x_ndim=x.ndim).output_size
            geometry = replace(geometry, output_size=size)
        call = self._decide(kind, complaint or engine_of(kind).complaint("x", x), geometry, x)
        if out is not None:
            _check_out(call.engine, out, call.problem, call.out_shape, arrays)
            result = out
        else:
            result = call.engine.empty(call.out_shape, call.problem.out_dtype)
        if call.choice is not None:
            if os.environ.get("CUPY_CONVT_EXPLAIN", "0") not in ("", "0"):
                _explain_once(call.choice)
            self._execute(call, call.choice, x, result)
        return result

    def explain(self, x_shape: tuple[int, ...], dtype: str | None = None) -> Explanation:
        """Which plan inputs of that shape take, and why. `dtype` is x's; None is the weight's."""
        operand = Operand(tuple(x_shape), dtype or self.weight.dtype.name)
        problem = make_problem(self.geometry, operand, operand_of(self.weight), operand_of(self.bias))
        engine = engine_of(array_kind("weight", self.weight))
        return Explanation(chosen(problem, engine.device(), self.geometry, kept=self._keep))

    def _decide(self, kind: str, complaint: str | None, geometry: Geometry, x: Any) -> _Call:
        """Every refusal and the choice, remembered by what they depend on."""
        engine, limit = engine_of(kind), current_limit()
        device = engine.device()
        key = (kind, x.shape, x.dtype, device.name, limit, self._fixed, geometry.output_size)
        call = _calls.get(key) if complaint is None else None
        if call is not None:
            return call
        if x.ndim not in (2, 3):
            raise ValueError(f"x: expected 2 axes (C_in, L) or 3 axes (N, C_in, L), got {x.ndim}")
        problem = make_problem(geometry, operand_of(x), operand_of(self.weight), operand_of(self.bias), complaint)
        if problem.has_bias and is_complex(self.bias.dtype.name) and not is_complex(problem.out_dtype):
            self.weight = self.weight.astype(self.bias.dtype)  # a real product with a complex bias: rare, so promoted
            problem = make_problem(geometry, operand_of(x), operand_of(self.weight), operand_of(self.bias))
        choice = chosen(problem, device, geometry, kept=self._keep) if problem.batch else None
        call = _Call(engine, problem, choice, problem.out_shape if x.ndim == 3 else problem.out_shape[1:])
        _calls[key] = call
        if len(_calls) > _CALLS:
            _calls.popitem(last=False)
        return call

    def _execute(self, call: _Call, choice: Choice, x: Any, out: Any) -> None:
        plan = choice.plan
        weight, bias = _native(self.weight), _native(self.bias)
        if bias is not None and bias.dtype != out.dtype:
            bias = bias.astype(out.dtype)
        packed = None
        if self._keep and plan.packing_key:
            packed = self._packed.get(plan.packing_key)
            if packed is None:
                packed = self._packed[plan.packing_key] = call.engine.pack(call.problem, plan, weight)
                if len(self._packed) > _PACKED_FORMS:
                    self._packed.popitem(last=False)
        if x.ndim == 2:
            x, out = x[None], out[None]
        if choice.by_item:
            run_by_item(call.engine, call.problem, plan, _native(x), weight, bias, out, packed)
        else:
            call.engine.run(call.problem, plan, _native(x), weight, bias, out, packed)


_explained: set[Choice] = set()


def _explain_once(choice: Choice) -> None:
    if choice not in _explained:
        _explained.add(choice)
        print(Explanation(choice), file=sys.stderr)
