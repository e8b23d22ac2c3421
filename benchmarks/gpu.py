# SPDX-License-Identifier: MIT
"""Time this library on a CUDA device against PyTorch (cuDNN) and cupyx, and against the floor of each row.

    python -m benchmarks.gpu [--rows GLOB] [--quick] --out FILE

All calls of a row take turns on the default stream. Each is timed by two events around it, after a write to a buffer
larger than the second-level cache; the host's time until the call returns is a column of its own. Rows keep their full
size. A rival that fails (out of memory, an unsupported dtype) is recorded with its message.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy
import numpy as np

import cupy_convt as ct
from benchmarks import rivals, workloads
from benchmarks.host import host_cost
from benchmarks.run import command
from benchmarks.timing import Timing, summarise
from cupy_convt.core.cost import floor_seconds, seconds
from cupy_convt.core.dispatch import choose
from cupy_convt.engines import engine_of
from cupy_convt.engines.dtypes import named_dtype
from cupy_convt.engines.layout import layouts_of

FLUSH_BYTES = 256 << 20
#: A call slower than this is timed only once.
SLOW_SECONDS = 1.0
#: Plans predicted to take more than this many times the chosen one are not timed.
HOPELESS = 8.0

#: Measured once, since results are written after every row.
HOST_COST: dict[str, dict[str, float]] = {}

Call = Callable[[], Any]
Measured = dict[str, dict[str, Any]]


def _warm(call: Call) -> float:
    """Seconds of the second call: the first compiles, plans and searches."""
    for _ in range(2):
        cupy.cuda.runtime.deviceSynchronize()
        start = time.perf_counter()
        call()
        cupy.cuda.runtime.deviceSynchronize()
    return time.perf_counter() - start


def _once(call: Call, flush: Any) -> tuple[float, float]:
    """Device and host seconds of one call on a cold cache."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    flush.fill(1)
    cupy.cuda.runtime.deviceSynchronize()
    start.record()
    host = time.perf_counter()
    call()
    host = time.perf_counter() - host
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) * 1e-3, host


def interleaved(calls: dict[str, Call], rounds: int) -> Measured:
    """Time every call in turns; medians and spreads of the device's time, median of the host's."""
    flush = cupy.empty(FLUSH_BYTES, cupy.uint8)
    samples: dict[str, list[tuple[float, float]]] = {}
    results: Measured = {}
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        try:
            repeats[name] = 1 if _warm(call) > SLOW_SECONDS else rounds
            samples[name] = []
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    for turn in range(rounds):
        for name, taken in samples.items():
            if turn < repeats[name]:
                taken.append(_once(calls[name], flush))
    for name, taken in samples.items():
        device: Timing = summarise([pair[0] for pair in taken])
        results[name] = device.as_dict() | {"host_ms": round(float(np.median([pair[1] for pair in taken])) * 1e3, 5)}
    return results


def _arrays(workload: workloads.Workload, dtype: str) -> tuple[Any, Any, Any]:
    problem, random = workload.problem(dtype), cupy.random.default_rng(1)
    gain = (problem.c_in_group * max(problem.phases.max_taps, 1)) ** -0.5
    x = random.standard_normal(problem.x_shape, dtype=cupy.float32)
    weight = random.standard_normal(problem.weight_shape, dtype=cupy.float32) * gain
    bias = random.standard_normal((problem.c_out,), dtype=cupy.float32)
    return tuple(array.astype(named_dtype(dtype)) for array in (x, weight, bias))


def _torch_calls(workload: workloads.Workload, arrays: tuple[Any, Any, Any]) -> dict[str, Call]:
    """PyTorch with cuDNN's search on and off, and TF32 on and off where it matters."""
    import torch

    def tensor(array: Any) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            return torch.from_dlpack(array.view(cupy.int16)).view(torch.bfloat16)
        return torch.from_dlpack(array)

    tensors = tuple(tensor(array) for array in arrays)
    calls: dict[str, Call] = {}
    for search in (False, True):
        for tf32 in (False, True) if arrays[0].dtype == cupy.float32 else (False,):

            def call(search: bool = search, tf32: bool = tf32) -> Any:
                torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = search, tf32
                with torch.inference_mode():
                    return torch.nn.functional.conv_transpose1d(*tensors, **workload.arguments)

            calls["torch" + (" benchmark" if search else "") + (" tf32" if tf32 else "")] = call
    if rivals.can_fold(workload) and arrays[0].dtype.name != "bfloat16":
        calls["torch fold"] = rivals.product_and_fold(workload, tensors)
    return calls


def _cupyx_calls(workload: workloads.Workload, arrays: tuple[Any, Any, Any]) -> dict[str, Call]:
    """cupyx.scipy.signal on one channel: upfirdn, and fftconvolve and oaconvolve of the zero-stuffed signal."""
    if not workload.is_mono or arrays[0].dtype != cupy.float32:
        return {}
    from cupyx.scipy import signal

    x, taps, stride = arrays[0][:, 0], arrays[1][0, 0], workload.stride

    def stuffed() -> Any:
        zeros = cupy.zeros((x.shape[0], (x.shape[1] - 1) * stride + 1), x.dtype)
        zeros[:, ::stride] = x
        return zeros

    return {
        "upfirdn": lambda: signal.upfirdn(taps, x, up=stride),
        "fftconvolve": lambda: signal.fftconvolve(stuffed(), taps[None], axes=1),
        "oaconvolve": lambda: signal.oaconvolve(stuffed(), taps[None], axes=1),
    }


def _plan_calls(workload: workloads.Workload, arrays: tuple[Any, Any, Any]) -> tuple[dict[str, Call], dict[str, float]]:
    """Every plan worth timing with its weight packed, and what each was predicted to take."""
    engine, problem = engine_of("cupy"), workload.problem(arrays[0].dtype.name)
    choice = choose(problem, engine.device())
    calls: dict[str, Call] = {}
    predictions: dict[str, float] = {}
    bound: dict[str, tuple[Any, Any]] = {}
    for row in choice.ranking:
        if row.plan is None or row.seconds is None or row.seconds > HOPELESS * choice.seconds:
            continue

        def call(plan: Any = row.plan) -> Any:
            out = engine.empty(problem.out_shape, problem.out_dtype)
            if plan.name not in bound:
                packed = engine.pack(problem, plan, arrays[1]) if plan.packing_key else None
                bound[plan.name] = engine.bind(problem, plan, *layouts_of(*arrays, out)), packed
            run, packed = bound[plan.name]
            run(*arrays, out, packed)
            return out

        calls[row.plan.name] = call
        predictions[row.plan.name] = seconds(problem, row.plan, engine.device())
    return calls, predictions


def _error(ours: Any, theirs: Any) -> float:
    """Largest difference in units of the rival's root mean square."""
    if not isinstance(theirs, cupy.ndarray):
        theirs = cupy.from_dlpack(theirs.float())
    wide, other = ours.astype(cupy.float32), theirs.astype(cupy.float32)
    return float(cupy.abs(wide - other).max() / cupy.sqrt((other**2).mean()))


def time_row(workload: workloads.Workload, dtype: str, rounds: int) -> dict[str, Any]:
    """One row in one dtype."""
    arrays = _arrays(workload, dtype)
    problem, device = workload.problem(dtype), engine_of("cupy").device()
    operator = ct.prepare(arrays[1], arrays[2], **workload.arguments)
    calls: dict[str, Call] = {
        "ours": lambda: ct.conv_transpose1d(*arrays, **workload.arguments),
        "prepared": lambda: operator(arrays[0]),
    }
    others = {**_torch_calls(workload, arrays), **_cupyx_calls(workload, arrays)}
    measured = interleaved(calls | others, rounds)
    row: dict[str, Any] = {
        "name": workload.name,
        "kind": workload.kind,
        "category": workload.category,
        "dtype": dtype,
        "own_dtype": dtype == workload.dtype,
        "scaled": "",
        "problem": str(problem),
        "floor_ms": round(floor_seconds(problem, device) * 1e3, 6),
        "ours": measured["ours"],
        "prepared": measured["prepared"],
        "rivals": {name: measured[name] for name in others},
    }
    if "failed" not in measured["ours"]:
        choice = choose(problem, device)
        row |= {"chosen": choice.plan.name, "predicted_ms": round(choice.seconds * 1e3, 6)}
        for rival in row["rivals"].values():
            if "failed" not in rival:
                rival["ratio"] = round(rival["median_ms"] / measured["ours"]["median_ms"], 3)
        if "failed" not in measured["torch"]:
            row["rivals"]["torch"]["error"] = _error(calls["ours"](), others["torch"]())
        plans, predictions = _plan_calls(workload, arrays)
        row["plans"] = {
            name: timing | {"predicted_ms": round(predictions[name] * 1e3, 6)}
            for name, timing in interleaved(plans, max(rounds // 2, 1)).items()
        }
    return row


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    versions = {"cupy": cupy.__version__, "numpy": np.__version__, "cupy_convt": ct.__version__}
    try:
        import torch

        versions |= {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}
    except ImportError:
        versions["torch"] = "absent"
    return {
        "device": properties["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "host_us": HOST_COST,
        "command": command("benchmarks.gpu", sys.argv[1:]),
        "protocol": "interleaved calls on a cold cache, CUDA events, medians; see benchmarks/gpu.py",
    }


def main() -> None:
    """Run the rows; results are written after each, so that a stop loses one row at most."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="*", help="rows whose names match this pattern")
    parser.add_argument("--quick", action="store_true", help="three rounds of each row")
    parser.add_argument("--out", type=Path, required=True, help="results file")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    HOST_COST.update(host_cost())
    rows: list[dict[str, Any]] = []
    for workload in workloads.load(options.rows, full=True):
        for dtype in dict.fromkeys((workload.dtype, "float32")):
            try:
                row = time_row(workload, dtype, 3 if options.quick else 15)
            except Exception as error:
                row = {"name": workload.name, "dtype": dtype, "failed": f"{type(error).__name__}: {error}"}
            rows.append(row)
            options.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
            ratios = {name: rival.get("ratio", "failed") for name, rival in row.get("rivals", {}).items()}
            outcome = row.get("chosen", row.get("failed", ""))
            print(workload.name, dtype, outcome, row.get("ours", ""), ratios, flush=True)
            cupy.get_default_memory_pool().free_all_blocks()


if __name__ == "__main__":
    main()
