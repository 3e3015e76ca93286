"""Packages that only some tasks need: the extras of the installation."""

from __future__ import annotations

from importlib.util import find_spec

from sam_ds.config.errors import UserError


def need(what: str, packages: tuple[str, ...], extra: str) -> None:
    """Raise UserError unless the packages, which that extra brings, are installed. They are not imported."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install 'sam-ds[{extra}]'")
