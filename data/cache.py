"""Decoded images in one memory-mapped file beside the originals: a dataset may be larger than the memory."""

import errno
import hashlib
import logging
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.errors import UserError

log = logging.getLogger(__name__)

_VERSION = 2  # increase it when the same files are decoded to other pixels
_SAMPLE = 4096  # bytes that are compared at the start, in the middle and at the end of a file
_CHUNK = 16  # images that a thread decodes at a time


class ReadOptions(NamedTuple):
    """How image files are read: the flags of the same names."""

    workers: int = 4
    cache_dir: str | None = None
    skip_damaged: bool = False


class PixelCache:
    """The decoded images of ``paths``, files below ``root``: (3, ``size``, ``size``) uint8 each.

    They are records of a file, named after the paths, in ``root``/.decoded or a folder of ``cache_dir``. The file is
    sparse: only the records in use take space. A record has a hash of its image file (size, time and some bytes) and a
    checksum. So changed files are decoded again, an interrupted decoding continues, and processes share the cache
    without locks: they write the same bytes. If it cannot be written, the images are kept in memory.
    """

    def __init__(self, root: Path, paths: Sequence[Path], size: int, resize: bool, options: ReadOptions):
        self.root, self.paths, self.size, self.resize, self.options = root, paths, size, resize, options
        self.folder = root / ".decoded"
        if options.cache_dir:
            location = root.resolve()
            self.folder = Path(options.cache_dir).expanduser() / f"{location.name}-{_hash(os.fsencode(location))}"
        self.file = self.folder / f"{size}-{_hash(*(os.fsencode(path.relative_to(root)) for path in paths))}.bin"
        pixels = ("pixels", "u1", (3, size, size))
        self.dtype = np.dtype([("content", "S16"), ("crc32", "<u4"), ("resized", "?"), pixels])
        self.damaged: dict[int, str] = {}  # index in ``paths`` -> reason
        self._contents: dict[int, bytes] = {}
        self._ready: dict[int, np.ndarray] = {}  # index -> pixels, mapped or in memory
        self._records = self._stream = None
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> np.ndarray:
        """The pixels of an image that was added."""
        return self._ready[index]

    def add(self, indices: Sequence[int], decode: Callable[[Path, int, bool], tuple[np.ndarray, bool]]) -> None:
        """Decode the images that are not in the cache; ``damaged`` has those for which ``decode`` raises ValueError.

        ``decode(path, size, resize)`` returns the pixels and whether they were resized. Raises UserError if neither
        disk nor memory has the space.
        """
        indices = [index for index in dict.fromkeys(indices) if index not in self._ready and index not in self.damaged]
        pool = ThreadPoolExecutor(self.options.workers)  # threads: Pillow releases the lock while it decodes
        try:
            if indices and self._records is None:
                self._open()
            for _ in _in_chunks(pool, self._look_up, indices):
                pass
            missing = [index for index in indices if index not in self._ready and index not in self.damaged]
            if missing:
                self._require_space(len(missing) * self.dtype.itemsize)
                log.info("decoding %s images in %s, once", f"{len(missing):,}", self.root)
                progress = {"desc": "decoding", "total": len(missing), "unit": "image", "leave": False, "disable": None}
                with tqdm(**progress) as bar:  # disable=None: not in a log file
                    for _ in _in_chunks(pool, lambda index: self._decode(index, decode), missing):
                        bar.update()
        finally:
            pool.shutdown(cancel_futures=True)

    def _open(self) -> None:
        length = len(self.paths) * self.dtype.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            self._stream = FileIO(self.file, "r+")
            if self.file.stat().st_size != length:
                self._stream.truncate(length)
            for old in {*self.folder.glob(f"{self.size}-*.bin")} - {self.file}:  # of other files
                old.unlink()
        except OSError as error:
            self._use_memory(error)
        with suppress(OSError, ValueError):  # there is none, and it cannot be created
            self._records = np.asarray(np.memmap(self.file, self.dtype, "r", shape=len(self.paths)))

    def _look_up(self, index: int) -> None:
        try:
            self._contents[index] = content = _content(self.paths[index])
        except OSError as error:
            self.damaged[index] = (error.strerror or type(error).__name__).lower()
            return
        if self._records is None:
            return
        record = self._records[index]
        if record["content"] == content and (self.resize or not record["resized"]):
            if zlib.crc32(record["pixels"]) == record["crc32"]:
                self._ready[index] = record["pixels"]
            else:
                log.warning("%s is damaged: decoding %s again", self.file, self.paths[index])

    def _decode(self, index: int, decode: Callable) -> None:
        record = np.zeros((), self.dtype)
        try:
            record["pixels"], record["resized"] = decode(self.paths[index], self.size, self.resize)
        except ValueError as error:
            self.damaged[index] = str(error)
            return
        record["content"], record["crc32"] = self._contents[index], zlib.crc32(record["pixels"])
        if self._stream:
            try:
                with self._lock:
                    self._stream.seek(index * self.dtype.itemsize)
                    if self._stream.write(record) < record.nbytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._ready[index] = self._records[index]["pixels"]
                return
            except OSError as error:
                self._use_memory(error)
        if record.nbytes > available_memory():
            raise UserError(f"--cache_dir: {self.folder} cannot be written and the memory is full; name another folder")
        self._ready[index] = record["pixels"]

    def _use_memory(self, error: OSError) -> None:
        self._stream = None
        message = "%s: cannot cache decoded images (%s): they are kept in memory; --cache_dir names another folder"
        log.warning(message, self.folder, error.strerror or error)

    def _require_space(self, size: int) -> None:
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        disk, memory = shutil.disk_usage(existing).free if self._stream else 0, available_memory()
        if size > max(disk, memory):
            need, disk, memory = (f"{value / 2**30:,.1f} GiB" for value in (size, disk, memory))
            raise UserError(
                f"--cache_dir {self.folder}: the decoded images need {need}; {disk} of disk and {memory} of memory are "
                "free; use --limit_train, --limit_test, a smaller --image_size or a folder on another disk"
            )


def available_memory() -> int:
    """Return the bytes of memory that are free, at most the limit of the control group."""
    free = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" means no limit
            free.append(int(Path("/sys/fs/cgroup", limit).read_text(encoding="ascii")))
    return min(free)


def _content(path: Path) -> bytes:
    """Return a hash of size, time and some bytes of a file; of all bytes of a small one."""
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


def _in_chunks(pool: Executor, function: Callable, items: Sequence) -> Iterator:
    """Yield the results of ``function`` in order; a task of the pool computes several."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    for results in pool.map(lambda chunk: list(map(function, chunk)), chunks):
        yield from results
