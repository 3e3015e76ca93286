"""Which precisions the machine is made for. Asked before DeepSpeed is imported, which would choose the accelerator."""

from __future__ import annotations

import os

import torch

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError


def on_cpu() -> bool:
    """Whether trainings run on the processors here."""
    return os.environ.get("DS_ACCELERATOR", "" if torch.cuda.is_available() else "cpu") == "cpu"


def cpu_multiplies(precision: str) -> bool:
    """Whether oneDNN has matrix products of this precision for the processor: on x86, bf16 needs AVX-512, fp16 more.

    Without them torch multiplies bfloat16 number by number: on an AMD EPYC of AVX2, matrices in 10 to 35 times and
    convolutions in 120 times what they take in float32.
    """
    if precision == "fp32":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    supported = {"bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported, "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported}
    return bool(supported[precision]())


def local_config(stage: int = 2) -> str:
    """The name of the DeepSpeed config for this machine alone: in float32 on a processor that is no good at bf16."""
    return f"zero{stage}_local{'_fp32' if on_cpu() and not cpu_multiplies('bf16') else ''}.json"


def note(config: DeepSpeedConfig) -> str:
    """What is to be said of a config on this machine, or nothing.

    Raises:
        UserError: fp16 on a processor without it, which DeepSpeed refuses.
    """
    if not on_cpu() or cpu_multiplies(config.precision):
        return ""
    if config.precision == "fp16":
        raise UserError(f"{config.source}: this processor has no fp16: enable bf16 or neither, as in {local_config()}")
    return (
        f"{config.source}: this processor has no instructions for bf16, which makes matrix products ten to a hundred "
        f"times slower than fp32: set bf16.enabled to false, as in {local_config()}"
    )
