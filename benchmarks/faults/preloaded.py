"""What every rank needs, imported (and compiled code loaded) once, in the process that ranks are forked from."""

from __future__ import annotations

import io

import deepspeed.runtime.zero.muon.original_muon  # imports torch.compile's parts  # noqa: F401
import matplotlib.pyplot as plt
import torch

import sam_ds.cli.train
import sam_ds.training.loop
import sam_ds.training.run  # noqa: F401
from sam_ds.ops.distance_transform import distance_transform
from sam_ds.ops.rasterize import rasterize
from sam_ds.types import MaskRuns

torch.set_num_threads(1)
_runs = MaskRuns(torch.tensor([4, 8, 16], dtype=torch.int32), torch.tensor([0, 3]), torch.tensor([[4, 4]]).int())
distance_transform(rasterize(_runs, torch.eye(2, 3)[None], (4, 4)).bool())
plt.subplots(layout="constrained")[0].savefig(io.BytesIO(), format="png")
