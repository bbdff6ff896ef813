"""Sparse training for any PyTorch model: `Sparsifier(model, "st3", schedule).attach(optimizer)`."""

from st3.sparsify.costs import LayerTimes
from st3.sparsify.layers import left_alone, weight_layers
from st3.sparsify.method import GlobalThreshold, Method, Pruner
from st3.sparsify.methods import METHODS, ST3, Dense
from st3.sparsify.raw_steps import HAM, RAW_STEPS, RawStep
from st3.sparsify.schedules import SCHEDULES, AlternatingPhases, Constant, PolynomialRamp, Schedule, ScheduleSettings
from st3.sparsify.sparsifier import LayerState, Sparsifier

__all__ = [
    "HAM",
    "METHODS",
    "RAW_STEPS",
    "SCHEDULES",
    "ST3",
    "AlternatingPhases",
    "Constant",
    "Dense",
    "GlobalThreshold",
    "LayerState",
    "LayerTimes",
    "Method",
    "PolynomialRamp",
    "Pruner",
    "RawStep",
    "Schedule",
    "ScheduleSettings",
    "Sparsifier",
    "left_alone",
    "weight_layers",
]
