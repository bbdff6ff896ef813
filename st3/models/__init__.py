"""Architectures by name: our own small nets, torchvision's classifiers, timm's where it is installed."""

from st3.models.config import ModelConfig
from st3.models.registry import build_model, model_names

__all__ = ["ModelConfig", "build_model", "model_names"]
