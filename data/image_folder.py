"""Any images of your own: ``train/`` and ``test/`` (or ``val/``), each with a subfolder of images per class."""

import logging
from pathlib import Path

import torch

from data.decode import decoded, image_files, open_image
from data.splits import Split, Splits
from utils.errors import UserError

log = logging.getLogger(__name__)

_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/) with PNG or JPEG images"


def load(root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Read PNG and JPEG files below ``root``; classes are the sorted names of the subfolders of ``train/``.

    With ``image_size`` every image is scaled and cut to that square; without it all must be squares of one size.
    Raises UserError for a missing, empty or mismatched folder, an unreadable image, or one of another size.
    """
    if root is None:
        raise UserError(f"--data_root: --dataset Folder needs a folder with {_LAYOUT}")
    train, classes = _listing(root / "train")
    test, test_classes = _listing(_test_folder(root))
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f"--data_root {root}: only one of train and test has the class {odd[0]!r}; give both the same")
    paths = [path for path, _ in train + test]
    size = image_size or _own_size(paths[0])
    images = decoded(root, paths, size, workers=workers, resize=image_size is not None)
    labels = torch.tensor([label for _, label in train + test])
    parts = (slice(None, len(train)), slice(len(train), None))
    return Splits(*(Split(images[part], labels[part]) for part in parts), classes, flip=True)


def _test_folder(root: Path) -> Path:
    found = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if len(found) == 2:
        log.info("%s has test/ and val/: testing on test/", root)
    return found[0] if found else root / "test"


def _listing(folder: Path) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Return (file, label) pairs by class, and the class names."""
    if not folder.is_dir():
        raise UserError(f"--data_root {folder.parent}: no folder {folder.name}/ there; it needs {_LAYOUT}")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder}: needs a subfolder of images for each of at least 2 classes, has {len(classes)}")
    pairs = []
    for label, name in enumerate(classes):
        files = image_files(folder / name)
        if not files:
            raise UserError(f"{folder / name}: has no PNG or JPEG images; add some or remove the folder")
        pairs += [(path, label) for path in files]
    return pairs, tuple(classes)


def _own_size(path: Path) -> int:
    width, height = open_image(path).size
    if width != height:
        raise UserError(f"{path}: is {width}x{height}, not square; --image_size N cuts every image to NxN")
    return width
