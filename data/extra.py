"""Additional training images in one .npz file, such as images of a generative model, memory-mapped."""

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.cache import prefetch
from utils.config import TrainConfig
from utils.errors import UserError

_CHUNK = 2**22  # labels checked at a time


class ExtraData(NamedTuple):
    """Additional images, a share ``fraction`` of each batch; the arrays are mapped, not read.

    ``images`` (M, H, W, 3) uint8; ``labels`` (M,) integers, or None if ``predict`` returns the labels (B,) of uint8
    images (B, 3, H, W). ``checksums`` identify the content.
    """

    images: np.memmap
    labels: np.ndarray | None
    fraction: float
    checksums: list[int]
    predict: Callable[[Tensor], Tensor] | None = None

    def order(self, n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """Draw the indices of an epoch of full batches, as many as ``n`` training images fill; from n on, extra images.

        The training images follow a permutation; after its end, extra images replace them.
        """
        batches, own = -(-n // batch_size), batch_size - int(batch_size * self.fraction)
        rows = n + torch.randint(len(self.images), (batches, batch_size), generator=generator)
        first = rows[:, :own].clone().flatten()
        first[:n] = torch.randperm(n, generator=generator)[: len(first)]
        rows[:, :own] = first.view(batches, own)
        return rows.gather(1, torch.rand(batches, batch_size, generator=generator).argsort(1)).flatten()

    def describe(self, n: int, batch_size: int) -> str:
        """Describe an epoch for the log."""
        batches, extra = -(-n // batch_size), int(batch_size * self.fraction)
        used = min(n, batches * (batch_size - extra))
        mixture = f"{batches} batches of {batch_size - extra} training and {extra} extra images"
        return f"an epoch is {mixture}: {used:,} of {n:,} training images; {len(self.images):,} extra images"

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read images (B, 3, H, W) uint8 and labels (B,) int64."""
        prefetch(self.images, rows.tolist())
        images = torch.from_numpy(self.images[rows.numpy()]).permute(0, 3, 1, 2).contiguous()
        return images, None if self.predict else torch.from_numpy(self.labels[rows.numpy()].astype(np.int64))


def open_extra(config: TrainConfig, size: int, classes: int) -> ExtraData | None:
    """Map ``--extra_data``: ``image`` (M, ``size``, ``size``, 3) uint8 and, if they are used, ``label`` (M,) integers.

    Raises UserError if it cannot be mapped, or if its arrays are of another shape, type or number of classes.
    """
    if not config.extra_data:
        return None
    path, names = Path(os.path.expanduser(config.extra_data)), ["image"] + ["label"] * (config.extra_labels == "given")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            members = [members[f"{name}.npy"] for name in names]
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed, cannot be mapped; unzip it, then: zip -0 extra.npz image.npy label.npy")
        images, labels = ([_map(path, member) for member in members] + [None])[:2]
        _check(images, labels, size, classes)
    except Exception as error:  # the readers raise different exceptions for a damaged file
        reason = f"no array {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        arrays = f"image (N, {size}, {size}, 3) uint8 and label (N,) from 0 to {classes - 1}"
        message = f"{reason}; it must be an uncompressed .npz file with {arrays}"
        raise UserError(f"--extra_data {config.extra_data}: {message}") from error
    return ExtraData(images, labels, config.extra_fraction, [member.CRC for member in members])


def _map(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        file.seek(sum(struct.unpack("<26xHH", file.read(30))), 1)  # over the name and the extra field
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _check(images: np.ndarray, labels: np.ndarray | None, size: int, classes: int) -> None:
    """Raise ValueError unless the arrays fit the dataset."""
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
        raise ValueError(f"image is {images.dtype} {images.shape}")
    if labels is None:
        return
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(f"label is {labels.dtype} {labels.shape} for {len(images)} images")
    found = set()
    for start in range(0, len(labels), _CHUNK):
        found.update(np.unique(labels[start : start + _CHUNK]).tolist())
        if invalid := found - set(range(classes)):
            raise ValueError(f"has the label {max(invalid)}")
    if len(found) < classes:
        raise ValueError(f"has images of {len(found)} classes, not {classes}")
