# SPDX-License-Identifier: MIT
"""Text of the device sources: find kernels/, splice local includes, keep line numbers, hash.

The whole source of a kernel is handed to the compiler as one string, because compile caches key on that string and
do not see the contents of headers reached through an include path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


#: Kernels for one architecture alone, whose instructions its usual name leaves out, and the name that has them.
ARCHITECTURES = {"implicit_gemm_wgmma": "sm_90a"}


def kernel_directory() -> Path:
    """Directory of the .cu and .cuh files: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "common.cuh").is_file():
            return candidate
    raise FileNotFoundError(f"expected kernels/common.cuh in {package} or {package.parent}, got neither")


def flatten(path: str | Path, include_directories: Sequence[str | Path] = ()) -> str:
    """Source of `path` with every quoted include spliced in once, and #line directives that keep its own numbering.

    Includes are looked up beside the including file, then in `include_directories`, then in kernels/; one that is in
    none of them (the emulator's own header) stays as it is.
    """
    directories = tuple(Path(d) for d in include_directories) + (kernel_directory(),)
    return _splice(Path(path).resolve(), directories, set())


def _splice(path: Path, directories: tuple[Path, ...], seen: set[Path]) -> str:
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        match = _INCLUDE.match(line)
        if match:
            found = next((d / match[1] for d in (path.parent, *directories) if (d / match[1]).is_file()), None)
            if found is None:
                lines.append(line)
                continue
            found = found.resolve()
            if found not in seen:
                lines.append(_splice(found, directories, seen))
            lines.append(f'#line {number + 1} "{path.name}"')
        else:
            lines.append("" if line.strip() == "#pragma once" else line)
    return "\n".join(lines)


@cache
def kernel_source(stem: str) -> str:
    """Flattened source of kernels/<stem>.cu."""
    return flatten(kernel_directory() / f"{stem}.cu")


def compiler_options(stem: str) -> tuple[str, ...]:
    """What the compiler is told about kernels/<stem>.cu besides its defines; sm_90a prevails over sm_90 beside it."""
    architecture = ARCHITECTURES.get(stem)
    return ("-std=c++17",) if architecture is None else ("-std=c++17", f"-arch={architecture}")


def source_hash(text: str) -> str:
    """Short stable name of a source text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
