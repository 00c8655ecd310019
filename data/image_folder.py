"""Your own images: ``train/`` and ``test/`` (or ``val/``), each with one subfolder of images per class."""

import logging
from pathlib import Path

from data.decode import decode_splits, image_files, open_image
from data.splits import Splits
from utils.errors import UserError

log = logging.getLogger(__name__)

_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) with PNG or JPEG images"


def load(root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Read PNG and JPEG files below ``root``; classes are the sorted names of the subfolders of ``train/``.

    With ``image_size``, every image is resized and cropped to that square; without it, all must be squares of one size.
    Raises UserError for a missing folder or class, an unreadable image, or one of another size.
    """
    if root is None:
        raise UserError(f"--data_root: --dataset Folder needs a folder with {_LAYOUT}")
    train, classes = _list_images(root / "train")
    test, test_classes = _list_images(_test_folder(root))
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"--data_root {root}: class {odd[0]!r} is in only one of train and test; add it to the other")
    size = image_size or _size_of(train[0][0])
    return decode_splits(root, train, test, classes, size, workers=workers, resize=image_size is not None)


def _test_folder(root: Path) -> Path:
    existing = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if len(existing) == 2:
        log.info("%s has test/ and val/: using test/", root)
    return existing[0] if existing else root / "test"


def _list_images(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return (file, label) pairs by class, and the class names."""
    if not folder.is_dir():
        raise UserError(f"--data_root {folder.parent}: no folder {folder.name}/; it needs {_LAYOUT}")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder}: {len(classes)} class folders; at least 2 are needed, each with images")
    pairs = []
    for label, name in enumerate(classes):
        files = image_files(folder / name)
        if not files:
            raise UserError(f"{folder / name}: no PNG or JPEG images; add some or remove the folder")
        pairs += [(path, label) for path in files]
    return pairs, classes


def _size_of(path: Path) -> int:
    width, height = open_image(path).size
    if width != height:
        raise UserError(f"{path}: is {width}x{height}, not square; --image_size N crops every image to NxN")
    return width
