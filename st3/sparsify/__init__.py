"""Sparse training for any PyTorch model: `Sparsifier(model, "st3", schedule).attach(optimizer)`."""

from st3.sparsify.method import Method, Pruner
from st3.sparsify.methods import METHODS, ST3, Dense
from st3.sparsify.schedules import AlternatingPhases, Constant, PolynomialRamp, Schedule
from st3.sparsify.sparsifier import LayerState, Sparsifier

__all__ = [
    "METHODS",
    "ST3",
    "AlternatingPhases",
    "Constant",
    "Dense",
    "LayerState",
    "Method",
    "PolynomialRamp",
    "Pruner",
    "Schedule",
    "Sparsifier",
]
