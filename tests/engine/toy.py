"""A task a thousand times smaller than SAM with everything that makes SAM hard for an engine.

An encoder whose blocks run once a step and drop paths, a decoder that runs in every round on its own last answer,
a table of tokens that is looked up, a random buffer that must stay fp32, and a loss over a varying number of objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_ds.config import deepspeed as ds_config
from sam_ds.config.schema import ModelConfig, OptimConfig, Recipe, ScheduleConfig, TrainConfig
from sam_ds.types import _Tensors

DIM, DEPTH, ROUNDS = 16, 3, 3


@dataclass(frozen=True)
class ToyBatch(_Tensors):
    x: Tensor  # float32 [O, DIM]
    kinds: Tensor  # int64 [O]       which token each object is prompted with
    positions: Tensor  # int64 [1]       place of the micro-batch in the stream

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class ToyInputs(_Tensors):
    x: Tensor
    kinds: Tensor
    weights: Tensor  # float32 [O]

    @property
    def count(self) -> Tensor:
        return self.weights.sum()


def batch(position: int) -> ToyBatch:
    """Micro-batch ``position`` of the stream, with 1 to 4 objects."""
    generator = torch.Generator().manual_seed(1000 + position)
    objects = 1 + position % 4
    x = torch.randn(objects, DIM, generator=generator)
    return ToyBatch(x, torch.randint(0, 4, (objects,), generator=generator), torch.tensor([position]))


class Block(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.lin = nn.Linear(DIM, DIM)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.lin(self.norm(x)))
        if self.training and self.rate:
            y = y * (torch.rand(len(x), 1, device=x.device) < 1 - self.rate).to(x.dtype) / (1 - self.rate)
        return x + y


class Encoder(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, DIM) * 0.1)
        self.blocks = nn.ModuleList([Block(rate) for _ in range(DEPTH)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.pos_embed.dtype) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Reads its children's weights itself, as SAM's mask decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.ModuleList([nn.Embedding(1, DIM) for _ in range(4)])
        self.lin1 = nn.Linear(2 * DIM, 2 * DIM)
        self.lin2 = nn.Linear(2 * DIM, DIM)
        self.register_buffer("gaussian", torch.randn(DIM, DIM))

    def forward(self, embedding: Tensor, last: Tensor, kinds: Tensor) -> Tensor:
        table = torch.cat([token.weight for token in self.tokens])
        fed_back = torch.sin(last.float() @ self.gaussian).to(table.dtype)
        return self.lin2(torch.relu(self.lin1(torch.cat([embedding + table[kinds], fed_back], 1))))


class ToyModel(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.image_encoder = Encoder(rate)
        self.mask_decoder = Decoder()


class ToyTask(nn.Module):
    num_layers = DEPTH + 1

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = ToyModel(recipe.model.drop_path)

    @property
    def encoder(self) -> nn.Module:
        return self.model.image_encoder

    def checkpointed(self) -> dict[str, list[nn.Module]]:
        return {"once": list(self.encoder.blocks), "reused": [self.model.mask_decoder]}

    def leaf_modules(self) -> list[type[nn.Module]]:
        return [Decoder]

    def layer_of(self, name: str) -> int | None:
        if "blocks" in name:
            return int(name.split("blocks.")[1].split(".", maxsplit=1)[0]) + 1
        return 0 if "pos_embed" in name else None

    def prepare(self, batch: ToyBatch, step: int) -> ToyInputs:
        return ToyInputs(batch.x, batch.kinds, torch.ones(len(batch.x), device=batch.x.device))

    def forward(self, inputs: ToyInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        embedding = self.model.image_encoder(inputs.x)
        last = torch.zeros_like(embedding)
        total = inputs.x.new_zeros(())
        for _ in range(ROUNDS):
            last = self.model.mask_decoder(embedding, last, inputs.kinds)
            errors = (last.float() - inputs.x.roll(1, 1)).square().mean(1)  # [O]
            total = total + (inputs.weights * errors).sum() / normalizer
        return total, {"loss/last": total.detach() / ROUNDS}


def recipe(
    checkpointing: str = "none",
    offload: bool = False,
    drop_path: float = 0.0,
    frozen: int = 0,
    seed: int = 3,
    ema: float = 0.0,
) -> Recipe:
    return Recipe(
        name="toy",
        seed=seed,
        model=ModelConfig(checkpointing=checkpointing, checkpoint_offload=offload, drop_path=drop_path),
        optim=OptimConfig(lr=1e-2, weight_decay=0.05, layer_decay=0.8, frozen_encoder_steps=frozen, ema_decay=ema),
        schedule=ScheduleConfig("cosine", warmup_steps=3),
        train=TrainConfig(steps=40),
    )


def config(stage: int, precision: str = "fp32", accumulation: int = 1, clip: float = 1.0) -> ds_config.DeepSpeedConfig:
    zero: dict[str, object] = {"stage": stage}
    if stage == 3:  # or a model this small is never sharded
        zero |= {"stage3_param_persistence_threshold": 0}
    raw = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": zero,
    }
    if precision != "fp32":
        raw[precision] = {"enabled": True}
        if stage:
            raw["data_types"] = {"grad_accum_dtype": "fp32"}
    return ds_config.parse(raw, "toy config")
