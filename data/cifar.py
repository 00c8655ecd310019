"""CIFAR-10 and CIFAR-100 from torchvision, which downloads them and checks every file's MD5."""

import logging
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive

from data.splits import Split, Splits, require_size
from utils.errors import UserError

log = logging.getLogger(__name__)


def load(dataset: type[CIFAR10], root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Read ``dataset``, torchvision's class, from ``root`` (default ``datasets/``): 50,000 + 10,000 images, 3x32x32.

    ``root`` may also be the unpacked folder itself. Files that are there and whole are used without a network; the
    pickles hold decoded pixels, so there is nothing to cache.
    ``workers`` is not used.
    Raises UserError for another ``image_size``, or where the files are neither there nor to be had.
    """
    require_size(dataset.__name__, 32, image_size)
    if root and _is_of_images(dataset, root):
        raise UserError(
            f"--data_root {root}: holds train/ and no {dataset.base_folder}/: images by class are --dataset Folder; "
            f"{dataset.__name__} is downloaded into another folder that you name"
        )
    root = root or Path("datasets")
    if root.name == dataset.base_folder:
        root = root.parent
    try:
        test = dataset(root, train=False)
    except RuntimeError:  # torchvision's word for "a file is missing or its checksum differs"
        _download(dataset, root)
        test = dataset(root, train=False)
    train = dataset(root, train=True)
    return Splits(_split(train), _split(test), tuple(train.classes), flip=True)


def _is_of_images(dataset: type[CIFAR10], root: Path) -> bool:
    """Whether a folder is one that data/image_folder.py reads, and has nothing of ``dataset``."""
    by_class = (root / "train").is_dir() and any((root / name).is_dir() for name in ("test", "val"))
    return by_class and not any((root / name).exists() for name in (dataset.base_folder, dataset.filename))


def _split(dataset: CIFAR10) -> Split:
    return Split(torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets))


def _download(dataset: type[CIFAR10], root: Path) -> None:
    # Not dataset(download=True): that overlooks a missing file of class names when the batches are whole.
    log.info("%s is not in %s: fetching %s", dataset.__name__, root, dataset.url)
    try:
        download_and_extract_archive(dataset.url, root, filename=dataset.filename, md5=dataset.tgz_md5)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"--data_root {root}: {dataset.__name__} is not there, or damaged, and its download failed ({error}); "
            f"put {dataset.filename} from {dataset.url} into {root}, or name the folder that holds "
            f"{dataset.base_folder}/"
        ) from error
