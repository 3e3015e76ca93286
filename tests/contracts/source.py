"""The project's source as syntax trees, for the tests of its structure."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sam_ds"


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name; a package stands for its ``__init__``."""
    trees = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imports(module: str, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """What a module imports, as (dotted name, line); ``top_level`` leaves out what only runs or type checks later."""
    tree = modules()[module]
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, (_base(module, node.level), node.module)))
            yield from ((_target(source, alias.name), node.lineno) for alias in node.names)


@functools.cache
def attributes_read(module: str) -> frozenset[str]:
    """Every name that stands after a dot in a module."""
    return frozenset(node.attr for node in ast.walk(modules()[module]) if isinstance(node, ast.Attribute))


def _base(module: str, level: int) -> str:
    """The package that a relative import of ``level`` dots starts from; empty for an absolute one."""
    if level == 0:
        return ""
    is_package = (ROOT / Path(*module.split("."))).is_dir()
    up = level - 1 if is_package else level
    return ".".join(module.split(".")[: len(module.split(".")) - up])


def _target(module: str, name: str) -> str:
    """``from module import name`` imports a module of that name if there is one, else something in ``module``."""
    return f"{module}.{name}" if f"{module}.{name}" in modules() else module
