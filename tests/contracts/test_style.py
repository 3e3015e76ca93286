"""What good intentions do not keep: short functions, short files, no dead settings, one place for packaging."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path

import pytest

from sam_ds.config import tree
from sam_ds.config.schema import Recipe
from tests.contracts.source import ROOT, attributes_read, modules

MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 300
FILES = sorted(
    path.relative_to(ROOT)
    for path in itertools.chain.from_iterable(
        (ROOT / folder).rglob("*.py") for folder in ("sam_ds", "benchmarks", "kernels")
    )
)


# Settings that only complete a sum that the config checks: what the others leave over.
IMPLIED = {"prompts.none"}
# Reading a setting to check it is no use of it, nor is setting it.
CHECKS = ("sam_ds.config.validate", "sam_ds.recipes")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_and_files_are_short(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", [name for name, _ in tree.leaves(Recipe) if name not in IMPLIED])
def test_every_setting_is_read_by_something(name: str) -> None:
    leaf = name.rpartition(".")[2]
    readers = [module for module in modules() if leaf in attributes_read(module) and not module.startswith(CHECKS)]
    assert readers, f"nothing reads {name}: a setting that does nothing misleads"


def test_the_recipe_is_frozen_all_the_way_down() -> None:
    def check(cls: type) -> None:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
        for hint in tree.hints(cls).values():
            if dataclasses.is_dataclass(hint):
                check(hint)  # type: ignore[arg-type]

    check(Recipe)


def test_packaging_has_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project" not in project
    assert "[tool.setuptools" not in project
    assert not (ROOT / "setup.cfg").exists()
    # A package called kernels would shadow the public one that transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()
