"""Decoded images in one memory-mapped file next to the originals, so that a dataset may exceed the memory."""

import errno
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data import decode
from utils.errors import UserError

log = logging.getLogger(__name__)

_VERSION = 3  # increase it when the same files are decoded to other pixels
_SAMPLE = 4096  # bytes that are compared at the start, in the middle and at the end of a file
_CHUNK = 64  # images that a thread handles at a time


class ReadOptions(NamedTuple):
    """How image files are read: the flags of the same names."""

    workers: int = 4
    cache_dir: str | None = None
    skip_damaged: bool = False
    max_pixels: int | None = None


class PixelCache:
    """The decoded images of ``paths``, files in ``root``: (3, ``size``, ``size``) uint8 each.

    They are the records of one file, named after the paths, in ``root``/.decoded or a subfolder of ``cache_dir``; in a
    temporary folder if that cannot be written or is full. The file is sparse: unused records take no space. A record
    has a hash of its image file (size, time and some bytes) and a checksum. So changed files are decoded again, an
    interrupted decoding continues, and processes share the cache without locks: they write the same bytes.
    """

    def __init__(self, root: Path, paths: Sequence[Path], size: int, resize: bool, options: ReadOptions):
        self.root, self.paths, self.size, self.resize, self.options = root, paths, size, resize, options
        self.folder = root / ".decoded"
        if options.cache_dir:
            location = root.resolve()
            self.folder = Path(os.path.expanduser(options.cache_dir), f"{location.name}-{_hash(os.fsencode(location))}")
        self.kind = f"resized-{size}" if resize else f"{size}"
        self.name = f"{self.kind}-{_hash(*(os.fsencode(path.relative_to(root)) for path in paths))}.bin"
        self.dtype = np.dtype([("content", "S16"), ("crc32", "<u4"), ("pixels", "u1", (3, size, size))])
        self.damaged: dict[int, str] = {}  # index in ``paths`` -> reason
        self._ready: set[int] = set()  # indices whose records are valid
        self._records: np.memmap | None = None

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Return a copy of the pixels of images that :meth:`add` has decoded, (N, 3, ``size``, ``size``)."""
        prefetch(self._records, indices)
        return self._records["pixels"][indices]

    def add(self, indices: Sequence[int]) -> None:
        """Decode the images that are not in the cache; list those that cannot be decoded in ``damaged``.

        Raises UserError if the cache cannot be written.
        """
        if self._records is None:
            with suppress(OSError, ValueError):  # missing, not readable or truncated
                self._map()
        if self._records is not None:
            with ThreadPoolExecutor(self.options.workers) as pool:
                for valid in pool.map(self._valid, _chunks(self._missing(indices))):
                    self._ready.update(valid)
        missing = self._missing(indices)
        if not missing:
            return
        try:
            self._create(len(missing))
            log.info("decoding %s images in %s", f"{len(missing):,}", self.root)
            self._decode(missing)
        except OSError as error:
            raise UserError(
                f"--cache_dir: decoded images cannot be written to {self.folder} ({error.strerror or error}); "
                "choose another folder, or use --limit_train, --limit_test or a smaller --image_size"
            ) from error

    def _missing(self, indices: Sequence[int]) -> list[int]:
        return [index for index in dict.fromkeys(indices) if index not in self._ready and index not in self.damaged]

    def _map(self) -> None:
        self._records = np.memmap(self.folder / self.name, self.dtype, "r", shape=(len(self.paths),))

    def _create(self, missing: int) -> None:
        """Create the file, if necessary in a temporary folder; raise OSError without space for ``missing`` images."""
        try:
            self._create_file(missing)
        except OSError as error:
            self._temporary = tempfile.TemporaryDirectory(prefix="decoded-")  # until this process ends
            message = "%s: cannot cache decoded images there (%s); they are in %s until this run ends; see --cache_dir"
            log.warning(message, self.folder, error.strerror or error, self._temporary.name)
            self.folder = Path(self._temporary.name)
            self._create_file(missing + len(self._ready))
        old = self._records
        self._map()
        for index in self._ready:
            if not self._records[index]["content"]:  # the file is new: another folder, or the old one was deleted
                _write(self.folder / self.name, index, old[index : index + 1])

    def _create_file(self, missing: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        need, free = missing * self.dtype.itemsize, shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(f"{need / 2**20:,.0f} MiB required, {free / 2**20:,.0f} MiB free")
        if (self.folder / self.name).is_symlink():  # in a folder from elsewhere, it could point at any file
            raise OSError("a symbolic link")
        with open(self.folder / self.name, "ab") as file:
            file.truncate(len(self.paths) * self.dtype.itemsize)
        for old in {*self.folder.glob(f"{self.kind}-*.bin")} - {self.folder / self.name}:  # of other files
            with suppress(OSError):  # of another user, or removed by another process
                if time.time() - old.stat().st_mtime > 3600:  # otherwise another process may be writing it
                    old.unlink()

    def _valid(self, indices: Sequence[int]) -> list[int]:
        """Return which of ``indices`` have a record that was made from the present file and is not damaged."""
        valid = []
        for index in indices:
            record = self._records[index]
            with suppress(OSError):  # decoding reports it
                is_current = record["content"] and record["content"] == _content(self.paths[index])
                if is_current and zlib.crc32(record["pixels"]) == record["crc32"]:
                    valid.append(index)
        return valid

    def _decode(self, missing: list[int]) -> None:
        chunks = _chunks(missing)
        pool = ThreadPoolExecutor(self.options.workers)
        try:
            with tqdm(desc="decoding", total=len(missing), unit="image", leave=False, disable=None) as bar:
                for chunk, damaged in zip(chunks, pool.map(self._decode_chunk, chunks), strict=True):
                    self.damaged |= damaged
                    self._ready.update(index for index in chunk if index not in damaged)
                    bar.update(len(chunk))
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode_chunk(self, indices: Sequence[int]) -> dict[int, str]:
        """Write the records of ``indices``; return the reasons for damaged images."""
        damaged = {}
        for index in indices:
            record = np.zeros((), self.dtype)
            try:
                record["content"] = _content(self.paths[index])
                record["pixels"] = decode.open_with_size(self.paths[index], self.size, self.resize)
            except (OSError, ValueError) as error:
                damaged[index] = getattr(error, "strerror", None) or str(error)
                continue
            record["crc32"] = zlib.crc32(record["pixels"])
            _write(self.folder / self.name, index, record)
        return damaged


def _chunks(items: Sequence) -> list[Sequence]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


def _write(file: Path, index: int, record: np.ndarray) -> None:
    with FileIO(file, "r+") as stream:
        stream.seek(index * record.nbytes)
        if stream.write(record) < record.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prefetch(array: np.memmap, rows: Iterable[int]) -> None:
    """Start reading the ``rows`` of an array from the disk, all at once.

    Otherwise they would be read page by page, each access waiting for the disk.
    """
    begin, size = array.offset % mmap.ALLOCATIONGRANULARITY, array[0].nbytes  # the mapping begins before the array
    with suppress(OSError, AttributeError):  # only a hint; Windows has none
        for start in (begin + row * size for row in rows):
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            array.base.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def _content(path: Path) -> bytes:
    """Return a hash of a file's size, time and some of its bytes; of all bytes if the file is small."""
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        parts = [repr((_VERSION, status.st_size, status.st_mtime_ns)).encode()]
        whole = status.st_size <= 3 * _SAMPLE
        for start in (0,) if whole else (0, status.st_size // 2, status.st_size - _SAMPLE):
            file.seek(start)
            parts.append(file.read(3 * _SAMPLE if whole else _SAMPLE))
    return _hash(*parts).encode()


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()
