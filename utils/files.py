"""Write a file whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"  # begins the names of files that are not whole yet


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)`` beside ``path``, flush it to the disk, then rename it to ``path``.

    Whatever interrupts this leaves the old ``path`` (or none), never a part of the new one.
    """
    path = Path(path)
    # Ends in the real suffix: numpy and matplotlib choose or append a format by it.
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
    """Let the new name itself survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, or leave the old file."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError where it cannot be read, ValueError where it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:  # thousands of brackets: no file of ours
        raise ValueError("nested too deeply") from error


def require_writable(folder: Path) -> None:
    """Raise OSError where files cannot be made in ``folder``, or where it cannot be made; nothing stays behind."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    with tempfile.TemporaryFile(dir=existing):
        pass


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp made the file private, which shared clusters do not want.
    mask = os.umask(0)
    os.umask(mask)
    return mask
