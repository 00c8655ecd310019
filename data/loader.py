"""Batches of a split that is kept in the device's memory and augmented there."""

import logging
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data.splits import Split

log = logging.getLogger(__name__)


class Batches:
    """Iterate over a split: images (B, C, H, W) in [0, 1] and labels (B,) int64, both on ``device``.

    The last batch may be smaller. ``shuffle`` draws a new order for every epoch; ``crop`` pads that many zero pixels on
    each side and crops to the original size at random; ``flip`` mirrors images with probability 1/2. Crop and flip
    have the distribution of torchvision's RandomCrop(padding=crop) and RandomHorizontalFlip().

    All random numbers of an epoch are drawn from ``generator`` (on the CPU) before its first batch. A generator in the
    state from the start of an epoch therefore repeats that epoch, on any device and with any batch size.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device | str,
        shuffle: bool = False,
        crop: int = 0,
        flip: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.device = torch.device(device)
        self.images, self.labels = _move_to(split, self.device)
        self.batch_size, self.shuffle, self.crop, self.flip = batch_size, shuffle, crop, flip
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.skip(0)

    def skip(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over an epoch without its first ``count`` batches; the others do not change."""
        order, corners, mirrored = self._draw(len(self.labels))
        for start in range(count * self.batch_size, len(self.labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            images, labels = self._fetch(self.images, order[part]), self._fetch(self.labels, order[part])
            if self.crop:
                images = random_crop(images, self.crop, corners[part])
            if self.flip:
                images = torch.where(mirrored[part, None, None, None], images.flip(3), images)
            yield images.float().div_(255), labels

    def _draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draw an epoch: order (N,) on the images' device; corners (N, 2) and mirrored (N,) bool on ``device``."""
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        corners = mirrored = None
        if self.crop:
            corners = torch.randint(2 * self.crop + 1, (n, 2), generator=self.generator).to(self.device)
        if self.flip:
            mirrored = torch.randint(2, (n,), generator=self.generator).bool().to(self.device)
        return order.to(self.images.device), corners, mirrored

    def _fetch(self, source: Tensor, rows: Tensor) -> Tensor:
        batch = source[rows]
        if batch.device.type == self.device.type:  # comparing devices would distinguish "cuda" and "cuda:0"
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)


def random_crop(images: Tensor, padding: int, corners: Tensor) -> Tensor:
    """Zero-pad ``images`` (B, C, H, W) and crop HxW windows at ``corners`` (B, 2), (row, column) in 0..2*padding."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, rows, columns, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def _move_to(split: Split, device: torch.device) -> Split:
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.cuda.OutOfMemoryError:
        size = split.images.nbytes / 2**20
        log.warning("%.0f MiB of images exceed the memory of %s: batches are copied from host memory", size, device)
        return Split(split.images.cpu(), split.labels.cpu())
