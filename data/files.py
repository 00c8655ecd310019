"""Find the image files in a folder, and count the files that are skipped."""

import errno
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from warnings import filterwarnings

from PIL import Image, PngImagePlugin

from utils.errors import UserError

log = logging.getLogger(__name__)

_KNOWN = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "CUR", "ICNS", "PSD"),
    *("QOI", "DDS", "PCX", "DCX", "SGI", "SUN", "XBM", "XPM", "BLP", "FLI", "FTEX", "GBR", "MCIDAS", "MSP", "PIXAR"),
)
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "@recycle", "__macosx", "lost+found"),
    *("$recycle.bin", "system volume information", "recycler", "#snapshot", "~snapshot", "__pycache__", "picasa.ini"),
}
Image.init()
filterwarnings("ignore", module=r"PIL\.")  # they name no file
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # more than 1 MiB of metadata is no damage
# Formats that Pillow recognizes by the first bytes and decodes itself. Not EPS, for which it starts Ghostscript, and
# not IPTC, which may contain an EPS. AVIF is not in every build of Pillow.
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
_SUFFIXES = {".tga", *(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)}


def image_files(folder: Path, outside: Collection[Path], skipped: Counter[str]) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, links followed, in the order of their paths.

    A file counts as an image if its suffix or its first bytes are those of FORMATS, or if it cannot be opened. All
    others are counted in ``skipped`` by kind. A folder that several links lead to is read once; folders in ``outside``
    are not read. Raises UserError for a folder that cannot be read.
    """
    found, folders, seen = [], [folder], set()
    while folders:
        current = folders.pop()
        if (real := current.resolve()) in seen or (real in outside and current != folder):
            skipped["folders linked twice"] += 1
            continue
        seen.add(real)
        for path, is_folder, is_file in _entries(current, skipped):
            if is_folder:
                folders.append(path)
            elif not is_file and path.exists():  # opening a pipe would wait forever
                skipped["pipes or devices"] += 1
            elif path.suffix.lower() in _SUFFIXES or _has_signature(path):
                found.append(path)
            else:
                suffix = path.suffix.lower()
                skipped[suffix if suffix[1:].isidentifier() else "without suffix"] += 1  # frame.0001 has none
    return sorted(found)


def labeled_images(
    part: str, classes: Collection[Sequence[Path]], skipped: Counter[str], hint: str
) -> list[tuple[Path, int]]:
    """Return (file, label) pairs by class, each a sequence of folders that need not exist, and log their number.

    Links from one class to another or to a folder that contains it are not followed. Raises UserError, which ends with
    ``hint``, for a class without images.
    """
    roots = {path.resolve() for folders in classes for folder in folders for path in (folder, folder.parent)}
    outside, pairs = roots.union(*(path.parents for path in roots)), []
    for label, folders in enumerate(classes):
        others: Counter[str] = Counter()
        files = [path for folder in folders if folder.is_dir() for path in image_files(folder, outside, others)]
        if not files:
            raise UserError(f"{folders[0]}: no images{_summary(others)}; {hint}")
        skipped.update(others)
        pairs += [(path, label) for path in files]
    log.info("%s/: %s images of %d classes%s", part, f"{len(pairs):,}", len(classes), _summary(skipped))
    return pairs


def class_folders(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Return the subfolders of ``folder`` by class, sorted.

    Names that differ only in their Unicode form, as macOS and Linux write them, are one class. Hidden folders, those
    of operating systems, and files next to class folders are counted in ``skipped``; a broken link raises UserError.
    """
    classes: dict[str, list[Path]] = {}
    for path, is_folder, _ in _entries(folder, skipped):
        if is_folder:
            classes.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
        elif path.is_symlink() and not path.exists():
            raise UserError(f"{path}: the target of this link does not exist; restore it or remove the link")
        else:
            skipped["outside of class folders"] += 1
    return dict(sorted(classes.items()))


def _summary(skipped: Counter[str]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common())
    return f"; skipped: {kinds}" if kinds else ""


def _entries(folder: Path, skipped: Counter[str]) -> Iterator[tuple[Path, bool, bool]]:
    """Yield each path in ``folder`` but those of operating systems, and whether it is a folder and a regular file."""
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                skipped["hidden or system files"] += 1
                continue
            try:
                yield folder / entry.name, entry.is_dir(), entry.is_file()
            except OSError as error:
                if error.errno != errno.ELOOP:  # a link to itself
                    raise
                yield folder / entry.name, False, False
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{error.filename or folder}: {reason}; it must be readable") from error


def _has_signature(path: Path) -> bool:
    try:
        Image.open(path, formats=FORMATS).close()
    except Image.DecompressionBombError:
        return True
    except OSError as error:
        return error.errno not in (None, errno.ELOOP)  # decoding reports a file that cannot be opened
    except Exception:  # the readers raise different exceptions
        return False
    return True
