"""Colours and markers, the same in all pictures."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe & Ito's colours, distinguishable with colour blindness. Their yellow is left out: too pale for lines on white.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
RED = "#C00000"
"""Warns."""
AMBER, SKY, PURPLE, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#000000"

# Each method has its own marker: there are fewer colours than methods, and not everybody can tell them apart.
_KNOWN = {
    "Dense": (GREY, "o"),
    "ST-3": (BLUE, "o"),
    "ST-3σ": (ORANGE, "s"),
    "Hard straight-through": (GREEN, "^"),
    "Feather": (AMBER, "D"),
    "GMP": (PURPLE, "v"),
    "GMP extended": (PURPLE, "<"),
    "STR": (SKY, "P"),
    "ProbMask": (BLACK, "X"),
    "RigL": (GREEN, "*"),
    "SET": (SKY, "8"),
    "GraNet": (AMBER, ">"),
    "AC/DC": (BLACK, "h"),
    "Top-KAST": (PURPLE, "d"),
    "OptG": (SKY, "p"),
}
# 5 and 11 have no common factor: 55 pairs, of which neighbours differ in both.
_PAIRS = [((GREEN, AMBER, PURPLE, SKY, BLACK)[i % 5], "^DvPX*>hdp<"[i % 11]) for i in range(55)]
_OTHERS = [pair for pair in _PAIRS if pair not in _KNOWN.values()]


def styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label: fixed for the methods known by name, for others by their order."""
    others, chosen = 0, {}
    for label in labels:
        if label in _KNOWN:
            chosen[label] = _KNOWN[label]
        else:
            chosen[label] = _OTHERS[others % len(_OTHERS)]
            others += 1
    return chosen


def save_png_and_svg(figure: Figure, folder: Path, name: str) -> None:
    """`folder`/NAME.png and NAME.svg; the same figure gives the same files."""
    figure.savefig(folder / f"{name}.png", dpi=130)
    with rc_context({"svg.hashsalt": name}):  # letters are drawn as paths: they look alike without the fonts
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
