"""Whole checkpoints or none: written beside, renamed when complete, found by looking at what is there."""

from sam_ds.engine.checkpoint.folder import Manifest, find, prune, read_manifest, resolve
from sam_ds.engine.checkpoint.load import load
from sam_ds.engine.checkpoint.save import save

__all__ = ["Manifest", "find", "load", "prune", "read_manifest", "resolve", "save"]
