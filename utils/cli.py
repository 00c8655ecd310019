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
    Ctrl-C, and that of the signal for a command that a signal stopped.
    """
    if sys.getfilesystemencoding() != "utf-8":  # in the C locale, where names of files could not be read
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    log_to_terminal()
    try:
        tempfile.gettempdir()  # PyTorch needs it when it is imported, and the working directory
        os.getcwd()
        command()
    except UserError as error:
        sys.exit(_fail(f"error: {error}") if error.printed else 2)
    except OSError as error:
        if error.filename is None and error.errno not in (*FULL, errno.EIO, errno.ENOENT):
            raise
        name = error.filename or ("TMPDIR or working directory" if error.errno == errno.ENOENT else "a file")
        sys.exit(_fail(f"error: {name}: {error.strerror}"))
    except ImportError as error:
        if not error.name or error.name.partition(".")[0] in {path.stem for path in ROOT.iterdir()}:
            raise  # a bug, not a missing package
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        sys.exit(_fail(f"error: {error.name} {problem} for {sys.executable}; {_environment()}"))
    except (MemoryError, RuntimeError) as error:
        if "allocate memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        sys.exit(_fail("error: out of memory; reduce --bs"))
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


def _fail(line: str, status: int = 2) -> int:
    """Print an error, with the rank under torchrun; rank 0 also prints what stopped all processes."""
    rank = torchrun_rank()
    if status == 2 or not rank:
        prefix = f"[rank {rank}] " if status == 2 and rank is not None else ""
        with suppress(OSError):  # standard error may be a file on a full disk
            print(prefix + _one_line(line), file=sys.stderr)
    return status
