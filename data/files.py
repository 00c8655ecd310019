"""Find the image files below a folder, and count the files that are left out."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from warnings import filterwarnings

from PIL import Image

from utils.errors import UserError

_KNOWN = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "CUR", "ICNS", "PSD"),
    *("QOI", "DDS", "PCX", "DCX", "SGI", "SUN", "XBM", "XPM", "BLP", "FLI", "FTEX", "GBR", "MCIDAS", "MSP", "PIXAR"),
)
_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".avif", ".jp2", ".tga"),
}
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "@recycle", "__macosx", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
Image.init()
filterwarnings("ignore", module=r"PIL\.")  # they name no file
# Formats that Pillow recognizes by the first bytes and decodes itself. Not EPS, for which it starts Ghostscript, and
# not IPTC, which may contain an EPS. AVIF is not in every build of Pillow.
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)


def image_files(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, links followed, in the order of their paths.

    A file is an image if it has a common suffix of one, or its first bytes are those of one of FORMATS. The others are
    counted in ``left_out`` by kind. A folder that several links lead to is read once, and none that contains
    ``folder``, so a circle of links ends. Raises UserError for a folder that cannot be read.
    """
    found, folders, seen = [], [folder], {_identity(parent) for parent in folder.absolute().parents}
    while folders:
        current = folders.pop()
        with _readable(current):
            if (identity := _identity(current)) in seen:
                left_out["folders linked twice"] += 1
                continue
            seen.add(identity)
            for entry in _entries(current):
                path = current / entry.name
                if is_system(entry.name):
                    left_out["hidden or system files"] += 1
                elif _holds(entry.is_dir):
                    folders.append(path)
                elif not _holds(entry.is_file) and path.exists():  # opening a pipe would wait for ever
                    left_out["pipes or devices"] += 1
                elif path.suffix.lower() in _SUFFIXES or _has_signature(path):
                    found.append(path)
                else:
                    left_out[path.suffix.lower() or "without suffix"] += 1
    return sorted(found)


def class_folders(folder: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """Return the subfolders of ``folder`` by class, sorted.

    Names that differ only in their Unicode form, as macOS and Linux write them, are one class. Hidden folders, those
    of operating systems, and files beside the class folders are counted in ``left_out``.
    """
    classes: dict[str, list[Path]] = {}
    for entry in _entries(folder):
        if is_system(entry.name):
            left_out["hidden or system files"] += 1
        elif _holds(entry.is_dir):
            classes.setdefault(unicodedata.normalize("NFC", entry.name), []).append(folder / entry.name)
        else:
            left_out["outside of class folders"] += 1
    return dict(sorted(classes.items()))


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden or made by an operating system or a file server."""
    return name.startswith(".") or name.lower() in _SYSTEM


def formats_of(path: Path) -> tuple[str, ...]:
    """Return the formats in which ``path`` is read; TGA has no signature and is recognized by its suffix."""
    return (*FORMATS, "TGA") if path.suffix.lower() == ".tga" else FORMATS


@contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Inside the context, refuse images of more than ``limit`` pixels; None is Pillow's limit."""
    default = Image.MAX_IMAGE_PIXELS
    if limit:
        Image.MAX_IMAGE_PIXELS = limit / 2  # Pillow warns above it and refuses above twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = default


def summary(left_out: Counter[str]) -> str:
    """Return "; left out: 3 .txt, ..." for the log, or nothing."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())
    return f"; left out: {kinds}" if kinds else ""


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry]:
    with _readable(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except PermissionError:
        raise
    except OSError:  # a link to itself
        return False


def _has_signature(path: Path) -> bool:
    try:
        Image.open(path, formats=FORMATS).close()
    except Image.DecompressionBombError:
        return True
    except Exception:  # the readers raise different exceptions
        return False
    return True


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{folder}: {reason}; this folder must be readable") from error
