"""Batches of a split that is kept in the device's memory and augmented there."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data.augment import Transform, cutmix, mirror
from data.extra import ExtraData
from data.splits import Split

log = logging.getLogger(__name__)


class Batches:
    """Iterate over a split: images (B, C, H, W) in [0, 1] and labels (B,) int64, both on ``device``.

    The last batch may be smaller. ``shuffle`` draws a new order for every epoch; ``transforms`` are applied in their
    order, to uint8 images. With ``mix_classes``, the number of classes, CutMix follows, and labels are probabilities
    (B, classes), float32.

    With ``extra``, every batch is full: its first part are images of the split, in a new order for every epoch, its
    second part random images of ``extra``; both are shuffled. An epoch has as many batches as without ``extra``, so it
    does not use every image of the split.

    All random numbers of an epoch are drawn from ``generator`` (on the CPU) before its first batch. A generator in the
    state from the start of an epoch therefore repeats that epoch on any device, and, except for CutMix and ``extra``,
    with any batch size.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device | str,
        shuffle: bool = False,
        transforms: Sequence[Transform] = (),
        mix_classes: int = 0,
        extra: ExtraData | None = None,
        generator: torch.Generator | None = None,
    ):
        self.device = torch.device(device)
        self.images, self.labels = _move_to(split, self.device)
        self.batch_size, self.shuffle, self.transforms, self.mix_classes = batch_size, shuffle, transforms, mix_classes
        self.extra, self.generator = extra, generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.skip(0)

    def skip(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over an epoch without its first ``count`` batches; the others do not change."""
        epoch = self._draw()
        for number in range(count, len(self)):
            images, labels = self._select(epoch, number)
            part = slice(number * self.batch_size, number * self.batch_size + len(labels))
            for transform, draws in zip(self.transforms, epoch.draws, strict=True):
                images = transform.apply(images, *(values[part] for values in draws))
            if self.mix_classes:
                images, labels = self._mix(images, labels, epoch.mix[part])
            yield images.float().div_(255), labels

    def describe(self) -> str:
        """Return what is done to the images, and with ``extra`` what an epoch consists of."""
        steps = [each.description for each in self.transforms] + ["mixed by CutMix"] * bool(self.mix_classes)
        if not any(each.apply is mirror for each in self.transforms):
            steps.append("not mirrored")
        if self.extra:
            n, size = len(self.labels), self.extra.own_per_batch(self.batch_size)
            steps.append(
                f"an epoch is {len(self)} batches of {size} training and {self.batch_size - size} extra images, "
                f"{self.extra.own_images(n, self.batch_size):,} of {n:,} training images; "
                f"{len(self.extra.images):,} extra images"
            )
        return ", ".join(steps)

    def _draw(self) -> "_Epoch":
        n, extra, order_in_batch = len(self.labels), None, None
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        if self.extra:
            own, n = self.extra.own_images(n, self.batch_size), len(self) * self.batch_size
            extra = torch.randint(len(self.extra.images), (n - own,), generator=self.generator)
            order_in_batch = torch.rand(len(self), self.batch_size, generator=self.generator).argsort(1).to(self.device)
        draws = [[x.to(self.device) for x in each.draw(n, self.generator)] for each in self.transforms]
        mix = None
        if self.mix_classes:
            mix = torch.rand(n, 4, generator=self.generator, dtype=torch.float64).to(self.device)
        return _Epoch(order.to(self.images.device), extra, order_in_batch, draws, mix)

    def _select(self, epoch: "_Epoch", number: int) -> tuple[Tensor, Tensor]:
        size = self.batch_size if self.extra is None else self.extra.own_per_batch(self.batch_size)
        rows = epoch.order[number * size : (number + 1) * size]
        images, labels = self._to_device(self.images[rows]), self._to_device(self.labels[rows])
        if self.extra is None:
            return images, labels
        start = number * (self.batch_size - size)
        others = epoch.extra[start : start + self.batch_size - len(rows)]
        other_images = self._to_device(self.extra.images_at(others))
        other_labels = self.extra.predict(other_images) if self.extra.predict else self.extra.labels_at(others)
        rows = epoch.order_in_batch[number]
        labels = torch.cat([labels, self._to_device(other_labels)])
        return torch.cat([images, other_images])[rows], labels[rows]

    def _mix(self, images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Apply CutMix; ``draws`` (B, 4) are uniform in [0, 1): the order of its column 0 is the permutation."""
        share, row, column = draws[0, 1:]  # one box for the batch
        height, width = images.shape[2:]
        center = (row * height).long(), (column * width).long()
        labels = F.one_hot(labels, self.mix_classes).float()
        return cutmix(images, labels, draws[:, 0].argsort(), share, *center)

    def _to_device(self, batch: Tensor) -> Tensor:
        if batch.device.type == self.device.type:  # comparing devices would distinguish "cuda" and "cuda:0"
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)


class _Epoch(NamedTuple):
    """The random numbers of an epoch."""

    order: Tensor  # of the split's images, on their device
    extra: Tensor | None  # indices of extra images, on the CPU
    order_in_batch: Tensor | None  # (batches, B)
    draws: list[list[Tensor]]  # of each transform, one row for each image
    mix: Tensor | None  # (images, 4), of CutMix


def _move_to(split: Split, device: torch.device) -> Split:
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.cuda.OutOfMemoryError:
        size = split.images.nbytes / 2**20
        log.warning("%.0f MiB of images exceed the memory of %s: batches are copied from host memory", size, device)
        return Split(split.images.cpu(), split.labels.cpu())
