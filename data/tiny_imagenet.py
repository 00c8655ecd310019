"""Tiny-ImageNet in its own layout: ``wnids.txt``, ``train/<wnid>/images/``, and a flat ``val/`` with annotations."""

from pathlib import Path

import torch

from data.decode import decoded, image_files
from data.splits import Split, Splits, require_size
from utils.errors import UserError

_FOLDER = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_FOLDER}.zip"


def load(root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Read Tiny-ImageNet from ``root``, or from ``tiny-imagenet-200`` in it (default ``datasets/``); 3x64x64 images.

    Classes are the sorted lines of ``wnids.txt``. ``val/`` is the test split: the labels of ``test/`` are not public.
    Raises UserError where a file is missing or wrong, or for another ``image_size``.
    """
    require_size("Tiny_Image", 64, image_size)
    root = _find(root or Path("datasets"))
    classes = sorted(_text(root / "wnids.txt").split())
    train, train_labels = _train_files(root, classes)
    test, test_labels = _test_files(root, classes)
    images = decoded(root, train + test, 64, workers=workers)
    return Splits(
        Split(images[: len(train)], torch.tensor(train_labels)),
        Split(images[len(train) :], torch.tensor(test_labels)),
        tuple(classes),
        flip=True,
    )


def _find(root: Path) -> Path:
    for candidate in (root, root / _FOLDER):
        if (candidate / "wnids.txt").is_file():
            return candidate
    place = root.parent if root.name == _FOLDER else root
    raise UserError(
        f"--data_root {root}: no Tiny-ImageNet there (no wnids.txt); "
        f"get it with: curl -LO {_URL} && unzip -q {_FOLDER}.zip -d {place}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable text; unpack {_URL} again") from error


def _train_files(root: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for label, wnid in enumerate(classes):
        if wnid != Path(wnid).name:
            raise UserError(f"{root / 'wnids.txt'}: {wnid!r} is no name of a class; unpack {_URL} again")
        folder = root / "train" / wnid / "images"
        found = image_files(folder)
        if not found:
            raise UserError(f"{folder}: no images of class {wnid} of wnids.txt; unpack {_URL} again")
        files += found
        labels += [label] * len(found)
    return files, labels


def _test_files(root: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """Follow ``val_annotations.txt``: file name, wnid, then a bounding box, separated by tabs."""
    annotations, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    if not annotations.is_file():
        raise UserError(f"{annotations}: is missing; unpack {_URL} again (--dataset Folder takes a rearranged val/)")
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    there = set(image_files(folder))
    files, labels = [], []
    for number, line in enumerate(_text(annotations).splitlines(), 1):
        name, wnid = f"{line}\t".split("\t")[:2]
        if folder / name not in there or wnid not in label_of:
            wrong = f"{wnid!r} is not in wnids.txt" if folder / name in there else f"there is no {folder / name}"
            raise UserError(f"{annotations}: line {number}: {wrong}; unpack {_URL} again")
        files.append(folder / name)
        labels.append(label_of[wnid])
    if not files:
        raise UserError(f"{annotations}: names no images; unpack {_URL} again")
    return files, labels
