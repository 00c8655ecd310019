"""Decode one image file to 8-bit RGB."""

import logging
from pathlib import Path

import numpy as np
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps, UnidentifiedImageError

from data.files import FORMATS
from utils.errors import UserError
from utils.files import LFS_HINT, LFS_POINTER

log = logging.getLogger(__name__)

_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow warns above its limit and refuses above twice as many


def limit_pixels(count: int | None) -> None:
    """Refuse images of more than ``count`` pixels from now on; None is Pillow's limit."""
    Image.MAX_IMAGE_PIXELS = (count or _MAX_PIXELS) / 2


def open_image(path: Path) -> Image.Image:
    """Decode the first frame of a file to 8-bit RGB.

    It is turned upright by its EXIF orientation, transparent pixels are composited on black, grayscale and CMYK are
    converted, grayscale of 16 bits so that 65535 becomes 255. Raises ValueError with the reason for a damaged file and
    for pixels of more bits.
    """
    formats = (*FORMATS, "TGA") if path.suffix.lower() == ".tga" else FORMATS  # TGA has no signature
    try:
        with Image.open(path, formats=formats) as image:
            image.load()
            return _in_rgb(image, path)
    except UnidentifiedImageError as error:
        raise ValueError(_other_file(path)) from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(f"more than --max_pixels {limit:.0f}, perhaps a decompression bomb") from error
    except Exception as error:  # the decoders raise different exceptions for a damaged file
        raise ValueError(str(error) or type(error).__name__) from error


def open_with_size(path: Path, size: int, resize: bool) -> np.ndarray:
    """Return the pixels of a file (3, ``size``, ``size``).

    With ``resize``, the shorter side is resized to ``size`` (bilinear, antialiased) and the center is cropped; without
    it, an image of another size raises UserError. Raises ValueError as :func:`open_image` does.
    """
    image = open_image(path)
    if image.size != (size, size):
        if not resize:
            shape = f"{image.width}x{image.height}, not {size}x{size}"
            raise UserError(f"{path}: is {shape}; --dataset Folder --image_size {size} resizes all images")
        longest = 64 * min(image.size)
        if max(image.size) > longest:  # resizing would exceed the memory
            image = TF.center_crop(image, [min(side, longest) for side in (image.height, image.width)])
        image = TF.center_crop(TF.resize(image, size), size)
    return np.asarray(image).transpose(2, 0, 1)


def _in_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in ("I", "F"):  # convert() would clip these to white
        raise ValueError(f"pixels of more than 16 bits, mode {image.mode}: convert it to 8 bits")
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # damaged EXIF data; the pixels are not
        log.debug("%s: %s", path, error)
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image.convert("RGB")


def _other_file(path: Path) -> str:
    """Return what a file is that has no supported image format."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(LFS_POINTER):
        return LFS_HINT
    return "not an image of a supported format" if start else "empty"
