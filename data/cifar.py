"""CIFAR-10 and CIFAR-100 from torchvision, which downloads them and verifies the MD5 of every file."""

import logging
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from data.cache import ReadOptions
from data.splits import Split, Splits, check_image_size
from utils.errors import UserError

log = logging.getLogger(__name__)


def load(dataset: type[CIFAR10], root: Path | None, image_size: int | None, options: ReadOptions) -> Splits:
    """Read torchvision's ``dataset`` from ``root`` (default ``datasets/``): 50,000 + 10,000 images, 3x32x32.

    ``root`` may also be the extracted folder itself. Nothing is downloaded if its files are complete. ``options`` are
    not used: the files hold decoded pixels. Raises UserError for another ``image_size`` and for a failed download.
    """
    check_image_size(dataset.__name__, 32, image_size)
    if root and _is_image_folder(dataset, root):
        raise UserError(
            f"--data_root {root}: has train/ but no {dataset.base_folder}/; use --dataset Folder for images by class, "
            f"or name another folder, into which {dataset.__name__} is downloaded"
        )
    root = root or Path("datasets")
    if root.name == dataset.base_folder:
        root = root.parent
    try:
        test = dataset(root, train=False)
    except RuntimeError:  # torchvision: a file is missing or its checksum differs
        _download(dataset, root)
        test = dataset(root, train=False)
    train = dataset(root, train=True)
    return Splits(_split(train), _split(test), tuple(train.classes), flip=True)


def _is_image_folder(dataset: type[CIFAR10], root: Path) -> bool:
    """Whether data/image_folder.py can read a folder that has no file of ``dataset``."""
    by_class = (root / "train").is_dir() and any((root / name).is_dir() for name in ("test", "val"))
    return by_class and not any((root / name).exists() for name in (dataset.base_folder, dataset.filename))


def _split(dataset: CIFAR10) -> Split:
    return Split(torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets))


def _download(dataset: type[CIFAR10], root: Path) -> None:
    # Not dataset(download=True): it ignores a missing file of class names if the batches are complete.
    log.info("%s is not in %s: downloading it", dataset.__name__, root)
    try:
        download_and_extract_archive(dataset.url, root, filename=dataset.filename, md5=dataset.tgz_md5)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"--data_root {root}: {dataset.__name__} is missing or damaged and its download failed ({error}); "
            f"put {dataset.filename} from {dataset.url} there, or name the folder with {dataset.base_folder}/"
        ) from error
