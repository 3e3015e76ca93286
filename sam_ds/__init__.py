"""Train promptable segmentation foundation models with DeepSpeed."""

__version__ = "0.1.0"
