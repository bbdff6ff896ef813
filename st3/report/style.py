"""Colours and markers, the same in all pictures."""

from collections.abc import Iterable

# Okabe & Ito's colours, distinguishable with colour blindness. Their yellow is left out: too pale for lines on white.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
RED = "#C00000"
"""Warns."""
AMBER, SKY, PURPLE, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#000000"

# Each method has its own marker: there are fewer colours than methods, and not everybody can tell them apart.
_KNOWN = {
    "Dense": (GREY, "circle"),
    "ST-3": (BLUE, "circle"),
    "ST-3σ": (ORANGE, "square"),
    "Hard straight-through": (GREEN, "triangle-up"),
    "Feather": (AMBER, "diamond"),
    "GMP": (PURPLE, "triangle-down"),
    "GMP extended": (PURPLE, "triangle-left"),
    "STR": (SKY, "cross"),
    "ProbMask": (BLACK, "x"),
    "RigL": (GREEN, "star"),
    "SET": (SKY, "octagon"),
    "GraNet": (AMBER, "triangle-right"),
    "AC/DC": (BLACK, "hexagon"),
    "Top-KAST": (PURPLE, "diamond-tall"),
    "OptG": (SKY, "pentagon"),
}
_SHAPES = (
    "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "triangle-right", "hexagon", "diamond-tall",
    "triangle-left", "pentagon",
)  # fmt: skip
# 5 and 11 have no common factor: 55 pairs, of which neighbours differ in both.
_PAIRS = [((GREEN, AMBER, PURPLE, SKY, BLACK)[i % 5], _SHAPES[i % 11]) for i in range(55)]
_OTHERS = [pair for pair in _PAIRS if pair not in _KNOWN.values()]


def styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker (as plotly names it) of each label: fixed for methods known by name, for others by order."""
    others, chosen = 0, {}
    for label in labels:
        if label in _KNOWN:
            chosen[label] = _KNOWN[label]
        else:
            chosen[label] = _OTHERS[others % len(_OTHERS)]
            others += 1
    return chosen
