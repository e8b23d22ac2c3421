# SPDX-License-Identifier: MIT
"""What is decided about a call before it runs, and remembered: the second call of a problem decides nothing.

A call is remembered by everything that a decision depends on: the engine and its current device, the workspace limit,
the geometry, and shape, strides and dtype of each array. What depends on more (on which device the arrays lie, whether
they overlap) is looked at in every call. New measurements make all be forgotten.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

from cupy_convt.core.arguments import integer
from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.dispatch import DEFAULT_WORKSPACE_LIMIT, Choice, choose
from cupy_convt.core.geometry import Geometry, Operand, make_problem
from cupy_convt.core.problem import Problem, is_complex
from cupy_convt.engines import Engine, Run
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.items import bind_items
from cupy_convt.engines.layout import Layout
from cupy_convt.tunefile import tuned_for, when_changed

#: Calls whose decisions are remembered.
CALLS = 1024
#: Shape, strides and dtype of an array.
Traits = tuple[tuple[int, ...], tuple[int, ...], Any]


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


#: How often all has been forgotten: what another thread was deciding meanwhile is never met again.
_generation = 0


def circumstances() -> tuple[int, int]:
    """The workspace limit and the generation of measurements: what decisions depend on beside the call itself."""
    return current_limit(), _generation


def chosen(problem: Problem, device: DeviceSpec, geometry: Geometry, *, kept: bool = False) -> Choice:
    """What runs here and now, for a prepared operator when the packed weight is `kept`.

    Raises:
        ValueError: the method asked for cannot take the problem.
    """
    limit, tuned = current_limit(), tuned_for(device)
    return choose(problem, device, geometry.method, limit, geometry.batch_invariant, tuned, kept)


@dataclass(frozen=True, eq=False)
class Call:
    """What has been decided for arrays of some traits on one device.

    `converted` has the dtypes that x, weight and bias must be brought to first, where they differ from what was given;
    the call is made anew then. `choice` and `run` are None for it and for an empty batch. `packing_key` says what of
    the weight can be kept, None if nothing.
    """

    problem: Problem
    out_shape: tuple[int, ...]
    converted: tuple[Any, ...] | None = None
    choice: Choice | None = None
    packing_key: tuple[object, ...] | None = None
    run: Run | None = None


def _operand(traits: Traits) -> Operand:
    return Operand(tuple(traits[0]), traits[2].name)


def _layout(traits: Traits) -> Layout:
    return Layout(*traits[:2], traits[2].itemsize)


def _native(dtype: Any) -> Any:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _refuse_out(out: Traits, shape: tuple[int, ...], dtype: str) -> None:
    if out[0] != shape:
        raise ValueError(f"out: expected shape {shape}, got {out[0]}")
    if out[2].name != dtype or not out[2].isnative:
        raise TypeError(f"out: expected dtype {dtype}, got {out[2]}")


@lru_cache(maxsize=CALLS)
def decided(
    engine: Engine,
    number: int,
    around: tuple[int, int],
    geometry: Geometry,
    kept: bool,
    x: Traits,
    weight: Traits,
    bias: Traits | None,
    out: Traits | None,
) -> Call:
    """Every refusal that needs no array, and the choice, bound to layouts, for the engine's device of that number.

    `around` are the circumstances, which are those of now.

    Raises:
        TypeError, ValueError: as :func:`cupy_convt.conv_transpose1d`.
    """
    if len(x[0]) not in (2, 3):
        raise ValueError(f"x: expected 2 axes (C_in, L) or 3 axes (N, C_in, L), got {len(x[0])}")
    of_x, of_weight, of_bias = _operand(x), _operand(weight), None if bias is None else _operand(bias)
    problem = make_problem(geometry, of_x, of_weight, of_bias)
    dtypes = [_native(x[2]), _native(weight[2]), None]
    if of_bias is not None:
        if is_complex(of_bias.dtype) and not is_complex(problem.out_dtype):
            # a real product with a complex bias: rare, so promoted
            dtypes[1] = named_dtype(of_bias.dtype)
            problem = make_problem(geometry, of_x, replace(of_weight, dtype=of_bias.dtype), of_bias)
        dtypes[2] = named_dtype(problem.out_dtype)
    shape = problem.out_shape if len(x[0]) == 3 else problem.out_shape[1:]
    device = engine.device()
    choice = chosen(problem, device, geometry, kept=kept) if problem.batch else None
    if out is not None:
        _refuse_out(out, shape, problem.out_dtype)
    if choice is None:
        return Call(problem, shape)
    _remember(device, replace(problem, batch=1) if choice.by_item else problem)
    if dtypes != [x[2], weight[2], None if bias is None else bias[2]]:
        return Call(problem, shape, tuple(dtypes))
    result = Layout.dense(shape, named_dtype(problem.out_dtype).itemsize) if out is None else _layout(out)
    layouts = _layout(x), _layout(weight), None if bias is None else _layout(bias), result
    plan = choice.plan
    packing_key = (problem.weight_dtype, *plan.packing_key) if plan.packing_key else None
    run = bind_items(engine, problem, plan, *layouts) if choice.by_item else engine.bind(problem, plan, *layouts)
    return Call(problem, shape, None, choice, packing_key, run)


_met: OrderedDict[tuple[DeviceSpec, Problem], None] = OrderedDict()
_lock = Lock()


def _remember(device: DeviceSpec, problem: Problem) -> None:
    with _lock:
        _met[device, problem] = None
        _met.move_to_end((device, problem))
        if len(_met) > CALLS:
            _met.popitem(last=False)


def problems_met(device: DeviceSpec) -> list[Problem]:
    """The problems that calls have met on a device, as far as they are remembered; one item of those run by item."""
    with _lock:
        return [problem for spec, problem in _met if spec == device]


def forget_calls() -> None:
    """Choose anew at the next call of anything."""
    global _generation
    with _lock:
        _generation += 1
        _met.clear()
    decided.cache_clear()


when_changed(forget_calls)
