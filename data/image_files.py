"""The images of many files, which are read like a tensor."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.cache import PixelCache, ReadOptions
from data.splits import Split, Splits, take
from utils.errors import UserError

log = logging.getLogger(__name__)


class ImageFiles:
    """The images of files as (N, 3, size, size) uint8, which are decoded when they are first read.

    ``images[rows]`` is a Tensor, copied from the memory-mapped cache. It raises UserError if a file is damaged, as
    :func:`decode_files` does.
    """

    device = torch.device("cpu")

    def __init__(self, cache: PixelCache, indices: Tensor):
        self.cache, self.indices = cache, indices
        self.shape = torch.Size((len(indices), 3, cache.size, cache.size))
        self.nbytes = self.shape.numel()
        self._decoded = False

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        if isinstance(rows, int):
            return self[torch.tensor([rows])][0]
        if not self._decoded:
            if error := _decode(self.cache, self.indices.tolist()):
                raise error
            self._decoded = True
        return torch.from_numpy(self.cache.read(self.indices[rows].tolist()))

    def take(self, mask: Tensor) -> "ImageFiles":
        """Return the files selected by ``mask`` (N,) bool, without reading them."""
        return ImageFiles(self.cache, self.indices[mask])

    def to(self, device: torch.device | str) -> "ImageFiles | Tensor":
        """Return all images in the memory of a GPU; for the CPU, this object."""
        if torch.device(device).type == "cpu":
            return self
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 256):
            images[start : start + 256] = self[start : start + 256]
        return images


def splits_of_files(
    root: Path, train: list, test: list, classes: Sequence[str], size: int, options: ReadOptions, resize: bool = False
) -> Splits:
    """Return the splits of (file, label) pairs below ``root``, whose files are not read yet."""
    paths, labels = zip(*train, *test, strict=True)
    cache, labels = PixelCache(root, paths, size, resize, options), torch.tensor(labels)
    parts = torch.arange(len(paths)).split((len(train), len(test)))
    return Splits(*(Split(ImageFiles(cache, part), labels[part]) for part in parts), tuple(classes), flip=True)


def decode_files(*splits: Split) -> list[Split]:
    """Decode the files of ``splits``, all of one dataset, that are not in the cache; Tensors are returned unchanged.

    Raises UserError that names all damaged files; with ``--skip_damaged``, skips them and logs their names. An image
    of another size that is not to be resized always raises UserError.
    """
    if not isinstance(splits[0].images, ImageFiles):
        return list(splits)
    cache = splits[0].images.cache
    error = _decode(cache, torch.cat([split.images.indices for split in splits]).tolist())
    if not error:
        return list(splits)
    damaged = torch.tensor(list(cache.damaged))
    intact = [~torch.isin(split.images.indices, damaged) for split in splits]
    if not cache.options.skip_damaged or not all(mask.any() for mask in intact):
        raise error
    log.warning("WARNING: skipped: %s", str(error).partition("; replace")[0])
    return [take(split, mask) for split, mask in zip(splits, intact, strict=True)]


def _decode(cache: PixelCache, indices: Sequence[int]) -> UserError | None:
    """Decode files and return the error that names the damaged ones."""
    cache.add(indices)
    damaged = [f"{cache.paths[i]} ({cache.damaged[i]})" for i in dict.fromkeys(indices) if i in cache.damaged]
    if not damaged:
        return None
    return UserError(
        f"{len(damaged):,} of {len(indices):,} images cannot be read: {', '.join(damaged)}; replace or remove them, "
        "or use --skip_damaged"
    )
