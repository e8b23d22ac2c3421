# SPDX-License-Identifier: MIT
"""Compile a flattened kernel source with NVRTC and read the compiler's own resource report. No GPU, no driver.

NVRTC is loaded through ctypes from the `nvidia-cuda-nvrtc` wheel, or from a system toolkit. The options are those
that `cupy.RawModule` always adds, so registers and spills are those that users get.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")
_NEEDED_HEADERS = ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h")


class NvrtcUnavailable(RuntimeError):
    """No libnvrtc or no CUDA headers were found."""


class NvrtcError(RuntimeError):
    """The compiler rejected the source; the message holds its log."""


@dataclass(frozen=True)
class Resources:
    """What one kernel entry costs on one architecture, as ptxas reports it.

    shared is static shared memory, rounded up to the alignment of an `extern __shared__` array if the source declares
    one; cubin_bytes is the whole cubin, with the other entries compiled beside it.
    """

    entry: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    barriers: int
    cubin_bytes: int
    warnings: tuple[str, ...] = ()


def _nvidia_directories() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []


def _toolkit_directories() -> list[Path]:
    named = [Path(os.environ[v]) for v in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(v)]
    return named + [Path("/usr/local/cuda")] + sorted(Path("/usr/local").glob("cuda-*"), reverse=True)


def library_candidates() -> list[str]:
    """Every libnvrtc worth trying: wheels of CUDA 13, wheels of CUDA 12, toolkits, the loader's own path."""
    found: list[Path] = []
    for root in _nvidia_directories():
        for folder in ("cu13/lib", "cu12/lib", "cuda_nvrtc/lib"):
            found += sorted((root / folder).glob("libnvrtc.so.*"))
    for root in _toolkit_directories():
        found += sorted((root / "lib64").glob("libnvrtc.so*"))
    system = ctypes.util.find_library("nvrtc")
    names = [str(p) for p in found if "alt" not in p.name] + ([system] if system else [])
    return list(dict.fromkeys(names))


@lru_cache(maxsize=1)
def include_directories() -> tuple[str, ...]:
    """Directories that together hold every header that kernels/common.cuh reaches.

    All directories are of one CUDA installation: the wheels if they are complete, else a toolkit.
    """
    wheels: list[Path] = []
    for root in _nvidia_directories():
        wheels += [root / "cu13/include", root / "cu13/include/cccl"]
        wheels += [root / "cu12/include", root / "cuda_runtime/include", root / "cuda_cccl/include"]
        wheels += [root / "cuda_nvcc/include"]
    groups = [wheels] + [[root / "include", root / "include/cccl"] for root in _toolkit_directories()]
    for group in groups:
        present = [p for p in group if p.is_dir()]
        if all(any((p / header).is_file() for p in present) for header in _NEEDED_HEADERS):
            return tuple(map(str, present))
    raise NvrtcUnavailable(f"expected {', '.join(_NEEDED_HEADERS)} in the nvidia wheels or a CUDA toolkit, got neither")


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    tried = []
    for path in library_candidates():
        try:
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # else it is looked for on the loader's path
            library = ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"{path}: {error}")
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise NvrtcUnavailable("expected a loadable libnvrtc, got none: " + ("; ".join(tried) or "no candidates"))


def version() -> tuple[int, int]:
    """Version of the compiler, as (major, minor)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def supported_architectures() -> tuple[str, ...]:
    """Architectures this NVRTC compiles for, as sm_XX, without the feature-specific ones."""
    count = ctypes.c_int()
    _library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    values = (ctypes.c_int * count.value)()
    _library().nvrtcGetSupportedArchs(values)
    return tuple(f"sm_{v}" for v in values)


def available() -> bool:
    """True if a compiler and its headers are there; lets tests skip."""
    try:
        _library()
        include_directories()
    except NvrtcUnavailable:
        return False
    return True


def define_options(defines: Mapping[str, object] | None) -> list[str]:
    """-D options of a mapping; a value of None defines the bare name."""
    return [f"-D{k}" if v is None else f"-D{k}={v}" for k, v in (defines or {}).items()]


def compile_kernel(
    code: str,
    entry: str,
    defines: Mapping[str, object] | None = None,
    arch: str = "sm_80",
    options: Sequence[str] = (),
) -> Resources:
    """Resources of `entry` (an extern "C" name, or a template's name expression) compiled from `code` for `arch`."""
    return compile_kernels(code, [entry], defines, arch, options)[entry]


def compile_kernels(
    code: str,
    entries: Sequence[str],
    defines: Mapping[str, object] | None = None,
    arch: str = "sm_80",
    options: Sequence[str] = (),
) -> dict[str, Resources]:
    """Resources of several entries of one source; the cubin is compiled once."""
    cubin, log, lowered = compile_cubin(code, entries, defines, arch, options)
    reports = _parse_log(log)
    warnings = tuple(line for line in log.splitlines() if "warning" in line.lower())
    missing = [e for e in entries if lowered[e] not in reports]
    if missing:
        raise NvrtcError(f"expected entries {missing} in the compiled source, got {sorted(reports)}\n{log}")
    return {e: Resources(e, arch, **reports[lowered[e]], cubin_bytes=len(cubin), warnings=warnings) for e in entries}


def compile_cubin(
    code: str,
    entries: Sequence[str],
    defines: Mapping[str, object] | None = None,
    arch: str = "sm_80",
    options: Sequence[str] = (),
) -> tuple[bytes, str, dict[str, str]]:
    """The cubin, the compiler's log and the mangled name of every entry."""
    return _compile(code, entries, defines, arch, options, "CUBIN")


def compile_ptx(code: str, entry: str, defines: Mapping[str, object] | None = None, arch: str = "sm_80") -> str:
    """PTX of one entry: what there is to read without a disassembler."""
    return _compile(code, [entry], defines, arch, (), "PTX")[0].decode().rstrip("\0")


def _compile(
    code: str,
    entries: Sequence[str],
    defines: Mapping[str, object] | None,
    arch: str,
    options: Sequence[str],
    kind: str,
) -> tuple[bytes, str, dict[str, str]]:
    library = _library()
    flags = [f"-arch={arch}", *OPTIONS, *define_options(defines), *options]
    flags += [f"-I{d}" for d in include_directories()]
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None))
    try:
        templates = [e for e in entries if "<" in e]
        for entry in templates:
            _check(library.nvrtcAddNameExpression(program, entry.encode()))
        encoded = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
        status = library.nvrtcCompileProgram(program, len(flags), encoded)
        log = _text(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).decode(errors="replace")
        log = log.rstrip("\0")
        if status:
            reason = library.nvrtcGetErrorString(status).decode()
            raise NvrtcError(f"{reason} for {', '.join(entries)} with {' '.join(flags)}\n{log}")
        lowered = {}
        for entry in entries:
            name = ctypes.c_char_p(entry.encode())
            if entry in templates:
                _check(library.nvrtcGetLoweredName(program, entry.encode(), ctypes.byref(name)))
            lowered[entry] = name.value.decode()
        made = _text(program, getattr(library, f"nvrtcGet{kind}Size"), getattr(library, f"nvrtcGet{kind}"))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return made, log, lowered


def _check(status: int) -> None:
    if status:
        raise NvrtcError(_library().nvrtcGetErrorString(status).decode())


def _text(program: ctypes.c_void_p, size_function, read_function) -> bytes:
    size = ctypes.c_size_t()
    _check(size_function(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(max(1, size.value))
    _check(read_function(program, buffer))
    return buffer.raw[: size.value]


_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def _parse_log(log: str) -> dict[str, dict[str, int]]:
    reports: dict[str, dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            current = reports.setdefault(match[1], dict(stack=0, spill_stores=0, spill_loads=0, shared=0, barriers=0))
        if current is None:
            continue
        if match := _FRAME.search(line):
            current.update(stack=int(match[1]), spill_stores=int(match[2]), spill_loads=int(match[3]))
        if match := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(match[1])
            for key, pattern in (("shared", r"(\d+) bytes smem"), ("barriers", r"used (\d+) barriers")):
                if found := re.search(pattern, line):
                    current[key] = int(found[1])
    return reports
