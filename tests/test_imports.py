"""The rooms of the house: who may import whom, and that what people only read with never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room and what it may import of our own code. More specific rooms come first.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "monitor.signals": (),
    "monitor.errors": (),
    "monitor.guard": ("monitor.errors",),
    "monitor.runfile": ("monitor.signals", "monitor.errors", "monitor.guard", "monitor.runfile"),
    "monitor.importers": ("monitor.signals", "monitor.errors", "monitor.runfile", "monitor.importers"),
    "monitor.diagnosis": ("monitor.signals", "monitor.errors", "monitor.runfile", "monitor.diagnosis"),
    "monitor.landscape": ("monitor.signals", "monitor.errors", "monitor.guard", "monitor.landscape"),
    "monitor.alerts": ("monitor.errors",),
    "monitor.hook": (
        "monitor.alerts",
        "monitor.signals",
        "monitor.errors",
        "monitor.guard",
        "monitor.runfile",
        "monitor.landscape",
        "monitor.hook",
    ),
    "monitor.integrations": (
        "monitor.errors",
        "monitor.guard",
        "monitor.runfile",
        "monitor.hook",
        "monitor.integrations",
    ),
    "monitor": ("monitor",),
    "trainer.config": ("monitor.errors", "trainer.config", "trainer.schedules"),
    "trainer.commit": ("monitor.errors",),
    "trainer.launch": (
        "monitor.errors",
        "monitor.runfile",
        "trainer.commit",
        "trainer.config",
        "trainer.schedules",
        "trainer.launch",
    ),
    "trainer.sweep": (
        "monitor.signals",
        "monitor.errors",
        "monitor.runfile",
        "monitor.diagnosis",
        "trainer.config",
        "trainer.launch",
        "trainer.sweep",
    ),
    "trainer": ("monitor", "trainer"),
    "app": (
        "monitor.alerts",
        "monitor.signals",
        "monitor.errors",
        "monitor.runfile",
        "monitor.diagnosis",
        "monitor.importers",
        "trainer.config",
        "trainer.launch",
        "trainer.sweep",
        "app",
    ),
}

TORCH_ROOMS = ("monitor.hook", "monitor.landscape", "monitor.integrations", "trainer")
TORCH_FREE = (
    "trainer.commit",
    "trainer.config",
    "trainer.launch",
    "trainer.schedules",
    "trainer.stop",
    "trainer.sweep",
)
"""What of the trainer the page uses, or must be ready before torch is."""

WITHOUT_TORCH = (
    "monitor",
    "monitor.runfile.reader",
    "monitor.runfile.writer",
    "monitor.runfile.store",
    "monitor.diagnosis.engine",
    "monitor.importers",
    "trainer.config",
    "trainer.launch",
    "trainer.sweep",
    "trainer.sweep.driver",
    "app.cli",
    "app.main",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in the file, those under ``if TYPE_CHECKING:`` excepted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


SOURCES = sorted(path for top in ("app", "monitor", "trainer") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[module_name(path) for path in SOURCES])
def test_each_room_imports_only_what_it_may(path):
    module = module_name(path)
    room = next(room for room in MAY_IMPORT if inside(module, room))
    ours = {name for name in imports(path) if name.split(".")[0] in ("app", "monitor", "trainer")}
    allowed = MAY_IMPORT[room]
    wrong = sorted(name for name in ours if not any(inside(name, room) for room in allowed))
    assert not wrong, f"{module} may import {allowed or 'none of our modules'}, but imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=[module_name(path) for path in SOURCES])
def test_torch_is_imported_only_where_training_happens(path):
    module = module_name(path)
    if any(inside(module, room) for room in TORCH_ROOMS) and not any(inside(module, room) for room in TORCH_FREE):
        return
    assert not [name for name in imports(path) if name.split(".")[0] == "torch"], f"{module} imports torch"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_reading_a_run_does_not_load_torch(module):
    code = f"import sys; import {module}; sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
