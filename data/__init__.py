"""Datasets by name, decoded in memory."""

from functools import partial
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from data import cifar, digits, image_folder, tiny_imagenet
from data.loader import Batches
from data.splits import TEST_SUBSET_SEED, Split, Splits, fingerprint, hold_out, subset, subset_mask, take
from utils.errors import UserError
from utils.names import canonical

__all__ = ["TEST_SUBSET_SEED", "Batches", "Split", "Splits", "fingerprint", "hold_out", "subset", "subset_mask", "take"]

# Name -> loader(root, image_size, workers), which returns Splits.
DATASETS = {
    "CIFAR10": partial(cifar.load, CIFAR10),
    "CIFAR100": partial(cifar.load, CIFAR100),
    "Tiny_Image": tiny_imagenet.load,
    "Digits": digits.load,
    "Folder": image_folder.load,
}
ALIASES = {
    "CIFAR-10": "CIFAR10",
    "CIFAR-100": "CIFAR100",
    "TinyImageNet": "Tiny_Image",
    "Tiny-ImageNet": "Tiny_Image",
    "tiny-imagenet-200": "Tiny_Image",
    "ImageFolder": "Folder",
}


def dataset_name(name: str) -> str:
    """Return the key of DATASETS for a name or alias in any case; raises UserError with the nearest names."""
    return canonical(name, DATASETS, ALIASES, "--dataset")


def load(name: str, data_root: str | Path | None = None, *, image_size: int | None = None, workers: int = 4) -> Splits:
    """Return the dataset ``name`` (of DATASETS or ALIASES, in any case), read from ``data_root`` or its default folder.

    ``image_size`` in pixels is for Folder and Digits; the others have a fixed size. ``workers`` threads decode files.
    Raises UserError for an unknown name, and for missing or damaged data or data of another size.
    """
    name = dataset_name(name)
    try:
        root = None if data_root is None else Path(data_root).expanduser()
    except RuntimeError as error:
        raise UserError(f"--data_root {data_root}: there is no such user; write the full path") from error
    return DATASETS[name](root, image_size, workers)
