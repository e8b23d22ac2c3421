# SPDX-License-Identifier: MIT
"""The judge of ARCHITECTURE.md's table: who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import cupy_convt

PACKAGE = Path(cupy_convt.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "ARCHITECTURE.md"


def allowed() -> dict[str, set[str]]:
    """Rows `| room | may import |` of the document's table of imports."""
    table = DOCUMENT.read_text().split("<!-- imports -->")[1].split("<!-- /imports -->")[0]
    rows = re.findall(r"^\| `([\w./]+)` \| (.*?) \|", table, re.M)
    return {room: set(re.findall(r"`([\w./]+)`", imports)) for room, imports in rows}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else parts[-1].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "cupy_convt":
                names = [f"cupy_convt.{alias.name}" for alias in node.names]
        found.update(names)
    return found


def test_every_import_is_in_the_table() -> None:
    table, faults = allowed(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        assert room in table, f"{room} is not in the table of imports"
        for name in imports_of(path):
            if name.split(".")[0] == "cupy_convt":
                target = (name.split(".") + ["__init__"])[1]
                if target != room and target not in table[room]:
                    faults.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not faults


def test_core_imports_the_standard_library_only() -> None:
    for path in (PACKAGE / "core").glob("*.py"):
        outside = {name.split(".")[0] for name in imports_of(path)} - {"cupy_convt"} - set(sys.stdlib_module_names)
        assert not outside, f"{path.name} imports {outside}"


def test_cupy_is_imported_in_one_file_only() -> None:
    users = {p.name for p in PACKAGE.rglob("*.py") if any(n.split(".")[0] in ("cupy", "cupyx") for n in imports_of(p))}
    assert users <= {"gpu.py", "doctor.py"}


def test_importing_the_package_imports_no_gpu_library_and_none_of_the_extras() -> None:
    code = (
        "import sys, cupy_convt, cupy_convt.cli; "
        "print([m for m in ('cupy', 'torch', 'ml_dtypes', 'openvino', 'soundfile', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_pinned() -> None:
    assert cupy_convt.__all__ == sorted(cupy_convt.__all__)
    assert set(cupy_convt.__all__) == {
        "ConvTranspose1d",
        "__version__",
        "conv_transpose1d",
        "explain",
        "output_length",
        "precompile",
        "prepare",
        "reference",
        "tune",
        "upsample",
        "workspace_limit",
    }
    assert all(hasattr(cupy_convt, name) for name in cupy_convt.__all__)
