# SPDX-License-Identifier: MIT
"""Compile a kernel source with g++ into a shared object, with a cache that several processes may share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent / "emu"
SHARED_LIMIT = 232448  # SMEM_MAX in emu/rt_core.h
COMPILER = os.environ.get("CXX", "g++")
BASE_FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-strict-aliasing", "-fno-math-errno"),
    *("-ftrivial-auto-var-init=pattern", "-fno-extern-tls-init", "-mf16c", "-mfma", "-mavx2", "-DCT_EMU", "-w"),
]
MODE_FLAGS = {
    "fast": ["-O2", "-g1", "-gdwarf-4"],
    "check": [
        *("-O1", "-g1", "-gdwarf-4", "-DEMU_CHECK", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
        "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow",
    ],
}
# the traffic counters need the basic blocks of every lane's path, laid out in source order (emu/rt_counters.h)
COUNTER_FLAGS = ["-fsanitize-coverage=trace-pc", "-fno-reorder-blocks", "-fno-thread-jumps"]
compile_log: list[tuple[str, float, bool]] = []  # (what, seconds, found in the cache)

DRIVER_HEAD = """
#line 1 "driver"
thread_local __attribute__((aligned(1024))) unsigned char ct_smem[%d];
#define EMU_EXPORT extern "C" __attribute__((visibility("default"), no_sanitize("thread"), no_sanitize("undefined")))
"""
DRIVER_ENTRY = """EMU_EXPORT int ct_launch_%(i)d(void** a, const emu::Cfg* c) {
  return emu::launch([](void** v) { emu::invoke(&%(entry)s, v); }, a, c);
}
EMU_EXPORT const char* ct_signature_%(i)d() { return emu::sig(&%(entry)s); }
"""


class CompileError(RuntimeError):
    """g++ rejected a kernel source."""


def cache_directory() -> Path:
    """CONVT_EMULATOR_CACHE, else a directory of the user's; never inside a checkout."""
    named = os.environ.get("CONVT_EMULATOR_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cupy_convt-emulator"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError("g++ failed:\n" + " ".join(command) + "\n" + done.stderr[:4000])


def _publish(final: Path, build: Callable[[str], None]) -> None:
    """Build into a temporary file and rename it: a reader sees the whole file or none."""
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=final.parent, suffix=".tmp")
    os.close(handle)
    try:
        build(temporary)
        os.replace(temporary, final)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _key(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode() + b"\0")
    return digest.hexdigest()[:24]


@lru_cache(maxsize=1)
def _toolchain() -> str:
    """The emulator's own sources and the compiler's version: part of every cache key."""
    sources = "".join(p.read_text() for p in sorted(EMULATOR.iterdir()) if p.suffix in (".h", ".cpp"))
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    return _key(sources, version, BASE_FLAGS, DRIVER_HEAD, DRIVER_ENTRY)


def _runtime(mode: str) -> Path:
    final = cache_directory() / f"emu_rt_{mode}_{_toolchain()}.o"
    if not final.exists():
        start = time.time()
        flags = ["-O2", *BASE_FLAGS, *(["-DEMU_CHECK"] if mode == "check" else []), "-I", str(EMULATOR)]
        _publish(final, lambda out: _run([COMPILER, *flags, "-c", str(EMULATOR / "emu_rt.cpp"), "-o", out]))
        compile_log.append((f"emu_rt[{mode}]", time.time() - start, False))
    return final


def define_flags(defines: Mapping[str, object] | Sequence[str]) -> list[str]:
    """-D flags of {"NAME": value, "FLAG": None} or of ["NAME=value", "FLAG"]."""
    if isinstance(defines, Mapping):
        return [f"-D{k}" if v is None else f"-D{k}={v}" for k, v in defines.items()]
    return [f"-D{d}" for d in defines]


def build_shared_object(
    code: str,
    entries: Sequence[str],
    mode: str,
    defines: Mapping[str, object] | Sequence[str] = (),
    extra: Sequence[str] = (),
    name: str = "kernel",
) -> Path:
    """Path of the .so that holds `entries` of the flattened source `code`; compiled unless cached."""
    driver = DRIVER_HEAD % SHARED_LIMIT + "".join(DRIVER_ENTRY % {"i": i, "entry": e} for i, e in enumerate(entries))
    source = code + driver
    flags = [*BASE_FLAGS, *MODE_FLAGS[mode], *define_flags(defines), *extra]
    final = cache_directory() / f"{name}_{mode}_{_key(source, flags, _toolchain())}.so"
    start = time.time()
    hit = final.exists()
    if not hit:
        runtime = _runtime(mode)

        def build(out: str) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                text, compiled = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.o")
                text.write_text(source)
                _run([COMPILER, *flags, "-I", str(EMULATOR), "-c", str(text), "-o", str(compiled)])
                link = ["-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined", str(compiled), str(runtime), "-o", out]
                _run([COMPILER, *link])

        _publish(final, build)
    compile_log.append((f"{name}[{mode}] x{len(entries)}", time.time() - start, hit))
    return final
