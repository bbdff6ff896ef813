"""The exceptions that mean: the user can mend this."""


class UserError(ValueError):
    """A mistake that the caller can mend; the message is one line and names the remedy.

    The command line prints it without a traceback and exits with code 2. Anything else that is raised
    is a defect of st3 and keeps its traceback.
    """


class LonelyError(UserError):
    """A mistake that only one of several processes has met: the others wait for it, so it must end."""
