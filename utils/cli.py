"""How an entry script ends."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from utils.errors import Stopped, UserError
from utils.log import log_to_terminal

ROOT = Path(__file__).resolve().parents[1]


def run_command(work: Callable[[], object]) -> None:
    """Run ``work``; a UserError becomes one line on standard error and exit status 2, Ctrl-C status 130, and what was
    asked to stop ends with the status that belongs to the asker's signal.

    Status 2 is also that of a package that is not installed, which ``work`` imports, and of what the system refuses of
    a file: a name too long, no permission, a full disk.
    """
    log_to_terminal()
    try:
        work()
    except UserError as error:
        sys.exit(_fail(f"error: {_one_line(str(error))}", 2))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_fail(f"error: {_one_line(f'{error.filename}: {error.strerror}')}", 2))
    except ModuleNotFoundError as error:
        package = error.name or ""
        if not package or "." in package or package in {path.stem for path in ROOT.iterdir()}:
            raise  # a fault of ours, or of an installed package
        sys.exit(_fail(f"error: {package} is not installed for {sys.executable}; {_environment()}", 2))
    except Stopped as stop:
        sys.exit(_fail(str(stop), stop.status))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _environment() -> str:
    """How to come by an environment that has everything."""
    environment, setup = ROOT / ".venv", ROOT / "scripts" / "setup.sh"
    programs = Path(sys.executable).parent.resolve()  # not the interpreter's own link, which leads out of a venv
    if environment.exists() and programs != (environment / "bin").resolve():
        return f"source {shlex.quote(str(environment / 'bin' / 'activate'))}"
    return f"bash {shlex.quote(str(setup))} {'fills' if environment.exists() else 'makes'} the project's environment"


def _one_line(text: str) -> str:
    """The text without line breaks; names from the command line and from files move no cursor and colour nothing."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))


def _fail(line: str, status: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # the processes of a torchrun read the same input: one of them tells
        print(line, file=sys.stderr)
    return status
