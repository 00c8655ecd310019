"""Decoded images in one memory-mapped file next to the originals, so that a dataset may exceed the memory."""

import errno
import hashlib
import logging
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.errors import UserError

log = logging.getLogger(__name__)

_VERSION = 3  # increase it when the same files are decoded to other pixels
_SAMPLE = 4096  # bytes that are compared at the start, in the middle and at the end of a file
_MANY = 512  # images from which on processes are faster than threads
_CHUNK = 16  # images that a thread decodes at a time


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
        self.kind = f"{'resized-' * resize}{size}"
        self.name = f"{self.kind}-{_hash(*(os.fsencode(path.relative_to(root)) for path in paths))}.bin"
        self.dtype = np.dtype([("content", "S16"), ("crc32", "<u4"), ("pixels", "u1", (3, size, size))])
        self.damaged: dict[int, str] = {}  # index in ``paths`` -> reason
        self._ready: dict[int, np.ndarray] = {}  # index -> pixels, mapped
        self._records: np.ndarray | None = None

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the pixels of an image that :meth:`add` has decoded."""
        return self._ready[index]

    def add(self, indices: Sequence[int], decode: Callable[[Path, int, bool], np.ndarray]) -> None:
        """Decode the images that are not in the cache; list those for which ``decode`` fails in ``damaged``.

        ``decode(path, size, resize)`` returns the pixels. Raises UserError if the cache cannot be written.
        """
        missing = [index for index in dict.fromkeys(indices) if index not in self._ready and index not in self.damaged]
        if self._records is None:
            with suppress(OSError, ValueError):  # missing, not readable or truncated
                self._map()
        if self._records is not None:
            self._in_threads(self._look_up, missing)
            missing = [index for index in missing if index not in self._ready]
        if not missing:
            return
        try:
            self._create(len(missing))
            log.info("decoding %s images in %s", f"{len(missing):,}", self.root)
            with tqdm(desc="decoding", total=len(missing), unit="image", leave=False, disable=None) as bar:
                if len(missing) >= _MANY and self.options.workers > 1 and sys.platform == "linux":
                    missing = self._decode_in_processes(missing, decode, bar)
                self._in_threads(lambda index: self._decode(index, decode), missing, bar)
        except OSError as error:
            raise UserError(
                f"--cache_dir: decoded images cannot be written to {self.folder} ({error.strerror or error}); name "
                "another folder, or use --limit_train, --limit_test or a smaller --image_size"
            ) from error

    def _map(self) -> None:
        with open(self.folder / self.name, "rb") as file:
            self._mapping = mmap.mmap(file.fileno(), len(self.paths) * self.dtype.itemsize, access=mmap.ACCESS_READ)
        self._records = np.frombuffer(self._mapping, self.dtype)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start reading the pixels of images from the disk."""
        prefetch(self._mapping, [index * self.dtype.itemsize for index in indices], self.dtype.itemsize)

    def _create(self, missing: int) -> None:
        """Create the file, if necessary in a temporary folder; raise OSError without space for ``missing`` images."""
        try:
            self._create_file(missing)
        except OSError as error:
            self._temporary = tempfile.TemporaryDirectory(prefix="decoded-")  # until this process ends
            message = "%s: cannot cache decoded images there (%s); they are in %s until this run ends; see --cache_dir"
            log.warning(message, self.folder, error.strerror or error, self._temporary.name)
            self.folder = Path(self._temporary.name)
            self._create_file(missing)
        self._map()

    def _create_file(self, missing: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        need, free = missing * self.dtype.itemsize, shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(f"{need / 2**20:,.0f} MiB required, {free / 2**20:,.0f} MiB free")
        with open(self.folder / self.name, "ab") as file:
            file.truncate(len(self.paths) * self.dtype.itemsize)
        for old in {*self.folder.glob(f"{self.kind}-*.bin")} - {self.folder / self.name}:  # of other files
            with suppress(OSError):  # of another user, or removed by another process
                if time.time() - old.stat().st_mtime > 3600:  # otherwise another process may be writing it
                    old.unlink()

    def _look_up(self, index: int) -> None:
        record = self._records[index]
        with suppress(OSError):  # decoding reports it
            if not record["content"] or record["content"] != _content(self.paths[index]):
                return
            if zlib.crc32(record["pixels"]) == record["crc32"]:
                self._ready[index] = record["pixels"]
            else:
                log.warning("%s is damaged: decoding %s again", self.folder / self.name, self.paths[index])

    def _decode_in_processes(self, missing: Sequence[int], decode: Callable, bar: tqdm) -> list[int]:
        """Decode in processes, because threads hold the global interpreter lock most of the time for small images.

        Returns what is still missing: damaged files and, after an error, all others; threads then report the problem.
        """
        context, parent, count = multiprocessing.get_context("fork"), os.getpid(), self.options.workers
        done = np.frombuffer(mmap.mmap(-1, len(missing)), np.uint8)  # shared

        def work(first: int) -> None:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            with suppress(OSError, UserError):
                for k in range(first, len(missing), count):
                    if (record := self._record(missing[k], decode)) is not None:
                        self._write(missing[k], record)
                        done[k] = 1
                    if os.getppid() != parent:
                        return

        workers = [context.Process(target=work, args=(first,), daemon=True) for first in range(count)]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                time.sleep(0.02)
                bar.update(int(done.sum()) - bar.n)
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()
        self._ready |= {index: self._records[index]["pixels"] for index in np.array(missing)[done == 1].tolist()}
        return np.array(missing)[done == 0].tolist()

    def _in_threads(self, function: Callable[[int], None], indices: Sequence[int], bar: tqdm | None = None) -> None:
        """Call ``function`` for each index; Pillow releases the global interpreter lock while it decodes."""

        def work(start: int) -> int:
            chunk = indices[start : start + _CHUNK]
            for index in chunk:
                function(index)
            return len(chunk)

        pool = ThreadPoolExecutor(self.options.workers)
        try:
            for done in pool.map(work, range(0, len(indices), _CHUNK)):
                if bar is not None:
                    bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, index: int, decode: Callable) -> None:
        if (record := self._record(index, decode)) is not None:
            self._write(index, record)
            self._ready[index] = self._records[index]["pixels"]

    def _record(self, index: int, decode: Callable) -> np.ndarray | None:
        record = np.zeros((), self.dtype)
        try:
            record["content"] = _content(self.paths[index])
            record["pixels"] = decode(self.paths[index], self.size, self.resize)
        except (OSError, ValueError) as error:
            self.damaged[index] = getattr(error, "strerror", None) or str(error)
            return None
        record["crc32"] = zlib.crc32(record["pixels"])
        return record

    def _write(self, index: int, record: np.ndarray) -> None:
        with FileIO(self.folder / self.name, "r+") as stream:
            stream.seek(index * record.nbytes)
            if stream.write(record) < record.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prefetch(mapping: mmap.mmap, starts: Iterable[int], length: int) -> None:
    """Start reading ``length`` bytes from each of ``starts``, all at once.

    Otherwise they would be read page by page, each access waiting for the disk.
    """
    with suppress(OSError, AttributeError):  # only a hint; Windows has none
        for start in starts:
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            mapping.madvise(mmap.MADV_WILLNEED, page, start + length - page)


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
