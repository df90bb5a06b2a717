"""Who may import whom. The rooms and their arrows are described in docs/design.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of the library as a whole; `make check` prints what it has. A feature has to be worth its lines.
MAX_LIBRARY_LINES = 45_900

OPEN_TO_ALL = {
    "ir", "errors", "units", "sampling", "files", "toml", "trees", "preprocessing", "onnx_size",
}  # fmt: skip
STAGES = {
    "frontend", "budget", "sparsity", "training", "encoding", "export", "kernels", "firmware",
    "targets", "tasks", "verify", "report", "least_squares", "extreme",
}  # fmt: skip
# A room that is not listed here fails the test: whoever adds one decides what it may know.
MAY_IMPORT: dict[str, set[str]] = {
    "": {"api", "gate", "kernels", "export", "pruner", "report", "targets"},  # hwprune/__init__.py
    "api": {"compiler", "job", "frontend", "notebook", "steps", "targets", "tasks"},
    "notebook": set(),
    "gate": {"export", "frontend", "targets", "tasks", "verify"},
    "pruner": {
        "export",
        "api",
        "compiler",
        "job",
        "steps",
        "training",
        "extreme",
        "sparsity",
        "tasks",
        "targets",
    },
    "integrations": {"pruner", "training"},
    "ir": set(),
    "errors": set(),
    "sampling": set(),
    "trees": set(),
    "preprocessing": set(),
    "onnx_size": set(),
    "files": set(),
    "toml": {"errors"},
    "__main__": {"cli"},
    "units": {"errors"},
    "frontend": {"tasks"},
    "tasks": set(),
    "targets": set(),
    "sparsity": set(),
    "encoding": set(),
    "report": set(),
    "sweep": set(),
    "remote": {"kernels"},
    "calibrate": {"encoding", "export", "remote"},
    "kernels": set(),
    "firmware": {"encoding", "targets"},
    "budget": {"encoding", "targets"},
    "export": {"encoding"},
    "training": {"sparsity", "tasks"},
    "least_squares": {"sparsity", "tasks", "training"},
    "extreme": {"sparsity", "training"},
    "verify": {"encoding", "export", "firmware", "kernels", "targets", "tasks"},
    "job": STAGES | {"steps"},
    "compiler": STAGES | {"steps", "job"},
    "steps": STAGES | {"steps", "job"},  # the compiler's own stages, one file each
    "cli": {
        "calibrate",
        "gate",
        "sparsity",
        "remote",
        "kernels",
        "sweep",
        "tasks",
        "compiler",
        "job",
        "steps",
        "training",
        "frontend",
        "verify",
        "report",
        "targets",
        "export",
    },
}
# These run on CI machines and boards where nothing of the extra `compile` is installed.
WITHOUT_TORCH = {
    "ir", "errors", "units", "sampling", "files", "toml", "trees", "preprocessing", "onnx_size",
    "verify", "calibrate", "gate", "report", "targets", "kernels", "encoding", "budget", "cli",
    "tasks", "firmware", "export.artifact", "export.operators", "frontend.data", "frontend.sources",
    "frontend.task_file",
}  # fmt: skip
COMPILE_EXTRA = {
    "torch", "torchvision", "onnxscript", "onnx_ir", "safetensors", "sklearn", "PIL", "timm",
}  # fmt: skip
ENCODING_MAY_IMPORT = {"numpy", "scipy"}


def python_files() -> list[Path]:
    """Every Python file of the package; cli and targets by their own folders, not by the links."""
    inside = [
        path
        for path in (ROOT / "hwprune").rglob("*.py")
        if path.relative_to(ROOT / "hwprune").parts[0] not in ("cli", "targets")
    ]
    return sorted(
        inside + [path for name in ("cli", "targets") for path in (ROOT / name).rglob("*.py")]
    )


def module_of(path: Path) -> str:
    """The name inside the package: ``export.artifact``, or empty for hwprune/__init__.py."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "hwprune":
        parts = parts[1:]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name, wherever the import stands; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def imports_at_load(body: list[ast.stmt]) -> Iterator[str]:
    """The imports that run when the module is loaded: not those inside functions."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_type_checking(node):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        for field in ("body", "orelse", "finalbody", "handlers"):
            yield from imports_at_load(getattr(node, field, []))


def hwprune_modules(names: Iterator[str]) -> Iterator[str]:
    for name in names:
        if name == "hwprune" or name.startswith("hwprune."):
            yield name.removeprefix("hwprune").removeprefix(".")


FILES = python_files()


def needs_no_torch(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in WITHOUT_TORCH)


def test_the_walk_finds_the_package() -> None:
    rooms = {room_of(module_of(path)) for path in FILES}
    assert {"", "ir", "frontend", "sparsity", "encoding", "cli", "targets"} <= rooms
    assert rooms <= set(MAY_IMPORT), "add the arrows of the new room here and to docs/design.md"


def test_arrows() -> None:
    broken = []
    for path in FILES:
        room = room_of(module_of(path))
        allowed = MAY_IMPORT[room] | OPEN_TO_ALL | ({room} if room else set())
        for module in hwprune_modules(imports(ast.parse(path.read_text()))):
            # A bare `import hwprune` inside the package is an arrow back to the front door.
            if room_of(module) not in allowed:
                broken.append(f"{path.relative_to(ROOT)} must not import hwprune.{module}")
    assert broken == []


def test_an_arrow_is_seen_wherever_the_import_stands() -> None:
    code = "import os\ndef f():\n    from hwprune.cli import main\nimport hwprune.ir as ir\n"
    assert sorted(hwprune_modules(imports(ast.parse(code)))) == ["cli.main", "ir"]
    tree = ast.parse("try:\n    import torch\nexcept ImportError:\n    pass\n" + code)
    assert list(imports_at_load(tree.body)) == ["torch", "os", "hwprune.ir"]


def test_rooms_that_work_without_the_compile_extra() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name} when it is loaded"
        for path in FILES
        if needs_no_torch(module_of(path))
        for name in imports_at_load(ast.parse(path.read_text()).body)
        if name.partition(".")[0] in COMPILE_EXTRA
    ]
    assert broken == []


def test_encoding_knows_numpy_and_scipy_only() -> None:
    allowed = ENCODING_MAY_IMPORT | {"hwprune"} | sys.stdlib_module_names
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if room_of(module_of(path)) == "encoding"
        for name in imports(ast.parse(path.read_text()))
        if name.partition(".")[0] not in allowed
    ]
    assert broken == []


def test_sparsity_and_kernels_know_no_onnx() -> None:
    forbidden = {"sparsity": {"onnx", "onnxruntime"}, "kernels": {"onnx"}}
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        for name in imports(ast.parse(path.read_text()))
        if name.partition(".")[0] in forbidden.get(room_of(module_of(path)), set())
    ]
    assert broken == []


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    found.pop("PrunerCallback")  # one a library, each called as callbacks are there
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_files_import_each_other() -> None:
    known = {"hwprune." + module_of(path) for path in FILES}
    arrows = {
        "hwprune." + module_of(path): {
            name if name in known else name.rpartition(".")[0]
            for name in imports(ast.parse(path.read_text()))
            if name in known or name.rpartition(".")[0] in known
        }
        for path in FILES
    }

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = list(arrows[start] - {start})
        while waiting:
            module = waiting.pop()
            if module not in found:
                found.add(module)
                waiting.extend(arrows.get(module, ()))
        return found

    assert [module for module in sorted(arrows) if module in reached(module)] == []


def library_lines() -> int:
    return sum(len(path.read_text().splitlines()) for path in FILES)


def test_the_library_stays_small() -> None:
    print(f"the library has {library_lines():,} lines of Python, of {MAX_LIBRARY_LINES:,} at most")
    assert library_lines() <= MAX_LIBRARY_LINES


def test_folders_only_hand_on_names() -> None:
    for path in FILES:
        if path.name != "__init__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            # A lazy __getattr__ hands on names too; classes and other functions are content.
            is_content = isinstance(node, ast.ClassDef) or (
                isinstance(node, ast.FunctionDef) and not node.name.startswith("__")
            )
            assert not is_content, f"{path.relative_to(ROOT)} line {node.lineno}"


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the compile extra cannot be imported."""
    # matplotlib needs Pillow, so an installation without the extra has that one.
    blocked = sorted(COMPILE_EXTRA - {"PIL"})
    head = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_these_rooms_load_where_torch_is_absent() -> None:
    wanted = [module_of(path) for path in FILES if needs_no_torch(module_of(path))]
    code = f"import importlib\nfor name in {wanted!r}: importlib.import_module('hwprune.' + name)\n"
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr


def test_blocking_works() -> None:
    assert "ModuleNotFoundError" in run_blocked("import torch").stderr
