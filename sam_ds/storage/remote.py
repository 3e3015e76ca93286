"""Copies of checkpoints in another place: an object store, another file system, whatever fsspec has a driver for.

The place holds the same folders as the run does. Of each the manifest is copied last, so one without it is not whole;
what is fetched is verified before it gets its name. An object store may show old listings for a while: then an older
checkpoint is gone back to, never a broken one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from sam_ds.config.errors import UserError
from sam_ds.storage.checkpoints import (
    MANIFEST,
    PARTIAL,
    commit,
    damaged,
    read_manifest,
    set_aside,
    step_folder,
    step_of,
)

T = TypeVar("T")
_STEP = re.compile(r"step_(\d{8})$")


class Mirror:
    """The checkpoints of one run at a URL, such as ``s3://bucket/runs/sam`` or ``file:///mnt/backup/sam``.

    Raises from all methods: OSError and what a driver raises for a place that does not answer.
    """

    def __init__(self, url: str) -> None:
        """Raises UserError for a URL that no installed driver knows."""
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"train.mirror={url}: {error}") from None
        self.url = url

    def steps(self) -> list[int]:
        """Of the whole checkpoints, in order."""
        if not self._files.exists(self._root):
            return []
        self._files.invalidate_cache()
        names = [entry.rstrip("/").rpartition("/")[2] for entry in self._files.ls(self._root, detail=False)]
        steps = sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
        return [step for step in steps if self._files.exists(f"{self._place(step)}/{MANIFEST}")]

    def push(self, folder: Path, dropped: Iterable[int] = ()) -> None:
        """Copy a checkpoint there, then delete the steps that its run has dropped."""
        step, manifest = step_of(folder), read_manifest(folder)
        place = self._place(step)
        self._delete(step)
        self._files.makedirs(place, exist_ok=True)
        for name in [*manifest.files, MANIFEST]:
            self._files.put_file(str(folder / name), f"{place}/{name}")
        for other in dropped:
            self._delete(other)

    def pull(self, root: Path, after: int, tell: Callable[[str], None] | None = None) -> tuple[list[Path], list[str]]:
        """Fetch to ``root`` the newest whole checkpoint of those after a step.

        Whoever asks for a step that ``root`` has takes that one for damaged: it is set aside. ``tell`` hears of every
        file before it is fetched.

        Returns what was fetched, one or none, and what the user should know.
        """
        notes: list[str] = []
        for step in reversed([step for step in self.steps() if step > after]):
            wrong = self._fetch(step, root, tell)
            if not wrong:
                return [step_folder(root, step)], [*notes, f"fetched step {step} from {self.url}"]
            notes.append(f"not taken from {self.url}: {wrong}")
        return [], notes

    def _fetch(self, step: int, root: Path, tell: Callable[[str], None] | None) -> str:
        """Returns what is wrong with it, or ""."""
        final = step_folder(root, step)
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._get(step, MANIFEST, partial)
            manifest = read_manifest(partial)
            for name in manifest.files:
                if tell:
                    tell(f"fetching {self._place(step)}/{name}")
                self._get(step, name, partial)
            wrong = damaged(partial, manifest.files)
        except UserError as error:
            wrong = [str(error)]
        if wrong:
            shutil.rmtree(partial)
            return wrong[0]
        if final.exists():
            set_aside(final)
        commit(partial)
        return ""

    def _get(self, step: int, name: str, folder: Path) -> None:
        try:
            self._files.get_file(f"{self._place(step)}/{name}", str(folder / name))
        except FileNotFoundError:
            raise UserError(f"{self._place(step)}/{name} is missing") from None

    def _delete(self, step: int) -> None:
        """The manifest first: what is left of it never counts."""
        place: Any = self._place(step)
        if self._files.exists(f"{place}/{MANIFEST}"):
            self._files.rm_file(f"{place}/{MANIFEST}")
        if self._files.exists(place):
            self._files.rm(place, recursive=True)

    def _place(self, step: int) -> str:
        return f"{self._root.rstrip('/')}/step_{step:08d}"


def ask(url: str, work: Callable[[Mirror], T]) -> T:
    """What ``work`` gives with the mirror at ``url``.

    Raises:
        UserError: nobody knows the URL, or the place does not answer.
    """
    try:
        return work(Mirror(url))
    except UserError:
        raise
    except Exception as error:  # of whatever driver the place has
        raise UserError(f"train.mirror={url} does not answer: {error}") from None
