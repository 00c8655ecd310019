"""Decode image files to 8-bit RGB, and read the images of many files like a tensor."""

import logging
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.cache import PixelCache, ReadOptions
from data.files import FORMATS
from data.splits import Split, Splits, take
from utils.errors import UserError

log = logging.getLogger(__name__)


class ImageFiles:
    """The images of files as (N, 3, size, size) uint8, which are decoded when they are first read.

    ``images[rows]`` is a Tensor, copied from the memory-mapped cache. It raises UserError if a file is damaged, as
    :func:`decode_files` does.
    """

    device = torch.device("cpu")

    def __init__(self, cache: PixelCache, indices: Sequence[int]):
        self.cache, self.indices = cache, indices
        self.shape = torch.Size((len(indices), 3, cache.size, cache.size))
        self.nbytes = self.shape.numel()
        self._decoded = False

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        if isinstance(rows, int):
            return self[torch.tensor([rows])][0]
        if not self._decoded and (error := _add(self.cache, self.indices)):
            raise error
        self._decoded = True
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        self.cache.prefetch([self.indices[row] for row in chosen])
        images = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8)
        for image, row in zip(images.numpy(), chosen, strict=True):
            image[...] = self.cache[self.indices[row]]
        return images

    def take(self, mask: Tensor) -> "ImageFiles":
        """Return the files selected by ``mask`` (N,) bool, without reading them."""
        return ImageFiles(self.cache, list(compress(self.indices, mask.tolist())))

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
    cache, labels, n = PixelCache(root, paths, size, resize, options), torch.tensor(labels), len(train)
    train, test = (Split(ImageFiles(cache, part), labels[part]) for part in (range(n), range(n, len(paths))))
    return Splits(train, test, tuple(classes), flip=True)


def decode_files(*splits: Split) -> list[Split]:
    """Decode the files of ``splits``, all of one dataset, that are not in the cache; Tensors are returned unchanged.

    Raises UserError that names all damaged files; with ``--skip_damaged``, skips them and logs their names. An image
    of another size that is not to be resized always raises UserError.
    """
    files = [split.images for split in splits if isinstance(split.images, ImageFiles)]
    error = _add(files[0].cache, [index for images in files for index in images.indices]) if files else None
    if not error:
        return list(splits)
    damaged = files[0].cache.damaged
    masks = [torch.tensor([index not in damaged for index in images.indices]) for images in files]
    if not files[0].cache.options.skip_damaged or not all(map(torch.any, masks)):
        raise error
    log.warning("WARNING: skipped: %s", str(error).partition("; replace")[0])
    return [take(split, mask) for split, mask in zip(splits, masks, strict=True)]


def open_image(path: Path) -> Image.Image:
    """Decode the first frame of a file to 8-bit RGB.

    It is turned upright by its EXIF orientation, transparent pixels are composited on black, grayscale and CMYK are
    converted. Raises ValueError for pixels of more than 8 bits, and Pillow's exceptions for a damaged file.
    """
    formats = (*FORMATS, "TGA") if path.suffix.lower() == ".tga" else FORMATS  # TGA has no signature
    with Image.open(path, formats=formats) as image:
        if image.mode.startswith(("I", "F")):  # convert() would clip these to white
            raise ValueError(f"pixels of more than 8 bits, mode {image.mode}: convert it to 8 bits")
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # damaged EXIF data; the pixels are not
            log.debug("%s: %s", path, error)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
        return image.convert("RGB")


def open_with_size(path: Path, size: int, resize: bool) -> np.ndarray:
    """Return the pixels of a file (3, ``size``, ``size``).

    With ``resize``, the shorter side is resized to ``size`` (bilinear, antialiased) and the center is cropped; without
    it, an image of another size raises UserError. Raises ValueError with the reason for a damaged file.
    """
    try:
        image = open_image(path)
    except Exception as error:  # the decoders raise different exceptions
        raise ValueError(reason(path, error)) from error
    if image.size != (size, size):
        if not resize:
            shape = f"{image.width}x{image.height}, not {size}x{size}"
            raise UserError(f"{path}: is {shape}; --dataset Folder --image_size {size} resizes all images")
        if max(image.size) > (longest := 64 * min(image.size)):  # resizing would exceed the memory
            image = TF.center_crop(image, [min(side, longest) for side in (image.height, image.width)])
        image = TF.center_crop(TF.resize(image, size), size)
    return np.asarray(image).transpose(2, 0, 1)


def reason(path: Path, error: Exception) -> str:
    """Return why :func:`open_image` raised ``error``."""
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            return "a git-lfs pointer: run git lfs pull in its repository"
        return "not an image of a supported format" if start else "empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than --max_pixels {2 * Image.MAX_IMAGE_PIXELS:.0f}, perhaps a decompression bomb"
    return str(error) or type(error).__name__


def _add(cache: PixelCache, indices: Sequence[int]) -> UserError | None:
    """Decode files and return the error that names the damaged ones."""
    default = Image.MAX_IMAGE_PIXELS
    try:
        if limit := cache.options.max_pixels:
            Image.MAX_IMAGE_PIXELS = limit / 2  # Pillow warns above it and refuses above twice as many
        cache.add(indices, open_with_size)
    finally:
        Image.MAX_IMAGE_PIXELS = default
    damaged = [f"{cache.paths[i]} ({cache.damaged[i]})" for i in dict.fromkeys(indices) if i in cache.damaged]
    if not damaged:
        return None
    return UserError(
        f"{len(damaged):,} of {len(indices):,} images cannot be read: {', '.join(damaged)}; replace or remove them, "
        "or use --skip_damaged"
    )
