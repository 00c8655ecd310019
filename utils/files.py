"""Write files atomically; read JSON."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"  # prefix of the names of incomplete files


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)`` for a file in the folder of ``path``, flush it to disk, and rename it to ``path``.

    An interruption leaves the old file or none, never an incomplete one.
    """
    path = Path(path)
    # The suffix stays: NumPy and Matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Flush the folder, so that the new name survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError if it cannot be read, ValueError if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def require_writable(folder: Path) -> None:
    """Raise OSError if ``folder`` cannot be created or files cannot be written to it; leaves no file."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass


def _umask() -> int:
    # The mask can only be read by setting it. mkstemp creates private files, which is wrong on a shared cluster.
    mask = os.umask(0)
    os.umask(mask)
    return mask
