# SPDX-License-Identifier: MIT
"""The commands that measure: `cupy-convt tune` and `cupy-convt bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cupy_convt import bench, cli_layers, tunefile, tuning
from cupy_convt.core.size_class import Times
from cupy_convt.devices import device_spec
from cupy_convt.explain import format_seconds
from cupy_convt.soundfiles import AudioError, UsageError


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds >= 0, got {text!r}")
    return number


def add_commands(commands: Any) -> None:
    """Add both to the parser's sub-commands."""
    tune = commands.add_parser("tune", help="measure the plans of a layer on this device", allow_abbrev=False)
    cli_layers.add_layer(tune, required=False)
    tune.add_argument(
        "--problems", metavar="JSON", type=Path, help="file with a list of layers: objects with explain's arguments"
    )
    tune.add_argument("--device", type=cli_layers.device, default="cpu", help="cpu (default), cuda or cuda:N")
    tune.add_argument("--seconds", type=_seconds, default=0.5, help="time for each size class (0.5)")
    tune.add_argument("--show", action="store_true", help="print what is kept for the device, measure nothing")
    tune.add_argument("--reset", action="store_true", help="remove what is kept for the device, measure nothing")
    tune.set_defaults(run=_tune)

    speed = commands.add_parser("bench", help="time some layers on this device", allow_abbrev=False)
    speed.add_argument("--rows", metavar="GLOB", default="*", help="layers whose names match; --rows '' lists them")
    speed.add_argument("--device", type=cli_layers.device, default="cpu", help="cpu (default), cuda or cuda:N")
    speed.add_argument("--seconds", type=_seconds, default=0.5, help="time for each layer (0.5)")
    speed.add_argument("--json", metavar="FILE", type=Path, help="also write the times to a file")
    speed.set_defaults(run=_bench)


def _problems(options: argparse.Namespace) -> list[Any]:
    if options.problems is not None:
        if options.x is not None or options.weight is not None:
            raise UsageError("--problems: expected no --x and --weight beside it")
        try:
            found = json.loads(options.problems.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"--problems: expected a JSON file, got {options.problems}: {error}") from error
        if not isinstance(found, list):
            raise UsageError(f"--problems: expected a list of objects, got {type(found).__name__}")
        return found
    if options.x is None or options.weight is None:
        raise UsageError("tune: expected --x and --weight, --problems, --show or --reset")
    return [cli_layers.layer(options)]


def _tune(options: argparse.Namespace) -> int:
    if options.show and options.reset:
        raise UsageError("tune: expected --show or --reset, got both")
    if options.show or options.reset:
        return _keep(options)
    problems = _problems(options)
    try:
        tuning.tune(problems, device=options.device, seconds=options.seconds, report=_print_class)
        path = tunefile.path_of(_spec(options.device))
    except TypeError as error:
        raise UsageError(str(error)) from error
    except ImportError as error:
        raise AudioError(f"device: cannot use {options.device!r}: {error}") from error
    print(f"saved in {path}")
    return 0


def _spec(device: str) -> Any:
    try:
        return device_spec(device)
    except (ImportError, RuntimeError) as error:
        raise AudioError(f"device: cannot use {device!r}: {error}") from error


def _keep(options: argparse.Namespace) -> int:
    spec = _spec(options.device)
    if options.reset:
        path = tunefile.reset(spec)
        print(f"removed {path}" if path else f"nothing was kept in {tunefile.path_of(spec)}")
        return 0
    tuned = tunefile.tuned_for(spec)
    path = tunefile.path_of(spec)
    if tuned is None:
        print(f"nothing is kept in {path}")
        return 0
    print(f"{path}: {len(tuned.classes)} size classes")
    for key, times in tuned.classes.items():
        _print_class(key, times)
    return 0


def _print_class(key: str, times: Times) -> None:
    print(key)
    for name, seconds in sorted(times.items(), key=lambda pair: pair[1]):
        print(f"  {name:34s} {format_seconds(seconds):>10s}", flush=True)


def _bench(options: argparse.Namespace) -> int:
    chosen = bench.rows(options.rows)
    if not chosen:
        raise UsageError(f"--rows: expected a pattern among {', '.join(row.name for row in bench.ROWS)}")
    spec = _spec(options.device)
    units = "cores" if spec.is_cpu else "multiprocessors"
    print(f"{tunefile.identity(spec)['name']}, {spec.multiprocessors} {units}; median times")
    print(bench.HEAD)
    results = []
    for row in chosen:
        results.append(bench.time_row(row, options.device, options.seconds))
        print(bench.line(results[-1]), flush=True)
    if options.json is not None:
        data = {"environment": bench.environment(spec), "rows": results}
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0
