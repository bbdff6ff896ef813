"""The door to all that starts from run directories: `st3 VERB …`, or `python -m st3 VERB …`.

A verb is a module with a docstring, which is its help, `add_arguments(parser)` and `run(options) -> exit code`. It
imports PyTorch in `run` only, so that --help answers at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import st3
from st3.door import open_door
from st3.errors import UserError

VERBS = {
    "bench": "st3.deploy.bench",
    "check": "st3.check",
    "eval": "st3.deploy.eval",
    "export": "st3.deploy.export",
    "predict": "st3.deploy.predict",
    "report": "st3.overview",
    "reproduce": "st3.tables.reproduce",
    "search": "st3.tables.search",
    "verify": "st3.verify",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: the verb's own, that of a `UserError` (said in one line), 130 when interrupted."""
    prog = "st3"
    try:
        open_door()
        door = _door()
        chosen = door.parse_args(argv)
        if chosen.verb not in VERBS:
            door.error(f"{chosen.verb} is no verb: write {' or '.join(VERBS)}")
        prog = f"st3 {chosen.verb}"
        verb = import_module(VERBS[chosen.verb])
        parser = _Parser(prog, description=verb.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        verb.add_arguments(parser)
        return verb.run(parser.parse_intermixed_args(chosen.rest))
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # st3 … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _door() -> _Parser:
    """Takes the verb only; what follows is the verb's."""
    verbs = "\n".join(f"  {verb:<12} {_first_line(import_module(module).__doc__)}" for verb, module in VERBS.items())
    parser = _Parser(
        "st3",
        usage="st3 VERB …",
        description="What is done beside single trainings, for which there is st3-train.",
        epilog=f"verbs:\n{verbs}\n\nst3 VERB --help explains a verb, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"st3 {st3.__version__}")
    parser.add_argument("verb", metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("rest", metavar="…", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]
