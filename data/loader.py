"""Batches from the device's own memory, augmented there."""

import logging
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from data.splits import Split

log = logging.getLogger(__name__)


class Batches:
    """Iterate over one split: images (B, C, H, W) in [0, 1] and labels (B,) int64, both on ``device``.

    The last batch is kept, however small. ``shuffle`` draws an order for every epoch; ``crop`` pads that many zero
    pixels on each side and cuts a window of the old size at random; ``flip`` mirrors every second image by chance.
    Crop and flip have the distribution of torchvision's RandomCrop(padding=crop) and RandomHorizontalFlip().

    All draws of an epoch come from ``generator`` (on the CPU) when its first batch is asked for. So a generator set
    to the state it had at the start of an epoch repeats that epoch, on any device and for any batch size.
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
        self.images, self.labels = _resident(split, self.device)
        self.batch_size, self.shuffle, self.crop, self.flip = batch_size, shuffle, crop, flip
        self.generator = generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.after(0)

    def after(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch whose first ``done`` are left out, as if they had been there."""
        order, corners, mirrored = self._draw(len(self.labels))
        for start in range(done * self.batch_size, len(self.labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            images, labels = self._fetch(self.images, order[part]), self._fetch(self.labels, order[part])
            if self.crop:
                images = random_crop(images, self.crop, corners[part])
            if self.flip:
                images = torch.where(mirrored[part, None, None, None], images.flip(3), images)
            yield images.float().div_(255), labels

    def _draw(self, n: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Draw an epoch: order (N,) where the images are; corners (N, 2) and mirrored (N,) bool on the device."""
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        corners = mirrored = None
        if self.crop:
            corners = torch.randint(2 * self.crop + 1, (n, 2), generator=self.generator).to(self.device)
        if self.flip:
            mirrored = torch.randint(2, (n,), generator=self.generator).bool().to(self.device)
        return order.to(self.images.device), corners, mirrored

    def _fetch(self, source: Tensor, rows: Tensor) -> Tensor:
        batch = source[rows]
        if batch.device.type == self.device.type:  # not the devices: "cuda" differs from "cuda:0"
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)


def random_crop(images: Tensor, padding: int, corners: Tensor) -> Tensor:
    """Pad (B, C, H, W) ``images`` with zeros and cut an HxW window out of each, its corner in ``corners`` (B, 2).

    A corner is (row, column) in 0..2*padding; (padding, padding) gives the image back.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, rows, columns, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def _resident(split: Split, device: torch.device) -> Split:
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.cuda.OutOfMemoryError:
        size = split.images.nbytes / 2**20
        log.warning("%s has no room for %.0f MiB of images: they stay in host memory, batches are copied", device, size)
        return Split(split.images.cpu(), split.labels.cpu())
