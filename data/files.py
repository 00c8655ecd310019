"""Find the image files below a folder, and count the files that are left out."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from warnings import filterwarnings

from PIL import Image

from utils.errors import UserError

log = logging.getLogger(__name__)

_KNOWN = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "CUR", "ICNS", "PSD"),
    *("QOI", "DDS", "PCX", "DCX", "SGI", "SUN", "XBM", "XPM", "BLP", "FLI", "FTEX", "GBR", "MCIDAS", "MSP", "PIXAR"),
)
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "@recycle", "__macosx", "lost+found"),
    *("$recycle.bin", "system volume information"),
}
Image.init()
filterwarnings("ignore", module=r"PIL\.")  # they name no file
# Formats that Pillow recognizes by the first bytes and decodes itself. Not EPS, for which it starts Ghostscript, and
# not IPTC, which may contain an EPS. AVIF is not in every build of Pillow.
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
_SUFFIXES = {".tga", *(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)}


def image_files(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, links followed, in the order of their paths.

    A file is an image if its suffix is that of one of FORMATS, or its first bytes are. The others are counted in
    ``left_out`` by kind. A folder that several links lead to is read once, and none that contains ``folder``, so a
    circle of links ends. Raises UserError for a folder that cannot be read.
    """
    found, folders, seen = [], [folder], {_identity(parent) for parent in folder.absolute().parents}
    while folders:
        current = folders.pop()
        with _readable(current):
            identity = _identity(current)
        if identity in seen:
            left_out["folders linked twice"] += 1
            continue
        seen.add(identity)
        for path, is_folder, is_file in _entries(current, left_out):
            if is_folder:
                folders.append(path)
            elif not is_file and path.exists():  # opening a pipe would wait for ever
                left_out["pipes or devices"] += 1
            elif path.suffix.lower() in _SUFFIXES or _has_signature(path):
                found.append(path)
            else:
                left_out[path.suffix.lower() or "without suffix"] += 1
    return sorted(found)


def labeled_images(
    part: str, classes: Collection[Sequence[Path]], left_out: Counter[str], hint: str
) -> list[tuple[Path, int]]:
    """Return (file, label) pairs by class, each a sequence of folders that need not exist, and log their number.

    Raises UserError, which ends with ``hint``, for a class without images.
    """
    pairs = []
    for label, folders in enumerate(classes):
        files = [path for folder in folders if folder.is_dir() for path in image_files(folder, left_out)]
        if not files:
            raise UserError(f"{folders[0]}: no images{_summary(left_out)}; {hint}")
        pairs += [(path, label) for path in files]
    log.info("%s/: %s images of %d classes%s", part, f"{len(pairs):,}", len(classes), _summary(left_out))
    return pairs


def class_folders(folder: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """Return the subfolders of ``folder`` by class, sorted.

    Names that differ only in their Unicode form, as macOS and Linux write them, are one class. Hidden folders, those
    of operating systems, and files beside the class folders are counted in ``left_out``.
    """
    classes: dict[str, list[Path]] = {}
    for path, is_folder, _ in _entries(folder, left_out):
        if is_folder:
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
        else:
            left_out["outside of class folders"] += 1
    return dict(sorted(classes.items()))


def _summary(left_out: Counter[str]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())
    return f"; left out: {kinds}" if kinds else ""


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, bool, bool]]:
    """Yield each path in ``folder`` but those of operating systems, and whether it is a folder and a regular file."""
    with _readable(folder), os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                left_out["hidden or system files"] += 1
                continue
            try:
                yield folder / entry.name, entry.is_dir(), entry.is_file()
            except PermissionError:
                raise
            except OSError:  # a link to itself
                yield folder / entry.name, False, False


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
