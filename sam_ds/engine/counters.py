"""What DeepSpeed counts, and the loss scale that fp16 has found."""

from __future__ import annotations

from typing import Any

from deepspeed import DeepSpeedEngine

from sam_ds.engine import moments

_COUNTS = ("global_steps", "global_samples", "skipped_steps")


def read(ds: DeepSpeedEngine) -> dict[str, Any]:
    """All of it, as JSON can hold it."""
    scaler = {name: value for name, value in _scaler(ds).items() if type(value) in (int, float, bool)}
    return {name: getattr(ds, name) for name in _COUNTS} | {"steps": moments.steps_taken(ds), "scaler": scaler}


def restore(ds: DeepSpeedEngine, values: dict[str, Any]) -> None:
    """Go on counting; the scaler only where this engine's is of the kind that was saved."""
    for name in _COUNTS:
        setattr(ds, name, values[name])
    # A step ends where this is a multiple of the accumulation, which another world has another of.
    ds.micro_steps = ds.global_steps * ds.gradient_accumulation_steps()
    own = _scaler(ds)
    own.update({name: value for name, value in values["scaler"].items() if name in own})


def _scaler(ds: DeepSpeedEngine) -> dict[str, Any]:
    """The fields of fp16's scaler; none in other precisions."""
    for name in ("loss_scale_config", "loss_scaler"):
        if ds.fp16_enabled() and hasattr(ds.optimizer, name):
            return vars(getattr(ds.optimizer, name))
    return {}
