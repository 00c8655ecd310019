"""Tiny-ImageNet as published, ``wnids.txt``, ``train/<wnid>/images/`` and an annotated ``val/``, or sorted by class."""

import logging
import re
from collections import Counter
from pathlib import Path

from data.cache import ReadOptions
from data.files import image_files, labeled_images
from data.image_files import splits_of_files
from data.splits import Splits, check_image_size
from utils.errors import UserError

log = logging.getLogger(__name__)

_FOLDER = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_FOLDER}.zip"
_UNPACK = f"unpack {_URL} again"


def load(root: Path | None, image_size: int | None, options: ReadOptions) -> Splits:
    """Read Tiny-ImageNet from ``root``, or from ``tiny-imagenet-200`` in it (default ``datasets/``); 3x64x64 images.

    Classes are the sorted lines of ``wnids.txt``. ``val/`` is the test split: the labels of ``test/`` are not public.
    Images sorted into class folders have the labels and the order of the published annotations. Raises UserError for a
    missing or damaged file, and for another ``image_size``.
    """
    check_image_size("Tiny_Image", 64, image_size)
    root = _find(root or Path("datasets"))
    classes = sorted({*_read_text(root / "wnids.txt").split()})
    if not classes or any(wnid != Path(wnid).name for wnid in classes):
        raise UserError(f"{root / 'wnids.txt'}: not a list of class names; {_UNPACK}")
    train = []  # evaluation needs none
    if (root / "train").is_dir():
        train = labeled_images("train", [[root / "train" / wnid] for wnid in classes], Counter(), _UNPACK)
    return splits_of_files(root, train, _test_images(root, classes), classes, 64, options)


def _find(root: Path) -> Path:
    for candidate in (root, root / _FOLDER):
        if (candidate / "wnids.txt").is_file():
            return candidate
    target = root.parent if root.name == _FOLDER else root
    raise UserError(
        f"--data_root {root}: no Tiny-ImageNet (no wnids.txt); "
        f"get it with: curl -LO {_URL} && unzip -q {_FOLDER}.zip -d {target}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: missing or not readable as text; {_UNPACK}") from error


def _test_images(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the annotated images, wherever scripts moved them; without annotations, those of the class folders."""
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        folders = [root / part for part in ("test", "val") if (root / part).is_dir()]
        files = {path.name: path for folder in folders for path in image_files(folder, (), Counter())}
        return _annotated_images(annotations, files, {wnid: label for label, wnid in enumerate(classes)})
    part = next((part for part in ("val", "val/images", "test") if (root / part / classes[0]).is_dir()), "val")
    hint = f"there is no {annotations} either; {_UNPACK}"
    pairs = labeled_images("val", [[root / part / wnid] for wnid in classes], Counter(), hint)
    return sorted(pairs, key=lambda pair: int(re.sub(r"\D", "", pair[0].stem) or 0))  # val_0, val_1, ...


def _annotated_images(annotations: Path, files: dict[str, Path], label_of: dict[str, int]) -> list[tuple[Path, int]]:
    """Return the images of the lines ``<file name> <wnid> <bounding box>``."""
    pairs = []
    for number, line in enumerate(_read_text(annotations).rstrip().splitlines(), 1):
        name, wnid, *_ = *line.split(), "", ""
        if wnid not in label_of:
            raise UserError(f"{annotations}: line {number}: {wnid!r} is not in wnids.txt; {_UNPACK}")
        if name not in files:
            raise UserError(f"{annotations}: line {number}: no file {name} in val/; {_UNPACK}")
        pairs.append((files[name], label_of[wnid]))
    if not pairs:
        raise UserError(f"{annotations}: no images; {_UNPACK}")
    log.info("val/: %s annotated images", f"{len(pairs):,}")
    return pairs
