"""Benchmarks are scripts: their folder is on the path of who imports from them."""

from __future__ import annotations

import pytest

from tests.contracts.source import ROOT


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
