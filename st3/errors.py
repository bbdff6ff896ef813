"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake that the caller can mend; the message is one line and names the remedy.

    The command line prints it without a traceback and exits with code 2. Anything else that is raised
    is a defect of st3 and keeps its traceback.
    """
