"""Exit status and error line of an entry script."""

import errno
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import utils.load  # noqa: F401  # measures the load while the other packages are imported
from utils.errors import Stopped, UserError, torchrun_rank
from utils.files import FULL
from utils.log import log_to_terminal

ROOT = Path(__file__).resolve().parents[1]


def run_command(command: Callable[[], object]) -> None:
    """Run ``command`` and turn its errors into one line on standard error and an exit status.

    The status is 2 for a UserError, an operating-system error of a file and a package that cannot be imported, 130 for
    Ctrl-C, and that of the signal for a command that a signal stopped. An error that is a bug keeps its traceback.
    """
    if sys.getfilesystemencoding() != "utf-8":  # of a locale in which names of files could not be read
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    log_to_terminal()
    try:
        tempfile.gettempdir()  # PyTorch needs it when it is imported, and the working directory
        os.getcwd()
        command()
    except Stopped as stop:
        line, status = str(stop), stop.status
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except Exception as error:
        problem, status = _problem(error), 2
        if problem is None:
            raise
        line = f"error: {problem}" if getattr(error, "printed", True) else ""
    else:
        return
    _print_error(line, status)
    sys.exit(status)


def _problem(error: Exception) -> str | None:
    """Return what the user can do about an error; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return "out of memory; reduce --bs"
    if isinstance(error, OSError) and (error.filename or error.errno in (*FULL, errno.EIO, errno.ENOENT)):
        name = error.filename or ("TMPDIR or working directory" if error.errno == errno.ENOENT else "a file")
        return f"{name}: {error.strerror}"
    ours = {path.stem for path in ROOT.iterdir()}
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] not in ours:
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"{error.name} {problem} for {sys.executable}; {_environment()}"
    return None


def _environment() -> str:
    """Return the command that activates or creates the project's environment."""
    environment, setup = ROOT / ".venv", ROOT / "scripts" / "setup.sh"
    programs = Path(sys.executable).parent.resolve()  # the folder: in a venv the interpreter itself is a link out of it
    if environment.exists() and programs != (environment / "bin").resolve():
        return f"run: source {shlex.quote(str(environment / 'bin' / 'activate'))}"
    return f"run: bash {shlex.quote(str(setup))}"


def _print_error(line: str, status: int) -> None:
    """Print an error, with the rank under torchrun; rank 0 also prints what stopped all processes."""
    rank = torchrun_rank()
    if line and (status == 2 or not rank):
        prefix = f"[rank {rank}] " if status == 2 and rank is not None else ""
        # On one line, with control characters of names escaped.
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(line.split()))
        with suppress(OSError):  # standard error may be a file on a full disk
            print(prefix + text, file=sys.stderr)
