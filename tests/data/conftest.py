"""A small drawn set, made once, and a way to make sets with one fault in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_ds.data.synthetic import SyntheticConfig, synthesize

SMALL = SyntheticConfig(train=12, val=2, size=(64, 96), objects=(3, 6))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with sa_1 to sa_12, val/ with two more; loose files."""
    folder = tmp_path_factory.mktemp("drawn")
    synthesize(folder, SMALL)
    return folder


@pytest.fixture
def loose(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the training pictures that a test may damage."""
    folder = tmp_path / "loose"
    shutil.copytree(drawn / "train", folder, ignore=shutil.ignore_patterns(".*"))
    return folder


@pytest.fixture
def change_json(loose: Path) -> Callable[[int, Callable[[dict], None]], None]:
    """Change the JSON of one picture of ``loose`` in place."""

    def change(picture: int, how: Callable[[dict], None]) -> None:
        path = loose / f"sa_{picture}.json"
        info = json.loads(path.read_text())
        how(info)
        path.write_text(json.dumps(info))

    return change
