"""What ``sam-ds plan``'s trace says of a step of bench_train_step.py: bytes on the device. Prints JSON.

In a process of its own: here the kernels are interpreted, and only asked for the shapes of their answers.

python benchmarks/predict_step.py RECIPE MASKS OPS PRECISION
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from bench_train_step import make_batch, make_recipe

from sam_ds.engine import activation_checkpointing
from sam_ds.modeling.presets import sam_config
from sam_ds.ops.choice import VARIABLE
from sam_ds.planning.trace import trace
from sam_ds.recipes import RECIPES
from sam_ds.tasks.segment_images import SegmentImages

_MOMENTS = 2  # of AdamW, in the precision of the weights, where no ZeRO keeps them in float32


def main(name: str, masks: str, ops: str, precision: str) -> None:
    os.environ[VARIABLE] = ops
    recipe = make_recipe(RECIPES[name](), int(masks))
    traced = trace(
        lambda: SegmentImages(recipe),
        lambda task: activation_checkpointing.apply(task.checkpointed(), recipe.model),
        make_batch(sam_config(recipe.model.preset).image_size, int(masks)),
        recipe,
        precision,
        gpu="triton" in ops,
    )
    unit = traced.element_bytes
    held = (1 + _MOMENTS) * unit * sum(traced.sizes.values()) + traced.buffers
    gradients, most = 0, 0  # which stay until the optimizer's step
    for span in traced.spans:
        most = max(most, sum(span.most.values()) + gradients)
        gradients += unit * traced.sizes.get(span.parameter, 0)
    print(json.dumps({"bytes": held + max(most, gradients)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
