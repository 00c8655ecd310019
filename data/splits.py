"""A dataset as two splits, and subsets of a split."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import UserError

TEST_SUBSET_SEED = 0  # --limit_test selects the same images for every --seed


class Split(NamedTuple):
    """Images and their labels: ``images`` (N, C, H, W) uint8 in 0..255, ``labels`` (N,) int64.

    ``images`` may be ImageFiles (data/image_files.py), which are indexed like a Tensor but stay on the disk.
    """

    images: Tensor
    labels: Tensor


class Splits(NamedTuple):
    """A dataset. ``classes[k]`` is the name of label k; ``flip`` says whether a mirrored image keeps its class."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool

    @property
    def image_size(self) -> int:
        """Height and width in pixels; all images are square."""
        return self.train.images.shape[-1]


def check_image_size(dataset: str, size: int, image_size: int | None) -> None:
    """Raise UserError if ``--image_size`` differs from the fixed size of a dataset."""
    if image_size not in (None, size):
        raise UserError(f"--image_size {image_size}: {dataset} has {size}x{size} images; remove the flag")


def subset(split: Split, n: int | None, seed: int) -> Split:
    """Return ``n`` images in their original order, or the whole split if ``n`` is None or at least its size.

    Stratified: each class keeps its share, so classes of equal size differ by at most one image, and every class is
    present if ``n`` allows it. The choice depends only on ``seed``. Raises UserError for ``n`` < 1.
    """
    return split if n is None or n >= len(split.labels) else take(split, subset_mask(split, n, seed))


def subset_mask(split: Split, n: int | None, seed: int) -> Tensor:
    """Return the mask (N,) bool of the images in :func:`subset`. Raises UserError for ``n`` < 1."""
    if n is None or n >= len(split.labels):
        return torch.ones(len(split.labels), dtype=torch.bool, device="cpu")
    if n < 1:
        raise UserError(f"--limit_train/--limit_test {n}: must be at least 1 image")
    return _stratified_mask(split.labels, n, seed)


def hold_out(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Divide ``split`` into (the rest, ``n`` validation images), both stratified and in their original order.

    A class with too few images for both is only in the first. Raises UserError unless 0 < ``n`` < N.
    """
    size = len(split.labels)
    if not 0 < n < size:
        raise UserError(f"--val_size {n}: must be between 1 and {size - 1}; the training set has {size} images")
    mask = _stratified_mask(split.labels, size - n, seed)
    return take(split, mask), take(split, ~mask)


def take(split: Split, mask: Tensor) -> Split:
    """Return the images selected by ``mask`` (N,) bool, in their order; those of files are not read."""
    images = split.images[mask] if isinstance(split.images, Tensor) else split.images.take(mask)
    return Split(images, split.labels[mask])


def fingerprint(split: Split) -> int:
    """Return a checksum of a split's images and labels in their order."""
    total = 0
    for start in range(0, len(split.labels), 256):
        total = zlib.crc32(split.images[start : start + 256].contiguous().numpy(), total)
    return zlib.crc32(split.labels.numpy(), total)


def _stratified_mask(labels: Tensor, n: int, seed: int) -> Tensor:
    """Select ``n`` of N labels: (N,) bool.

    Each class is shuffled. The image at position i of a class with m images has the rank i / m; the n images of lowest
    rank are selected, ties at random.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]  # all of class 0 in random order, then class 1, ...
    counts, sorted_labels = labels.bincount(), labels[by_class]
    position = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[sorted_labels]
    rank = torch.empty(len(labels), dtype=torch.float64)
    rank[by_class] = position.double() / counts[sorted_labels]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[shuffled[rank[shuffled].argsort(stable=True)[:n]]] = True
    return mask
