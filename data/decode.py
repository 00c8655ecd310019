"""Image files to one uint8 tensor, decoded once and kept beside the data."""

import hashlib
import logging
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.files import write_atomically

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg"}
# Raise it when the pixels that the same files decode to change.
_FORMAT = 1
_CHUNK = 64


def image_files(folder: Path) -> list[Path]:
    """List the PNG and JPEG files in ``folder`` and below it, sorted; hidden ones and hidden folders are left out."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in images if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def open_image(path: Path) -> Image.Image:
    """Decode one file to 8-bit RGB, grey images included. Raises UserError that names the file."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:  # for others Pillow starts programs
            if image.mode.startswith(("I", "F")):  # convert() would clip these to white
                raise ValueError(f"pixels of more than 8 bits, mode {image.mode}")
            return image.convert("RGB")
    except Exception as error:  # every decoder has exceptions of its own, and each of them means the same here
        raise UserError(f"{path}: not a readable image ({error}); replace the file or remove it") from error


def decoded(root: Path, paths: Sequence[Path], size: int, *, workers: int, resize: bool = False) -> Tensor:
    """Return the images of ``paths``, files below ``root``: (N, 3, ``size``, ``size``) uint8, by ``workers`` threads.

    With ``resize`` the shorter side of every image is scaled to ``size`` (bilinear, antialiased) and the centre cut
    out; without it an image of another size is a UserError, as is an unreadable one, by its path.
    The result is kept in ``root`` as ``.decoded-<size>-<key>.pt`` (``<size>r`` with ``resize``); the key hashes names,
    sizes and times of the files.
    A damaged cache is rebuilt and a folder that cannot be written to goes without one: both only log a line.
    """
    key = _key(root, paths)
    as_they_are = root / f".decoded-{size}-{key}.pt"  # serves both: of images all of that size, resizing changes none
    cache = root / f".decoded-{size}r-{key}.pt" if resize else as_they_are
    for kept in dict.fromkeys((as_they_are, cache)):
        if kept.exists() and (images := _read(kept)) is not None:
            return images
    log.info("decoding %s images in %s, once", f"{len(paths):,}", root)
    images = _decode(paths, size, resize, workers)
    _write(cache, images)
    return images


def _key(root: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(repr(_FORMAT).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(
                f"{path}: not a readable image ({error.strerror}); replace the file or remove it"
            ) from error
        digest.update(repr((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _decode(paths: Sequence[Path], size: int, resize: bool, workers: int) -> Tensor:
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def work(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for place, path in enumerate(chunk, start):
            pixels[place] = np.asarray(_fitted(path, size, resize)).transpose(2, 0, 1)
        return len(chunk)

    # disable=None: a bar on a terminal only; a log file has the line above.
    bar = tqdm(total=len(paths), unit="image", desc="decoding", disable=None, leave=False)
    with ThreadPoolExecutor(workers) as pool, bar:
        for done in pool.map(work, range(0, len(paths), _CHUNK)):
            bar.update(done)
    return torch.from_numpy(pixels)


def _fitted(path: Path, size: int, resize: bool) -> Image.Image:
    image = open_image(path)
    if image.size == (size, size):
        return image
    if not resize:
        raise UserError(
            f"{path}: is {image.width}x{image.height} where {size}x{size} is expected; "
            f"--dataset Folder --image_size {size} resizes every image"
        )
    return TF.center_crop(TF.resize(image, size), size)


def _read(cache: Path) -> Tensor | None:
    try:
        saved = torch.load(cache, weights_only=True)
        if zlib.crc32(saved["images"].numpy()) == saved["crc32"]:  # torch.load checks no checksum of its own
            return saved["images"]
        reason = "wrong checksum"
    except Exception as error:  # what torch.load raises depends on which byte is wrong
        reason = type(error).__name__
    log.warning("%s is damaged (%s): decoding the images again", cache, reason)
    return None


def _write(cache: Path, images: Tensor) -> None:
    content = {"images": images, "crc32": zlib.crc32(images.numpy())}
    try:
        write_atomically(cache, lambda temporary: torch.save(content, temporary))
        for stale in cache.parent.glob(f"{cache.name.rsplit('-', 1)[0]}-*.pt"):
            if stale != cache:
                stale.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        log.warning("%s: decoded images cannot be kept there (%s); the next run decodes them again", cache, error)
