"""Exceptions whose message is shown to the user."""

import os


class UserError(Exception):
    """An error that the user can fix.

    The message is one line: the flag or the file, what is wrong, and how to fix it. Entry scripts print it and exit
    with status 2.
    """

    printed = True  # False on a rank of torchrun if another one prints it


class Stopped(BaseException):
    """A command has stopped cleanly after a signal; entry scripts print the text and exit with ``status``.

    Not an Exception: a signal may arrive while a file is read, and code that handles damaged files must not catch it.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def torchrun_rank(variable: str = "RANK") -> int | None:
    """Return this process's rank, with LOCAL_RANK that on its machine, under torchrun; None without torchrun."""
    return int(os.environ[variable]) if {"TORCHELASTIC_RUN_ID", variable} <= os.environ.keys() else None
