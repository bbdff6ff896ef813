"""Sparse training for any PyTorch model: `Sparsifier(model, "st3", schedule).attach(optimizer)`."""

from st3.sparsify.methods import METHODS, ST3, Dense, Method
from st3.sparsify.schedules import Constant, PolynomialRamp, Schedule
from st3.sparsify.sparsifier import LayerState, Sparsifier

__all__ = [
    "METHODS",
    "ST3",
    "Constant",
    "Dense",
    "LayerState",
    "Method",
    "PolynomialRamp",
    "Schedule",
    "Sparsifier",
]
