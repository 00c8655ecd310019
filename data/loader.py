"""Batches of a split that is stored in the device's memory and augmented there."""

import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.augment import Transform, mix_batch
from data.extra import ExtraData
from data.splits import Split

log = logging.getLogger(__name__)


class Batches:
    """Iterate over a split: images (B, C, H, W) in [0, 1] and labels (B,) int64, both on ``device``.

    The last batch may be smaller. ``shuffle`` draws a new order for every epoch; ``transforms`` change the images.
    With ``mix_classes``, the number of classes, CutMix follows, and labels are probabilities (B, classes), float32.
    With ``extra`` every batch is full and contains extra images: see :meth:`ExtraData.order`.

    All random numbers of an epoch are drawn from ``generator`` (on the CPU) before its first batch. The same state of
    the generator at the start of an epoch therefore gives the same epoch, on any device and, without CutMix and extra
    data, with any batch size.
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
        order, draws = self._draw()
        white = torch.full((), 255.0, device=self.device)  # a GPU would multiply by the reciprocal of a number
        for start in range(count * self.batch_size, len(order), self.batch_size):
            part = slice(start, start + self.batch_size)
            images, labels = self._select(order[part])
            for transform, values in zip(self.transforms, draws, strict=False):
                images = transform.apply(images, values[part])
            if self.mix_classes:
                images, labels = mix_batch(images, labels, self.mix_classes, draws[-1][part])
            yield images.float().div_(white), labels

    def _draw(self) -> tuple[Tensor, list[Tensor]]:
        """Draw an epoch: order (N,), and draws (N, ...) of each transform and of CutMix."""
        n = len(self.labels)
        if self.extra:
            order = self.extra.order(n, self.batch_size, self.generator)
        else:
            order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        draws = [each.draw(len(order), self.images.shape[-1], self.generator) for each in self.transforms]
        if self.mix_classes:
            draws.append(torch.rand(len(order), 4, generator=self.generator, dtype=torch.float64))
        order = order if self.extra else order.to(self.images.device)
        return order, [each.to(self.device) for each in draws]

    def _select(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.extra is None:
            return self._copy(self.images[rows]), self._copy(self.labels[rows])
        is_extra = rows >= len(self.labels)
        own = self._copy(rows[~is_extra], self.images.device)
        extra_images, extra_labels = self.extra.at(rows[is_extra] - len(self.labels))
        extra_images = self._copy(extra_images)
        extra_labels = self.extra.predict(extra_images) if extra_labels is None else self._copy(extra_labels)
        images = torch.cat([self._copy(self.images[own]), extra_images])
        labels = torch.cat([self._copy(self.labels[own]), extra_labels])
        position = self._copy(is_extra.long().argsort(stable=True).argsort())  # of each row: extra images are last
        return images[position], labels[position]

    def _copy(self, batch: Tensor, device: torch.device | None = None) -> Tensor:
        device = device or self.device
        if batch.device.type == device.type:  # comparing devices would distinguish "cuda" and "cuda:0"
            return batch
        return batch.pin_memory().to(device, non_blocking=True)


def _move_to(split: Split, device: torch.device) -> Split:
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.cuda.OutOfMemoryError:
        size = split.images.nbytes / 2**20
        log.warning("%.0f MiB of images exceed the memory of %s: batches are copied from host memory", size, device)
        return split
