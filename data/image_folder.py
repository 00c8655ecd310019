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
    """Read the images below ``root``; classes are the sorted names of the subfolders of ``train/`` and ``test/``.

    Without ``train/`` the training split is empty. With ``image_size``, every image is resized and cropped to that
    square; without it, all must be squares of one size. Raises UserError for a missing folder or class.
    """
    if root is None:
        raise UserError(f"--data_root: required by --dataset Folder; give a folder with {_LAYOUT}")
    if not root.is_dir():
        raise UserError(f"--data_root {root}: no such folder; it needs {_LAYOUT}")
    train_folder = _find_folder(root, "train", "training")
    train, train_classes = _list_images(train_folder) if train_folder else ([], None)
    test, classes = _list_images(_find_test_folder(root, train_classes))
    if train_classes not in (None, classes):
        odd = readable(sorted(set(train_classes) ^ set(classes)))
        names = ", ".join(map(repr, odd[:5])) + ", ..." * (len(odd) > 5)
        raise UserError(f"--data_root {root}: only one of train and test has {names}; both must have the same classes")
    if all(map(str.isdecimal, classes)) and sorted(classes, key=int) != classes:
        log.info("labels follow the class names sorted as text: %s, ...", ", ".join(classes[:3]))
    size = image_size or _size_of([path for path, _ in train or test])
    return splits_of_files(root, train, test, readable(classes), size, options, resize=image_size is not None)


def _find_folder(root: Path, *names: str) -> Path | None:
    """Return the folder in ``root`` with one of ``names`` in any case; None if there is none, UserError for several."""
    found = [path for path in sorted(root.iterdir()) if path.name.lower() in names and path.is_dir()]
    if len(found) > 1:
        both = f"{found[0].name}/ and {found[1].name}/"
        raise UserError(f"--data_root {root}: has {both}; rename or remove one of them")
    return found[0] if found else None


def _find_test_folder(root: Path, classes: list[str] | None) -> Path:
    """Return ``test/``, or ``val/`` if there is no ``test/`` or its images are not sorted by class."""
    test, val = _find_folder(root, "test", "testing"), _find_folder(root, "val", "valid", "validation")
    if not test and not val:
        raise UserError(f"--data_root {root}: no folder test/; it needs {_LAYOUT}")
    if not test or not val:
        return test or val
    labeled = set(class_folders(test, Counter())).intersection(classes or class_folders(val, Counter()))
    chosen, reason = (test, "") if labeled else (val, f", since {test.name}/ has no class folders")
    log.info("%s has %s/ and %s/: using %s/%s", root, test.name, val.name, chosen.name, reason)
    return chosen


def _list_images(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return (file, label) pairs by class, and the class names."""
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
    raise UserError(f"{path} and all other images: {damage}; replace them")
