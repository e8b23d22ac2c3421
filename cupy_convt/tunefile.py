# SPDX-License-Identifier: MIT
"""Where measurements are kept: one JSON file for each device and version of the library, in the user's cache directory.

A file is read when the first choice for its device is made, and silently used. One that is damaged, or of another
device, version or format, is ignored with one warning. Files are replaced whole, so a reader never sees half of one. To
ship measurements, copy the file to the same place, or point CUPY_CONVT_CACHE_DIR at a directory that has it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any

from cupy_convt.core.device import DeviceSpec
from cupy_convt.core.size_class import Times, Tuned
from cupy_convt.core.version import __version__

#: Changes when the file's layout does.
FORMAT = 1
_loaded: dict[Path, Tuned | None] = {}
_lock = Lock()
_watchers: list[Callable[[], None]] = []


def when_changed(call: Callable[[], None]) -> None:
    """Call it whenever the measurements in use have changed."""
    _watchers.append(call)


def _changed() -> None:
    for call in _watchers:
        call()


def cache_directory(environment: Mapping[str, str] = os.environ, system: str = sys.platform) -> Path:
    """$CUPY_CONVT_CACHE_DIR, else the directory that the platform has for what can be made again.

    Raises:
        RuntimeError: the user has no home directory.
    """
    if environment.get("CUPY_CONVT_CACHE_DIR"):
        return Path(environment["CUPY_CONVT_CACHE_DIR"]).expanduser()
    if system == "win32":
        local = environment.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "cupy_convt" / "Cache"
    if system == "darwin":
        return Path.home() / "Library" / "Caches" / "cupy_convt"
    given = environment.get("XDG_CACHE_HOME", "")
    # the XDG specification has relative paths ignored
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "cupy_convt"


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def identity(device: DeviceSpec) -> dict[str, Any]:
    """What makes two devices the same one to a file of measurements."""
    name = _cpu_model() if device.is_cpu else device.name
    return {"name": name, "kind": device.kind, "multiprocessors": device.multiprocessors}


def path_of(device: DeviceSpec) -> Path:
    """The file of a device and this version of the library.

    Raises:
        RuntimeError: the user has no home directory.
    """
    known = identity(device)
    name = re.sub(r"[^a-z0-9]+", "-", known["name"].lower()).strip("-")
    return cache_directory() / f"tuned-{name}-{known['multiprocessors']}-{__version__}.json"


def parse(text: str, device: DeviceSpec) -> dict[str, dict[str, float]]:
    """The measurements in a file's text.

    Raises:
        ValueError: it is no such file, or of another device, version or format.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("expected an object")
    for name, wanted in (("format", FORMAT), ("version", __version__), ("device", identity(device))):
        if data.get(name) != wanted:
            raise ValueError(f"{name}: expected {wanted!r}, got {data.get(name)!r}")
    classes = data.get("classes")
    if not isinstance(classes, dict):
        raise ValueError("classes: expected an object")
    for key, times in classes.items():
        if not isinstance(times, dict) or not all(_is_time(value) for value in times.values()):
            raise ValueError(f"classes: expected seconds > 0 by plan in {key!r}")
    return classes


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0


def tuned_for(device: DeviceSpec) -> Tuned | None:
    """The measurements of a device, None if there are none that can be used."""
    try:
        path = path_of(device)
    except RuntimeError:
        return None
    with _lock:
        if path not in _loaded:
            _loaded[path] = _read(path, device)
        return _loaded[path]


def _read(path: Path, device: DeviceSpec) -> Tuned | None:
    try:
        return Tuned(parse(path.read_text(encoding="utf-8"), device))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"the measurements in {path} are ignored: {reason}; `cupy-convt tune --reset` removes them",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def save(device: DeviceSpec, classes: Mapping[str, Times], versions: Mapping[str, str]) -> Path:
    """Add classes to a device's file and to what is loaded; the file's other classes stay.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: the user has no home directory.
    """
    path = path_of(device)
    with _lock:
        before = _read(path, device)
        merged = {**(before.classes if before else {}), **{key: dict(times) for key, times in classes.items()}}
        data = {
            "format": FORMAT,
            "version": __version__,
            "device": identity(device),
            "versions": dict(versions),
            "date": datetime.date.today().isoformat(),
            "classes": merged,
        }
        _replace(path, json.dumps(data, indent=1) + "\n")
        _loaded[path] = Tuned(merged)
    _changed()
    return path


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def reset(device: DeviceSpec) -> Path | None:
    """Remove a device's file; its path if there was one."""
    path = path_of(device)
    try:
        with _lock:
            _loaded[path] = None
            path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return None
    finally:
        _changed()
    return path


def forget_loaded() -> None:
    """Read the files again at the next choice."""
    with _lock:
        _loaded.clear()
    _changed()
