"""Write files atomically; read JSON."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from utils.log import logger

LFS_POINTER = b"version https://git-lfs"  # the start of a file whose content git-lfs has not downloaded
LFS_HINT = "a git-lfs pointer: run git lfs pull in its repository"
PARTIAL = ".partial-"  # prefix of the names of incomplete files
_warn_once = cache(logger.warning)
FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(OSError):
    """A file cannot be written: ``filename``, and a ``strerror`` that names the file system if that is full."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)`` for a file in the folder of ``path``, flush it to disk, and rename it to ``path``.

    An interruption leaves the old file or none, never an incomplete one. A file system that does not support modes or
    flushing a folder causes a warning. Raises WriteError if the file cannot be written.
    """
    path = Path(path)
    try:
        # The suffix stays: NumPy and Matplotlib choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL, suffix=path.suffix)
        temporary = Path(name)
        try:
            os.close(handle)
            write(temporary)
            with open(temporary, "rb+") as file, _optional(path, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                os.fsync(file.fileno())
            mask = os.umask(0)  # it can only be read by setting it
            os.umask(mask)
            with _optional(path):  # mkstemp creates private files, which is wrong on a shared cluster
                temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        cause = error  # torch raises a RuntimeError because of an OSError
        while not isinstance(cause, OSError) and cause.__context__:
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        if cause.errno in FULL:
            reason += f" in the file system of {_mount(path)}"
        raise WriteError(cause.errno, reason, str(path)) from error
    with _optional(path):  # flush the folder, so that the new name survives a power failure
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _mount(path: Path) -> Path:
    folder = path.parent.resolve()
    return next(parent for parent in (folder, *folder.parents) if os.path.ismount(parent))


@contextmanager
def _optional(path: Path, *numbers: int) -> Iterator[None]:
    """Log an OSError, or only one with these ``numbers``, as a warning, once per file system."""
    try:
        yield
    except OSError as error:
        if numbers and error.errno not in numbers:
            raise
        _warn_once("WARNING: file modes or flushing are not supported in the file system of %s", _mount(path))


def link(source: Path, path: Path) -> None:
    """Make ``path`` another name of the file ``source`` in the same folder, or a copy if there are no hard links."""

    def write(temporary: Path) -> None:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError if it cannot be read, ValueError if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows editors add a mark
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def require_writable(folder: Path) -> None:
    """Raise OSError if ``folder`` cannot be created or files cannot be written to it; leaves no file."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass
