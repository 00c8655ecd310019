"""The content of a checkpoint: its state dicts, wherever they are in the file, and its metadata."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.checkpoint_file import decode
from models.normalized import constants
from utils.errors import UserError
from utils.log import logger

# Parts of keys that wrappers insert anywhere: DataParallel, torch.compile, FSDP, activation checkpointing.
INSERTED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PROFILED = ("total_ops", "total_params")  # added to every module by a profiler
ARRAYS = (np.float64, np.float32, np.float16, np.int64)
MAX_DEPTH = 4  # of nested dicts and lists

# Metadata in our own checkpoints -> whether a value is valid, as the file may come from anyone.
METADATA = {
    "model": lambda value: isinstance(value, str),
    "dataset": lambda value: isinstance(value, str),
    "image_size": lambda value: type(value) is int and 0 < value <= 1024,  # as --image_size
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}


class Checkpoint:
    """The weights and metadata of a file, whose bytes are read once; ``sha256`` is their hash.

    ``state_dicts`` has each dict of the file that has weights, by its path of keys ("" for the file's own dict);
    ``tensors`` are those beside them in the file's own dict, and in a dict in it that is named after normalization.

    Args:
        path: A file of torch.save or safetensors.
        weights: "raw" or "ema" of a file with both; None prefers the average.
        normalize: Mean and std of the images, as --normalize takes them, for a file without its own.

    Raises UserError that names the file if it cannot be read or has no weights.
    """

    def __init__(self, path: str | Path, weights: str | None = None, normalize: str | None = None):
        self.path, self.weights = Path(path), weights
        self.normalize = constants(normalize) if normalize else None
        data = _read(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        content = decode(data, path)
        items = content if isinstance(content, Mapping) else {}
        self.metadata = {key: items[key] for key, is_valid in METADATA.items() if key in items and is_valid(items[key])}
        normalization = [value for key, value in items.items() if "normal" in str(key) and isinstance(value, Mapping)]
        self.tensors = {key: value for each in (*normalization, items) for key, value in _tensors(each).items()}
        self.state_dicts = _state_dicts(content)
        self.log_once = functools.cache(logger.log)  # a network is loaded to check it, and again to use it
        if not self.state_dicts:
            raise UserError(f"{path}: no weights; give a checkpoint")
        # An expanded view of one number could fill the memory when it is converted.
        if any(value.numel() > len(data) for state in self.state_dicts.values() for value in state.values()):
            raise UserError(f"{path}: damaged, it declares more values than it has bytes; copy or download it again")

    @classmethod
    def of(cls, source: "str | Path | Checkpoint") -> "Checkpoint":
        """Return ``source`` itself or the checkpoint at this path."""
        return source if isinstance(source, Checkpoint) else cls(source)


def is_dense(value: Tensor) -> bool:
    """Return whether a tensor has its values in memory, one by one."""
    return value.layout is torch.strided and not (value.is_quantized or value.is_meta)


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise UserError(f"{path}: a directory or device, not a file; give a checkpoint file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from error


def _state_dicts(content: object) -> dict[str, dict[str, Tensor]]:
    found, queue, seen = {}, [("", content)], set()
    for location, value in queue:  # grows meanwhile
        if id(value) in seen or location.count(".") >= MAX_DEPTH:
            continue
        seen.add(id(value))  # a dict may contain itself
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping):
            continue
        tensors = _tensors(value)
        if any(key.endswith("weight") and is_dense(tensor) for key, tensor in tensors.items()):
            found[location] = _without_inserted(tensors)
        for key, item in value.items():
            if isinstance(item, Mapping | list | tuple):
                queue.append((f"{location}.{key}".lstrip("."), item))
    return found


def _tensors(items: Mapping) -> dict[str, Tensor]:
    """Return the tensors of a dict; arrays of NumPy and lists of floats become tensors."""
    tensors = {}
    for key, value in items.items():
        is_array = isinstance(value, np.ndarray) and value.dtype in ARRAYS
        is_floats = isinstance(value, list | tuple) and {type(number) for number in value} == {float}
        if is_array or is_floats:
            value = torch.tensor(value)
        if isinstance(key, str) and isinstance(value, Tensor) and not key.endswith(PROFILED):
            tensors[key] = value
    return tensors


def _without_inserted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their keys without INSERTED parts, unless two keys become equal."""
    clean = {".".join(part for part in key.split(".") if part not in INSERTED): value for key, value in tensors.items()}
    return clean if len(clean) == len(tensors) else tensors
