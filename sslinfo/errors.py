"""The one exception for a mistake that the user can mend."""


class UserError(ValueError):
    """Names the argument, its value and the way out; the command line prints it without a traceback."""
