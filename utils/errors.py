"""The exceptions whose text is meant for the user."""


class UserError(Exception):
    """A mistake the user can mend.

    Its text is one line that names the flag or the file, says what is wrong and what to do.
    Entry scripts print it and exit with status 2.
    """


class Stopped(BaseException):
    """A command that was asked to stop has done so in good order; entry scripts print the text and exit with status.

    No Exception: a signal may come while a file is read, and what catches a file's faults must not take it for one.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status
