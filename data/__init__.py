"""Datasets by name."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10, CIFAR100

from data import cifar, digits, image_folder, tiny_imagenet
from data.cache import ReadOptions
from data.decode import limit_pixels
from data.image_files import decode_files
from data.loader import Batches
from data.splits import TEST_SUBSET_SEED, Split, Splits, fingerprint, hold_out, subset, subset_mask, take
from utils.config import EvalConfig, TrainConfig
from utils.errors import UserError
from utils.names import canonical

__all__ = ["TEST_SUBSET_SEED", "Batches", "ReadOptions", "Split", "Splits", "decode_files", "fingerprint", "hold_out"]
__all__ += ["load", "load_configured", "subset", "subset_mask", "take"]

# Name -> loader(root, image_size, options), which returns Splits.
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


def load(
    name: str,
    data_root: str | Path | None = None,
    *,
    image_size: int | None = None,
    **options: Any,
) -> Splits:
    """Return the dataset ``name`` (of DATASETS or ALIASES, in any case), read from ``data_root`` or its default folder.

    Image files are only listed: :func:`decode_files` or the first access decodes those that are used. ``image_size`` in
    pixels is for Folder and Digits; the others have a fixed size. ``options`` are those of ReadOptions. Raises
    UserError for an unknown name, missing data, and data of another size.
    """
    name = dataset_name(name)
    root = None if data_root is None else Path(os.path.expanduser(data_root))
    if root and root.is_file():
        raise UserError(f"--data_root {root}: is a file, not a folder; unpack an archive first")
    options = ReadOptions(**options)
    limit_pixels(options.max_pixels)
    return DATASETS[name](root, image_size, options)


def load_configured(config: TrainConfig | EvalConfig) -> Splits:
    """Return the dataset that the flags of ``config`` name; raise UserError for training without training images."""
    names = ("image_size", *ReadOptions._fields)
    splits = load(config.dataset, config.data_root, **{name: getattr(config, name) for name in names})
    if isinstance(config, TrainConfig) and not len(splits.train.labels):
        raise UserError(f"--data_root {config.data_root}: no folder train/; training needs train/<class>/ with images")
    return splits
