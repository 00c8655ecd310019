"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """A mistake the user can mend.

    Its text is one line that names the flag or the file, says what is wrong and what to do.
    Entry scripts print it and exit with status 2.
    """
