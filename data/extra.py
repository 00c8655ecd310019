"""Additional training images in one .npz file, such as images of a generative model, memory-mapped."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

_CHUNK = 2**22  # labels checked at a time
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of its extra field


class ExtraData(NamedTuple):
    """Additional images, of which a share ``fraction`` of each batch is drawn; arrays are mapped, not read.

    ``images`` (M, H, W, 3) uint8; ``labels`` (M,) integers, or None if ``predict`` returns them, (B,) int64, for uint8
    images (B, 3, H, W). ``checksums`` identify the file's content.
    """

    images: np.ndarray
    labels: np.ndarray | None
    fraction: float
    checksums: list[int]
    predict: Callable[[Tensor], Tensor] | None = None

    def own_per_batch(self, batch_size: int) -> int:
        """Number of images of a batch that belong to the training set."""
        return batch_size - int(batch_size * self.fraction)

    def own_images(self, n: int, batch_size: int) -> int:
        """Number of the ``n`` images of the training set that an epoch uses."""
        return min(n, -(-n // batch_size) * self.own_per_batch(batch_size))

    def images_at(self, rows: Tensor) -> Tensor:
        """Read images (B, 3, H, W) uint8."""
        return torch.from_numpy(self.images[rows.numpy()]).permute(0, 3, 1, 2).contiguous()

    def labels_at(self, rows: Tensor) -> Tensor:
        """Read labels (B,) int64."""
        return torch.from_numpy(self.labels[rows.numpy()].astype(np.int64))


def open_extra(file: str, fraction: float, size: int, classes: int, *, labels: bool) -> ExtraData:
    """Map an .npz file: ``image`` (M, ``size``, ``size``, 3) uint8 and, if ``labels``, ``label`` (M,) integers.

    Raises UserError if it cannot be read or mapped, or if its arrays are of another shape, type or number of classes.
    """
    path, names = Path(file).expanduser(), ("image", "label")[: 1 + labels]
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_member(archive, file, name) for name in names]
        arrays = [_map(path, member) for member in members]
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--extra_data {file}: cannot be read as an .npz file ({reason})") from error
    images = arrays[0]
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
        raise UserError(
            f"--extra_data {file}: image is {images.dtype} {images.shape}; it must be uint8 (N, {size}, {size}, 3), "
            "as the dataset's images"
        )
    if labels:
        _check_labels(file, arrays[1], len(images), classes)
    return ExtraData(images, arrays[1] if labels else None, fraction, [member.CRC for member in members])


def _member(archive: zipfile.ZipFile, file: str, name: str) -> zipfile.ZipInfo:
    member = next((member for member in archive.infolist() if member.filename == f"{name}.npy"), None)
    if member is None:
        raise UserError(f"--extra_data {file}: has no array {name!r}; it must hold image and label")
    if member.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"--extra_data {file}: is compressed, so it cannot be memory-mapped; write it again with numpy.savez, or: "
            f"unzip {file} -d extra && (cd extra && zip -0 ../extra.npz *.npy)"
        )
    return member


def _map(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map an uncompressed array of a zip file. Raises ValueError if it is incomplete or not an array of numbers."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds objects, not numbers")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _check_labels(file: str, labels: np.ndarray, n: int, classes: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise UserError(f"--extra_data {file}: label is {labels.dtype} {labels.shape}; it must be integers ({n},)")
    counts = np.zeros(classes, np.int64)
    for start in range(0, n, _CHUNK):
        part = labels[start : start + _CHUNK]
        if part.min() < 0 or part.max() >= classes:
            wrong = part.min() if part.min() < 0 else part.max()
            raise UserError(f"--extra_data {file}: has the label {wrong}; the dataset's are 0 to {classes - 1}")
        counts += np.bincount(part.astype(np.int64), minlength=classes)
    if not counts.all():
        raise UserError(
            f"--extra_data {file}: has images of {np.count_nonzero(counts)} classes, the dataset of {classes}; "
            "--extra_labels teacher does not use its labels"
        )
