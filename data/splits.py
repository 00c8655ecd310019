"""What every data set becomes: two splits in memory, and the ways to take a part of one."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from utils.errors import UserError

TEST_SUBSET_SEED = 0  # --limit_test selects the same images for every --seed


class Split(NamedTuple):
    """Decoded images and their labels: ``images`` (N, C, H, W) uint8 in 0..255, ``labels`` (N,) int64."""

    images: Tensor
    labels: Tensor


class Splits(NamedTuple):
    """A data set. ``classes[k]`` names label k; ``flip`` says whether a mirrored image keeps its class."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool

    @property
    def image_size(self) -> int:
        """Height and width in pixels; all images are square."""
        return self.train.images.shape[-1]


def require_size(name: str, own: int, image_size: int | None) -> None:
    """Raise UserError where ``--image_size`` asks a data set of one size for another."""
    if image_size not in (None, own):
        raise UserError(f"--image_size {image_size}: {name} has {own}x{own} images; leave the flag out")


def subset(split: Split, n: int | None, seed: int) -> Split:
    """Take ``n`` images in their original order, the whole split where ``n`` is None or not smaller than it.

    Stratified: classes keep their shares, so equal classes stay equal to within one image, and each class is
    represented as long as ``n`` allows. The choice depends on ``seed`` alone.
    Raises UserError for ``n`` < 1.
    """
    return split if n is None or n >= len(split.labels) else take(split, chosen(split, n, seed))


def chosen(split: Split, n: int | None, seed: int) -> Tensor:
    """Mark the images, (N,) bool, that :func:`subset` takes. Raises UserError for ``n`` < 1."""
    if n is None or n >= len(split.labels):
        return torch.ones(len(split.labels), dtype=torch.bool)
    if n < 1:
        raise UserError(f"--limit_train/--limit_test {n}: must be at least 1 image")
    return _stratified(split.labels, n, seed)


def hold_out(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """Part ``split`` into (the rest, ``n`` validation images), both stratified and in their original order.

    A class too small to be in both stays in the first. Raises UserError unless 0 < ``n`` < N.
    """
    size = len(split.labels)
    if not 0 < n < size:
        raise UserError(f"--val_size {n}: must be between 1 and {size - 1}; the training set has {size} images")
    kept = _stratified(split.labels, size - n, seed)
    return take(split, kept), take(split, ~kept)


def take(split: Split, mask: Tensor) -> Split:
    """The images that ``mask`` (N,) marks, in their order."""
    return Split(split.images[mask], split.labels[mask])


def _stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """Mark ``n`` of N labels: (N,) bool.

    Each image gets the share of its class that a random queue of the class has in front of it, 0 for the first;
    the n smallest shares are taken, ties at random. So the queues shorten at the same relative pace.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    queues = shuffled[labels[shuffled].argsort(stable=True)]  # all of class 0 in random order, then class 1, ...
    counts = labels.bincount()
    owner = labels[queues]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[owner]
    share = torch.empty(len(labels), dtype=torch.float64)
    share[queues] = place.double() / counts[owner]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[shuffled[share[shuffled].argsort(stable=True)[:n]]] = True
    return mask


def fingerprint(split: Split) -> int:
    """A number that tells one split's images and labels, in their order, from another's."""
    return zlib.crc32(split.labels.numpy(), zlib.crc32(split.images.contiguous().numpy()))
