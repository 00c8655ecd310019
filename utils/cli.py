"""Exit status and error line of an entry script."""

import errno
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import utils.load  # noqa: F401  # measures the load while the other packages are imported
from utils.errors import Stopped, UserError, torchrun_rank
from utils.files import FULL
from utils.log import log_to_terminal

ROOT = Path(__file__).resolve().parents[1]


def run_command(command: Callable[[], object]) -> None:
    """Run ``command`` and turn its errors into one line on standard error and an exit status.

    The status is 2 for a UserError, an operating-system error of a file and a package that is not installed, 130 for
    Ctrl-C, and that of the signal for a command that a signal stopped.
    """
    if sys.getfilesystemencoding() != "utf-8":  # in the C locale, where names of files could not be read
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    log_to_terminal()
    try:
        command()
    except UserError as error:
        sys.exit(_fail_on_rank(str(error)) if error.printed else 2)
    except OSError as error:
        if error.filename is None and error.errno not in (*FULL, errno.EIO):
            raise
        sys.exit(_fail_on_rank(f"{error.filename or 'a file'}: {error.strerror}"))
    except ModuleNotFoundError as error:
        package = error.name or ""
        if not package or "." in package or package in {path.stem for path in ROOT.iterdir()}:
            raise  # a bug, not a missing package
        sys.exit(_fail_on_rank(f"{package} is not installed for {sys.executable}; {_environment()}"))
    except Stopped as stop:
        sys.exit(_fail(str(stop), stop.status))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _environment() -> str:
    """Return the command that activates or creates the project's environment."""
    environment, setup = ROOT / ".venv", ROOT / "scripts" / "setup.sh"
    programs = Path(sys.executable).parent.resolve()  # the folder: in a venv the interpreter itself is a link out of it
    if environment.exists() and programs != (environment / "bin").resolve():
        return f"run: source {shlex.quote(str(environment / 'bin' / 'activate'))}"
    return f"run: bash {shlex.quote(str(setup))}"


def _one_line(text: str) -> str:
    """Return the text on one line, with control characters of names escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))


def _fail_on_rank(error: str) -> int:
    rank = torchrun_rank()
    print(f"[rank {rank}] " * (rank is not None) + f"error: {_one_line(error)}", file=sys.stderr)
    return 2


def _fail(line: str, status: int) -> int:
    if not torchrun_rank():  # all processes of a torchrun are stopped
        print(line, file=sys.stderr)
    return status
