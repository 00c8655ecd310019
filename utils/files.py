"""Write files atomically; read JSON."""

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs"  # the start of a file whose content git-lfs has not downloaded
LFS_HINT = "a git-lfs pointer: run git lfs pull in its repository"
PARTIAL = ".partial-"  # prefix of the names of incomplete files
FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(OSError):
    """The file ``filename`` cannot be written, for the reason ``strerror``."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)`` for a file in the folder of ``path``, flush it to disk, and rename it to ``path``.

    An interruption leaves the old file or none, never an incomplete one. Raises WriteError if the file cannot be
    written.
    """
    path = Path(path)
    # The suffix stays: NumPy and Matplotlib choose the format by it.
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}{path.suffix}")
    try:
        try:
            write(temporary)
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        cause = error  # torch raises a RuntimeError because of an OSError
        while not isinstance(cause, OSError) and cause.__context__:
            cause = cause.__context__
        if not isinstance(cause, OSError):
            raise
        raise WriteError(cause.errno, cause.strerror or str(cause), str(path)) from error
    with suppress(OSError):
        _flush(path.parent)  # so that the new name survives a power failure


def _flush(path: Path) -> None:
    """Write a file or a folder from memory to the disk, if the file system supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def link(source: Path, path: Path) -> None:
    """Make ``path`` another name of the file ``source`` in the same folder, or a copy if there are no hard links."""

    def write(temporary: Path) -> None:
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
