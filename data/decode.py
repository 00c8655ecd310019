"""Decode image files into one uint8 tensor, once, and cache it next to them."""

import hashlib
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from data.splits import Split, Splits
from utils.errors import UserError
from utils.files import write_atomically

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg"}
_VERSION = 1  # increase it when the same files are decoded to other pixels
_CHUNK = 64


def image_files(folder: Path) -> list[Path]:
    """Return the PNG and JPEG files in ``folder`` and its subfolders, sorted, without hidden files and folders."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in images if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def open_image(path: Path) -> Image.Image:
    """Decode a file to 8-bit RGB; grayscale images are converted. Raises UserError that names the file."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:  # for other formats Pillow starts programs
            if image.mode.startswith(("I", "F")):  # convert() would clip these to white
                raise ValueError(f"pixels of more than 8 bits, mode {image.mode}")
            return image.convert("RGB")
    except Exception as error:  # the decoders raise different exceptions for a damaged file
        raise _unreadable(path, error) from error


def decode_splits(root: Path, train: list, test: list, classes: Sequence[str], size: int, **options) -> Splits:
    """Return the splits of (file, label) pairs; ``options`` are those of :func:`decode_images`."""
    paths, labels = zip(*train, *test, strict=True)
    images, labels, n = decode_images(root, paths, size, **options), torch.tensor(labels), len(train)
    return Splits(Split(images[:n], labels[:n]), Split(images[n:], labels[n:]), tuple(classes), flip=True)


def decode_images(root: Path, paths: Sequence[Path], size: int, *, workers: int, resize: bool = False) -> Tensor:
    """Return the images of ``paths``, files below ``root``: (N, 3, ``size``, ``size``) uint8, by ``workers`` threads.

    With ``resize``, the shorter side of every image is resized to ``size`` (bilinear, antialiased) and the center is
    cropped. Without it, an image of another size raises UserError, as an unreadable image does.
    The cache is ``.decoded-<size>-<key>.pt`` in ``root`` (``<size>r`` with ``resize``); the key is a hash of the files'
    names, sizes and times. A damaged cache is rebuilt; if it cannot be written, a warning is logged.
    """
    key = _cache_key(root, paths)
    unresized = root / f".decoded-{size}-{key}.pt"  # valid with resize too: all images have that size
    cache = root / f".decoded-{size}r-{key}.pt" if resize else unresized
    for candidate in dict.fromkeys((unresized, cache)):
        if candidate.exists() and (images := _read(candidate)) is not None:
            return images
    log.info("decoding %s images in %s, once", f"{len(paths):,}", root)
    images = _decode(paths, size, resize, workers)
    _write(cache, images)
    return images


def _unreadable(path: Path, reason: object) -> UserError:
    return UserError(f"{path}: not a readable image ({reason}); replace or remove the file")


def _cache_key(root: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(repr(_VERSION).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise _unreadable(path, error.strerror) from error
        digest.update(repr((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _decode(paths: Sequence[Path], size: int, resize: bool, workers: int) -> Tensor:
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index, path in enumerate(paths[start : start + _CHUNK], start):
            pixels[index] = np.asarray(_open_sized(path, size, resize)).transpose(2, 0, 1)

    # disable=None: no progress bar in a log file.
    progress = {"desc": "decoding", "unit": "image", "unit_scale": _CHUNK, "leave": False, "disable": None}
    thread_map(decode_chunk, range(0, len(paths), _CHUNK), max_workers=workers, **progress)
    return torch.from_numpy(pixels)


def _open_sized(path: Path, size: int, resize: bool) -> Image.Image:
    image = open_image(path)
    if image.size == (size, size):
        return image
    if not resize:
        shape = f"{image.width}x{image.height}, not {size}x{size}"
        raise UserError(f"{path}: is {shape}; --dataset Folder --image_size {size} resizes all images")
    return TF.center_crop(TF.resize(image, size), size)


def _read(cache: Path) -> Tensor | None:
    try:
        saved = torch.load(cache, weights_only=True)
        if zlib.crc32(saved["images"].numpy()) == saved["crc32"]:  # torch.load verifies no checksum
            return saved["images"]
        reason = "wrong checksum"
    except Exception as error:  # torch.load raises different exceptions for a damaged file
        reason = type(error).__name__
    log.warning("%s is damaged (%s): decoding the images again", cache, reason)
    return None


def _write(cache: Path, images: Tensor) -> None:
    content = {"images": images, "crc32": zlib.crc32(images.numpy())}
    try:
        write_atomically(cache, lambda temporary: torch.save(content, temporary))
        for old in {*cache.parent.glob(f"{cache.name.rsplit('-', 1)[0]}-*.pt")} - {cache}:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        log.warning("%s: cannot cache the decoded images (%s); the next run decodes them again", cache, error)
