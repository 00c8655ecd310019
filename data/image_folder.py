"""Your own images: ``train/`` and ``test/`` (or ``val/``), each with one subfolder of images per class."""

import logging
from collections import Counter
from pathlib import Path

from data.cache import ReadOptions
from data.decode import open_image
from data.files import class_folders, labeled_images
from data.image_files import splits_of_files
from data.splits import Splits
from utils.errors import UserError
from utils.names import readable

log = logging.getLogger(__name__)

_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) with images"


def load(root: Path | None, image_size: int | None, options: ReadOptions) -> Splits:
    """Read the images below ``root``; classes are the sorted names of the subfolders of ``train/``.

    With ``image_size``, every image is resized and cropped to that square; without it, all must be squares of one size.
    Raises UserError for a missing folder or class.
    """
    if root is None:
        raise UserError(f"--data_root: required by --dataset Folder; give a folder with {_LAYOUT}")
    train, classes = _list_images(root / "train")
    test, test_classes = _list_images(_test_folder(root, classes))
    if classes != test_classes:
        odd = readable(sorted(set(classes) ^ set(test_classes)))
        names = ", ".join(map(repr, odd[:5])) + ", ..." * (len(odd) > 5)
        raise UserError(f"--data_root {root}: only one of train and test has {names}; both must have the same classes")
    if all(map(str.isdecimal, classes)) and sorted(classes, key=int) != classes:
        log.info("labels follow the class names sorted as text: %s, ...", ", ".join(classes[:3]))
    size = image_size or _size_of([path for path, _ in train])
    return splits_of_files(root, train, test, readable(classes), size, options, resize=image_size is not None)


def _test_folder(root: Path, classes: list[str]) -> Path:
    """Return ``test/``, or ``val/`` if there is no ``test/`` or its images are not sorted by class."""
    test, val = root / "test", root / "val"
    if not val.is_dir() or not test.is_dir():
        return val if val.is_dir() else test
    labeled = set(class_folders(test, Counter())) & set(classes)
    log.info("%s has test/ and val/: using %s", root, "test/" if labeled else "val/, since test/ has no class folders")
    return test if labeled else val


def _list_images(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return (file, label) pairs by class, and the class names."""
    if not folder.is_dir():
        problem = f"no folder {folder.name}/" if folder.parent.is_dir() else "no such folder"
        raise UserError(f"--data_root {folder.parent}: {problem}; it needs {_LAYOUT}")
    skipped: Counter[str] = Counter()
    classes = class_folders(folder, skipped)
    if len(classes) < 2:
        raise UserError(f"{folder}: must have at least 2 class folders with images, not {len(classes)}")
    return labeled_images(folder.name, classes.values(), skipped, "add some or remove the class"), list(classes)


def _size_of(paths: list[Path]) -> int:
    """Return the width of the first image that can be read; damaged ones are reported when they are decoded."""
    for path in paths:
        try:
            width, height = open_image(path).size
        except ValueError as error:
            damage = error
            continue
        if width != height:
            raise UserError(f"{path}: is {width}x{height}, not square; --image_size N crops every image to NxN")
        return width
    raise UserError(f"{path} and all other training images: {damage}; replace them")
