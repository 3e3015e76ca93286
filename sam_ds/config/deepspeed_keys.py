"""The keys a DeepSpeed config may have here, with their types, and those that have another owner.

DeepSpeed accepts unknown top-level keys in silence (``zero_optimizatoin`` trains without ZeRO) and shifts its
defaults between versions. So a config names only these keys, and ``tests/config`` holds the table against the
installed DeepSpeed.
"""

from __future__ import annotations

from typing import Any

_OFFLOAD_PARAM: dict[str, Any] = {
    "device": str,
    "nvme_path": str,
    "buffer_count": int,
    "buffer_size": int,
    "max_in_cpu": int,
    "pin_memory": bool,
}
_OFFLOAD_OPTIMIZER: dict[str, Any] = {
    "device": str,
    "nvme_path": str,
    "buffer_count": int,
    "pin_memory": bool,
    "pipeline_read": bool,
    "pipeline_write": bool,
    "fast_init": bool,
    "ratio": float,
}
ZERO: dict[str, Any] = {
    "stage": int,
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "overlap_comm": bool,
    "load_from_fp32_weights": bool,
    "offload_param": _OFFLOAD_PARAM,
    "offload_optimizer": _OFFLOAD_OPTIMIZER,
    "sub_group_size": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_gather_16bit_weights_on_model_save": bool,
    "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "stage3_allgather_sequential": bool,
    "ignore_unused_parameters": bool,
    "round_robin_gradients": bool,
    "parameter_alignment": bool,
    "zero_hpz_partition_size": int,
    "zero_quantized_weights": bool,
    "zero_quantized_nontrainable_weights": bool,
    "zero_quantized_gradients": bool,
    "memory_efficient_linear": bool,
    "override_module_apply": bool,
    "log_trace_cache_warnings": bool,
    "enable_sanity_checks": bool,
}

# A type, the choices of a text, or a table of the same kind for an object.
KEYS: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "zero_optimization": ZERO,
    "bf16": {
        "enabled": bool,
        "immediate_grad_update": bool,
        "check_grad_overflow": bool,
        "bf16_master_weights_and_grads": bool,
        "bf16_optimizer_states": bool,
    },
    "fp16": {
        "enabled": bool,
        "auto_cast": bool,
        "loss_scale": float,
        "initial_scale_power": int,
        "loss_scale_window": int,
        "hysteresis": int,
        "consecutive_hysteresis": bool,
        "min_loss_scale": float,
        "fp16_master_weights_and_grads": bool,
    },
    "data_types": {"grad_accum_dtype": ("fp32", "bf16", "fp16")},
    "communication_data_type": ("fp32", "bf16", "fp16"),
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_allgather": bool,
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "checkpoint": {
        "tag_validation": ("Ignore", "Warn", "Fail"),
        "load_universal": bool,
        "use_node_local_storage": bool,
        "parallel_write": {"pipeline_stage": bool},
    },
    "aio": {
        "block_size": int,
        "queue_depth": int,
        "intra_op_parallelism": int,
        "single_submit": bool,
        "overlap_events": bool,
        "use_gds": bool,
    },
}

_TRACKING = "tracking belongs to the recipe: --set tracking.mlflow=… or tracking.tensorboard=…"
# Keys DeepSpeed knows whose values are the recipe's, and where they are set instead.
OWNED_ELSEWHERE: dict[str, str] = {
    "optimizer": "the optimizer belongs to the recipe: --set optim.lr=…, optim.implementation=… (layer decay needs "
    "parameter groups)",
    "zero_allow_untested_optimizer": "the engine sets it: any optim.implementation may be used",
    "zero_force_ds_cpu_optimizer": "the recipe chooses: --set optim.implementation=…",
    "scheduler": "the schedule belongs to the recipe: --set schedule.kind=…, schedule.warmup_steps=…",
    "tensorboard": _TRACKING,
    "wandb": _TRACKING,
    "csv_monitor": _TRACKING + "; metrics.jsonl is always written",
    "comet": _TRACKING,
    "mlflow": _TRACKING,
    "activation_checkpointing": "activation checkpointing belongs to the recipe: --set model.checkpointing=…, "
    "model.checkpoint_offload=…",
    "torch_autocast": "the model casts by itself: enable bf16 or fp16",
    "bfloat16": "write it as bf16",
    "data_efficiency": "data and prompts belong to the recipe: --set data.…, prompts.…",
    "curriculum_learning": "data and prompts belong to the recipe: --set data.…, prompts.…",
}
