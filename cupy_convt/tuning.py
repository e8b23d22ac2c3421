# SPDX-License-Identifier: MIT
"""Measured choices: time the plans of some problems on this device, and remember it.

Plans take turns, so that whatever else the machine does meets all of them alike; their medians are kept by size class
(core/size_class.py). Weights are packed before: what packing takes is predicted, and added where a call has to do it.
GPU plans are timed by events around them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np

from cupy_convt.calls import chosen, current_limit, problems_met
from cupy_convt.core.arguments import integer
from cupy_convt.core.dispatch import AnyPlan, choose
from cupy_convt.core.geometry import Geometry, Operand, make_geometry, make_problem
from cupy_convt.core.problem import Problem, is_complex
from cupy_convt.core.size_class import Times, representative, size_class
from cupy_convt.devices import cuda_arrays, to_dtype
from cupy_convt.engines import Engine, engine_of
from cupy_convt.engines.layout import layouts_of
from cupy_convt.tunefile import save

#: Plans predicted to take more than this many times the chosen one are not timed; nor are, again, those that did.
HOPELESS = 5.0
#: Rounds of each class at least.
ROUNDS = 5

Call = Callable[[], object]
#: Seconds of one call on a device.
Timer = Callable[[Call], float]
#: Called with a size class and its times.
Report = Callable[[str, Times], None]


def tune(
    problems: Iterable[Mapping[str, Any]] | None = None,
    *,
    device: str | None = None,
    seconds: float = 0.5,
    report: Report | None = None,
) -> dict[str, dict[str, float]]:
    """Measure every plan worth it for some problems, keep the times, and choose by them from now on.

    Times are kept by size class: what was measured for one length and batch serves all within a factor of about 1.4.
    They are saved for this device and version of the library in the user's cache directory and loaded by later
    processes. `cupy-convt tune --show` prints them, `--reset` removes them.

    Args:
        problems: for each a mapping with the arguments of :func:`cupy_convt.explain` except `device`, such as
            {"x_shape": (1, 512, 87), "weight_shape": (512, 256, 16), "stride": 8}; None: those that this process has
            met so far on the device, so run a model once and then tune().
        device: None or "cpu", "cuda" or "cuda:N".
        seconds: about how long the plans of one class take turns.
        report: called after each class with its name and {plan: seconds}.

    Returns:
        {size class: {plan: median seconds}}, the classes measured now.

    Raises:
        TypeError, ValueError: as :func:`cupy_convt.explain`; ValueError for no problem at all.
        OSError: the times cannot be saved.
    """
    with on_device(device) as engine:
        spec = engine.device()
        found = (
            problems_met(spec) if problems is None else [_decided_on(*problem_of(arguments)) for arguments in problems]
        )
        if not found:
            raise ValueError("problems: expected at least one, got none (None means those met so far on the device)")
        measured = measure_all(engine, found, seconds=seconds, report=report)
        save(spec, measured, _versions())
    return measured


def precompile(problems: Iterable[Mapping[str, Any]], *, device: str = "cuda") -> None:
    """Compile the kernels and make the transforms' plans that some problems need, on the current stream.

    Nothing is computed and no weight is packed. Under the capture of a CUDA graph nothing can be compiled or planned:
    call this, or the operator once, before. On a CPU there is nothing to do.

    Args:
        problems: as for :func:`cupy_convt.tune`.
        device: "cuda", "cuda:N" or "cpu".

    Raises:
        TypeError, ValueError: as :func:`cupy_convt.explain`.
    """
    with on_device(device) as engine:
        for arguments in problems:
            problem, geometry = problem_of(arguments)
            if problem.batch:
                for kept in (False, True):
                    engine.ready(chosen(problem, engine.device(), geometry, kept=kept).plan)


@contextmanager
def on_device(device: str | None) -> Iterator[Engine]:
    """The engine of a device, with that device as the current one."""
    if device in (None, "cpu"):
        yield engine_of("numpy")
        return
    arrays, ordinal = cuda_arrays(device)
    with arrays.cuda.Device(ordinal):
        yield engine_of("cupy")


def problem_of(arguments: Mapping[str, Any]) -> tuple[Problem, Geometry]:
    """A problem and its geometry from the arguments of `explain`.

    Raises:
        TypeError: not a mapping, an argument is missing or unknown, or of the wrong type.
        ValueError: a value is out of range.
    """
    if not isinstance(arguments, Mapping):
        raise TypeError(f"problems: expected mappings of arguments, got {type(arguments).__name__}")
    given = dict(arguments)
    for name in ("x_shape", "weight_shape"):
        if name not in given:
            raise TypeError(f"problems: expected the argument {name}, got {', '.join(given) or 'none'}")
    x_shape, weight_shape = (_shape(name, given.pop(name)) for name in ("x_shape", "weight_shape"))
    dtype = str(given.pop("dtype", "float32"))
    weight_dtype = str(given.pop("weight_dtype", None) or dtype)
    try:
        geometry = make_geometry(**{**given, "x_ndim": len(x_shape)})
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise TypeError(f"problems: expected the arguments of explain, got {', '.join(arguments)}") from None
    return make_problem(geometry, Operand(x_shape, dtype), Operand(weight_shape, weight_dtype), None), geometry


def _decided_on(problem: Problem, geometry: Geometry) -> Problem:
    """The problem whose times decide: one item, when the batch must not matter."""
    return replace(problem, batch=min(problem.batch, 1)) if geometry.batch_invariant else problem


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a sequence of ints, got {value!r}")
    return tuple(integer(name, size) for size in value)


def _versions() -> dict[str, str]:
    found = {}
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "")
        if name in ("numpy", "scipy", "cupy") or name.startswith("cupy-cuda"):
            found[name] = distribution.version
    return found


def measure_all(
    engine: Engine,
    problems: Iterable[Problem],
    *,
    seconds: float = 0.5,
    report: Report | None = None,
    timer: Timer | None = None,
) -> dict[str, dict[str, float]]:
    """{size class: {plan: median seconds}} of some problems on an engine; `timer` is the engine's own unless given."""
    measured: dict[str, dict[str, float]] = {}
    for problem in problems:
        key = size_class(problem)
        if problem.batch and key not in measured:
            measured[key] = measure(engine, representative(problem), seconds, timer or engine.seconds)
            if report is not None:
                report(key, measured[key])
    return measured


def measure(engine: Engine, problem: Problem, seconds: float, timer: Timer) -> dict[str, float]:
    """Median seconds of every plan of a problem that is worth it with or without a kept weight, packed already."""
    limit, arrays = current_limit(), _arrays(engine, problem)
    calls: dict[str, Call] = {}
    for kept in (True, False):
        choice = choose(problem, engine.device(), workspace_limit=limit, kept=kept)
        for row in choice.ranking:
            worth = row.seconds is not None and row.seconds <= HOPELESS * choice.seconds
            if row.plan is not None and worth and row.plan.workspace_bytes <= limit and row.plan.name not in calls:
                calls[row.plan.name] = _call(engine, problem, row.plan, arrays)
    return interleaved(calls, timer, seconds)


def _arrays(engine: Engine, problem: Problem) -> tuple[Any, Any, Any]:
    """Random x and weight on the engine's device, and a result."""
    random = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype: str) -> Any:
        values: Any = random.standard_normal(shape, dtype=np.float32)
        if is_complex(dtype):
            values = values + 1j * random.standard_normal(shape, dtype=np.float32)
        return engine.asarray(values.astype(to_dtype(dtype)))

    x, weight = draw(problem.x_shape, problem.x_dtype), draw(problem.weight_shape, problem.weight_dtype)
    return x, weight, engine.empty(problem.out_shape, problem.out_dtype)


def _call(engine: Engine, problem: Problem, plan: AnyPlan, arrays: tuple[Any, Any, Any]) -> Call:
    x, weight, out = arrays
    bias = engine.asarray(np.zeros(problem.c_out, to_dtype(problem.out_dtype))) if problem.has_bias else None
    kept: list[Any] = []  # the bound plan and the packed weight, made by the first call

    def call() -> None:
        if not kept:
            kept.append(engine.bind(problem, plan, *layouts_of(x, weight, bias, out)))
            kept.append(engine.pack(problem, plan, weight) if plan.packing_key else None)
        run, packed = kept
        run(x, weight, bias, out, packed)

    return call


def interleaved(calls: Mapping[str, Call], timer: Timer, seconds: float) -> dict[str, float]:
    """Median seconds of each call, taking turns, after a first run that is not counted.

    A call whose second run took HOPELESS times the fastest one's runs no more; one that finds no memory is left out.
    """
    first: dict[str, float] = {}
    for name, call in calls.items():
        try:
            timer(call)
            first[name] = timer(call)
        except MemoryError:
            continue
    if not first:
        return {}
    samples = {name: [once] for name, once in first.items()}
    contenders = [name for name, once in first.items() if once <= HOPELESS * min(first.values())]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(samples[contenders[0]]) < ROUNDS:
        for name in contenders:
            samples[name].append(timer(calls[name]))
    return {name: statistics.median(taken) for name, taken in samples.items()}
