"""The exceptions that mean: the user can mend this. Each kind has an exit code of its own, which the README lists."""


class UserError(ValueError):
    """A mistake that the caller can mend; the message is one line and names the remedy.

    The command line prints it without a traceback and exits with its code. Anything else that is raised
    is a defect of st3 and keeps its traceback.
    """

    exit_code = 2
    """Usage: what was typed, or what does not fit together."""


class DataError(UserError):
    """Images that are not there, cannot be read, or are no longer what they were."""

    exit_code = 3


class DamagedError(UserError):
    """A file of a run, a table or a network that is not what was written, or not what it says."""

    exit_code = 4


class NotFiniteError(UserError):
    """The loss is infinite or not a number."""

    exit_code = 5


class DiskError(UserError):
    """A file that cannot be written: the disk is full, read-only or gone."""

    exit_code = 6


class InUseError(UserError):
    """Another process works at the same run."""

    exit_code = 7


class LonelyError(UserError):
    """A mistake that only one of several processes has met: the others wait for it, so it must end."""

    def __init__(self, message: str, exit_code: int = UserError.exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException | str, most: int = 300) -> str:
    """What an error says, which may be pages or nothing, in one line of at most so many letters."""
    text = " ".join(str(error).split())
    return f"{text[: most - 2]} …" if len(text) > most else text or type(error).__name__


_KINDS = {kind.exit_code: kind for kind in (UserError, DataError, DamagedError, NotFiniteError, DiskError, InUseError)}


def of_code(exit_code: int, message: str) -> UserError:
    """The error of this exit code: what has been sent from another process."""
    return _KINDS[exit_code](message)
