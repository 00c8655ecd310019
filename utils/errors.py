"""Exceptions whose message is shown to the user."""


class UserError(Exception):
    """An error that the user can fix.

    The message is one line: the flag or the file, what is wrong, and how to fix it. Entry scripts print it and exit
    with status 2.
    """


class Stopped(BaseException):
    """A command has stopped cleanly after a signal; entry scripts print the text and exit with ``status``.

    Not an Exception: a signal may arrive while a file is read, where an ``except`` for broken files must not catch it.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status
