"""Whole checkpoints or none, written and read by all ranks together. ``storage.checkpoints`` has their folders."""

from sam_ds.engine.checkpoint.load import DamagedError, load
from sam_ds.engine.checkpoint.save import NotFiniteError, SaveError, Saving, save

__all__ = ["DamagedError", "NotFiniteError", "SaveError", "Saving", "load", "save"]
