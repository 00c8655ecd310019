"""CIFAR-10 and CIFAR-100 from torchvision, which downloads them and verifies the MD5 of every file."""

import logging
import os
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

    ``root`` may also be the extracted folder itself, under any name. Nothing is downloaded if its files are complete.
    ``options`` are not used: the files hold decoded pixels. Raises UserError for a failed download.
    """
    check_image_size(dataset.__name__, 32, image_size)
    by_class = root and (root / "train").is_dir() and any((root / name).is_dir() for name in ("test", "val"))
    if by_class and not any((root / name).exists() for name in (dataset.base_folder, dataset.filename)):
        raise UserError(
            f"--data_root {root}: has train/ but no {dataset.base_folder}/; use --dataset Folder for images by class, "
            f"or choose another folder, into which {dataset.__name__} is downloaded"
        )
    root = root or Path("datasets")
    if root.name == dataset.base_folder:
        root = root.parent
    renamed = (root / dataset.test_list[0][0]).is_file()
    reader = type(dataset.__name__, (dataset,), {"base_folder": ""}) if renamed else dataset
    try:
        test = reader(root, train=False)
    except RuntimeError:  # torchvision: a file is missing or its checksum differs
        _download(dataset, root)
        reader = dataset
        test = reader(root, train=False)
    train = reader(root, train=True)
    return Splits(_split(train), _split(test), tuple(train.classes), flip=True)


def _split(dataset: CIFAR10) -> Split:
    return Split(torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets))


def _download(dataset: type[CIFAR10], root: Path) -> None:
    folder = root / dataset.base_folder
    if folder.is_dir() and not os.access(folder, os.X_OK):
        raise UserError(f"{folder}: permission denied; it must be readable")
    # Not dataset(download=True): it ignores a missing file of class names if the batches are complete.
    log.info("%s in %s is missing or damaged: downloading it", dataset.__name__, root)
    try:
        download_and_extract_archive(dataset.url, root, filename=dataset.filename, md5=dataset.tgz_md5)
    except (OSError, HTTPException, RuntimeError) as error:
        raise UserError(
            f"--data_root {root}: {dataset.__name__} is missing or damaged and its download failed ({error}); "
            f"put {dataset.filename} from {dataset.url} there, or give the folder with {dataset.base_folder}/"
        ) from error
