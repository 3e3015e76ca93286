"""The house's rules of import: only from lower floors, no circles, one importer of DeepSpeed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.contracts.source import PACKAGE, ROOT, imports, modules

FLOORS = {
    "types": 0,
    "config": 0,
    "ops": 1,
    "recipes": 1,
    "modeling": 2,
    "losses": 2,
    "prompts": 2,
    "data": 2,
    "optim": 2,
    "storage": 2,
    "tracking": 2,
    "tasks": 3,
    "engine": 4,
    "evaluation": 4,
    "planning": 4,
    "training": 5,
    "cli": 6,
}
# Above all floors: what Python and the launcher start.
ROOF = {PACKAGE, f"{PACKAGE}.__main__"}
ENGINE_ONLY = {"deepspeed", "fairscale", "apex"}


def part(module: str) -> str:
    """The package a module belongs to: ``sam_ds.data.index`` → ``data``."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(set(modules()) - ROOF))
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    own = part(module)
    assert own in FLOORS, f"{module} is on no floor"
    for target, line in imports(module):
        if target.split(".")[0] != PACKAGE or target == PACKAGE or part(target) == own:
            continue
        assert FLOORS[part(target)] < FLOORS[own], f"{module}, line {line}: {target} is not on a lower floor"


def test_recipes_know_the_config_only() -> None:
    for module in modules():
        if module.startswith(f"{PACKAGE}.recipes"):
            ours = {target for target, _ in imports(module) if target.startswith(PACKAGE)}
            assert all(part(target) in {"config", "recipes"} for target in ours), module


def test_there_are_no_circles() -> None:
    edges = {
        module: {target for target, _ in imports(module, top_level=True) if target in modules() and target != module}
        for module in modules()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in edges[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(modules()))
def test_only_the_engine_imports_deepspeed(module: str) -> None:
    if module.startswith(f"{PACKAGE}.engine"):
        return
    for target, line in imports(module):
        assert target.split(".")[0] not in ENGINE_ONLY, f"{module}, line {line}: only sam_ds.engine imports {target}"


def test_the_config_and_the_commands_are_light() -> None:
    """Recipes, checks of a config and --help must not wait for torch."""
    heavy = {"torch", "numpy", "mlflow", "matplotlib", "numba", "PIL"}
    for module in modules():
        if part(module + ".") in {"config", "recipes", "cli"}:
            names = {target.split(".")[0] for target, _ in imports(module, top_level=True)}
            assert not names & heavy, f"{module} imports {names & heavy} before it needs it"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_the_kernels_know_torch_and_triton_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top in {"torch", "triton"} | sys.stdlib_module_names, f"{path.name}, line {node.lineno}: {name}"
