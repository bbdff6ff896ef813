"""What both commands see to before anything else: somewhere to print to, a folder to stand in."""

import codecs
import io
import os
import sys

from st3.errors import UserError

_PLAIN = {
    "×": "x", "→": "->", "…": "...", "σ": "sigma", "ε": "epsilon", "α": "alpha", "β": "beta", "λ": "lambda",
    "γ": "gamma", "κ": "kappa", "θ": "theta", "τ": "tau", "±": "+-", "−": "-", "–": "-", "—": "-", "·": ".",
    "≤": "<=", "≥": ">=", "†": "+", "‡": "++", "²": "2", "µ": "u", "√": "sqrt", "⌊": "", "⌋": "", "⌈": "", "⌉": "",
}  # fmt: skip
"""What is printed where a terminal does not have the sign."""


def open_door() -> None:
    """Make printing safe, and see that there is a working directory.

    A stream that is closed, or cannot be written to, swallows what is printed, and no other file takes its number;
    signs that a terminal does not have are spelled out. Raises `UserError` where the working directory is gone.
    """
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; another choice could only fail
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    codecs.register_error("plain", _in_plain_signs)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process lives)
        elif type(stream) is io.TextIOWrapper:  # the process's own
            encoding, by_line = stream.encoding, stream.line_buffering
            setattr(sys, name, _Stream(stream.detach(), encoding, "plain", line_buffering=by_line))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working directory is no longer there: change to one that is") from error


class _Stream(io.TextIOWrapper):
    """Printing that cannot fail: a training is not given up because the disk of its log is full. A pipe that nobody
    reads any more is another matter."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """A codec's handler of errors: the text for the signs that it cannot write, and where it goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
