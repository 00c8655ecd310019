"""Data sets by name, decoded in memory."""

from functools import partial
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from data import cifar, digits, image_folder, tiny_imagenet
from data.loader import Batches
from data.splits import TEST_SUBSET_SEED, Split, Splits, chosen, fingerprint, hold_out, subset, take
from utils.errors import UserError
from utils.names import canonical

__all__ = [
    "ALIASES",
    "DATASETS",
    "TEST_SUBSET_SEED",
    "Batches",
    "Split",
    "Splits",
    "chosen",
    "dataset_name",
    "fingerprint",
    "hold_out",
    "load",
    "subset",
    "take",
]

# name -> loader(root, image_size, workers) -> Splits
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
    """Our name of a data set; raises UserError with the nearest names."""
    return canonical(name, DATASETS, ALIASES, "--dataset")


def load(name: str, data_root: str | Path | None = None, *, image_size: int | None = None, workers: int = 4) -> Splits:
    """Return the data set ``name`` (of DATASETS or ALIASES, in any case), read from ``data_root`` or its usual place.

    ``image_size`` in pixels is for Folder and Digits; the others have one size. ``workers`` threads decode image files.
    Raises UserError for an unknown name, and for data that are missing, damaged or of another size.
    """
    name = dataset_name(name)
    try:
        root = None if data_root is None else Path(data_root).expanduser()
    except RuntimeError as error:
        raise UserError(f"--data_root {data_root}: there is no such user; write the folder out") from error
    return DATASETS[name](root, image_size, workers)
