"""What moves the weights: optimizers, and learning rates over the training."""

from st3.optim.lr_schedules import LR_SCHEDULES, LRSchedule, LRSettings
from st3.optim.optimizers import OPTIMIZERS, OptimizerSettings, parameter_groups

__all__ = ["LR_SCHEDULES", "OPTIMIZERS", "LRSchedule", "LRSettings", "OptimizerSettings", "parameter_groups"]
