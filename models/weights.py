"""Read the checkpoints of all supported codes into our networks, without executing code from a file."""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import ALIASES, MODELS, build
from models.checkpoint_file import decode
from models.normalized import Normalized, constants, normalize_input
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical

# If several dicts of a file contain a network, the first of these names is used.
WRAPPERS = ("net", "state_dict", "model_state_dict", "model", "student")
# Parts of keys that wrappers insert anywhere: DataParallel, torch.compile, FSDP, activation checkpointing.
INSERTED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Parts of keys, separated by dots and underscores, that identify the other networks in a file.
AVERAGE = {"ema", "swa", "wa", "avg", "average", "averaged", "averages", "polyak", "shadow", "teacherema"}
RAW = {"raw", "unaveraged", "online"}
KINDS = {"ema": "average", "raw": "raw weights"}  # --weights
OTHERS = {"teacher", "t", "attacker", "attack", "surrogate", "proxy", "discriminator", "optimizer", "optim", "momentum"}
# Extra keys that belong to a training code and not to the network.
EXTRA = re.compile(
    r"criterion|loss|metric|acc|normal|n_averaged|decay|num_updates|step|epoch|temperature|attack|teacher|sub_block1"
)
# Keys that may be missing: new in PyTorch 0.4.1, or of a block that no forward pass uses.
OPTIONAL = re.compile(r"num_batches_tracked$|^sub_block1\.")
# Modules that may have a mean, but not that of the images.
NOT_NORMALIZATION = re.compile(f"metric|loss|acc|criterion|{'|'.join(OTHERS - {'t'})}")
STATISTIC = re.compile(r"(?:.*\.)?(?:(?:new|image|img|pixel|data|input)?_)?(?:(means?|mu)|stds?|sds|sigma)")
PROFILED = ("total_ops", "total_params")  # added to every module by a profiler

IMAGE_SIZES = (32, 64)  # of the published networks; presnet18 has a different classifier for each

# Metadata in our own checkpoints -> whether a value is valid, as the file may come from anyone.
METADATA = {
    "model": lambda value: isinstance(value, str),
    "dataset": lambda value: isinstance(value, str),
    "image_size": lambda value: type(value) is int and 0 < value <= 1024,  # as --image_size
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}

# The same architecture has another layout of keys in DeepMind's code.
DEEPMIND_LAYOUTS = {"wideresnet70_16": "wideresnet70_16_deepmind"}


class Checkpoint:
    """The weights and metadata of a file, whose bytes are read once; ``sha256`` is their hash.

    Args:
        path: A file of torch.save or safetensors.
        weights: "raw" or "ema" of a file with both; None prefers the average.
        normalize: Mean and std of the images, as --normalize takes them, for a file without its own.

    Raises UserError that names the file if it cannot be read or has no weights.
    """

    def __init__(self, path: str | Path, weights: str | None = None, normalize: str | None = None):
        self.path, self.weights = Path(path), weights
        self.normalize = constants(normalize) if normalize else None
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe would block
                raise UserError(f"{path}: a directory or device, not a file; give a checkpoint file")
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        content = decode(data, path)
        items = content if isinstance(content, Mapping) else {}
        self.metadata = {key: items[key] for key, is_valid in METADATA.items() if key in items and is_valid(items[key])}
        self.groups = dict(_groups(content))
        top_level = {key: value for key, value in _tensors(items).items() if "." not in key and value.numel() == 3}
        stated = ((STATISTIC.fullmatch(key), value) for key, value in top_level.items())
        self.stated = {bool(match[1]): value for match, value in stated if match and _is_floating(value)}
        self.log_once = functools.cache(logger.log)  # a network is loaded to check it, and again to use it
        if not self.groups:
            raise UserError(f"{path}: no weights; give a checkpoint")
        for tensors in self.groups.values():
            if sum(value.numel() for value in tensors.values() if _is_dense(value)) > len(data):
                # An expanded view of one number could fill the memory when it is converted.
                raise UserError(
                    f"{path}: damaged, it declares more values than it has bytes; copy or download it again"
                )

    @classmethod
    def of(cls, source: "str | Path | Checkpoint") -> "Checkpoint":
        """Return ``source`` itself or the checkpoint at this path."""
        return source if isinstance(source, Checkpoint) else cls(source)

    def fits(self, expected: Mapping[str, Tensor]) -> "list[Fit]":
        """Compare the keys and shapes of a network with the tensors under every prefix at which it may begin."""
        first, fits = next(iter(expected)), []
        for location, tensors in self.groups.items():
            starts = {key.removesuffix(first) for key in tensors if f".{key}".endswith(f".{first}")} or {""}
            fits += [_fit(location, prefix, tensors, expected) for prefix in sorted(starts)]
        return fits


class OtherNetwork(UserError):
    """A file with weights of another architecture."""


class Fit(NamedTuple):
    """The tensors under one prefix of a file, compared with a network.

    ``state`` are those with keys of the network. ``problem`` is why they are not its weights, "" if they are.
    ``recognized``: keys and shapes are those of the network, except for the number of classes.
    """

    location: str
    prefix: str
    state: dict[str, Tensor]
    missing: list[str]
    problem: str
    recognized: bool

    @property
    def name(self) -> str:
        """Its path of keys in the file."""
        return ".".join(filter(None, (self.location, self.prefix.rstrip(".")))) or "top level"

    @property
    def parts(self) -> set[str]:
        """The parts of the name, in lower case."""
        return set(re.split(r"[._]", self.name.lower()))


def identify(source: str | Path | Checkpoint) -> tuple[str, int] | None:
    """Return the name in MODELS and the number of classes of the network in a checkpoint, by its keys and shapes.

    Returns None if it is another network. Raises UserError that names the file if it cannot be read.
    """
    checkpoint = Checkpoint.of(source)
    for name, image_size in itertools.product(MODELS, IMAGE_SIZES):
        layout = _layout(name, image_size)
        for fit in checkpoint.fits(layout):
            if fit.recognized:
                return name, len(fit.state[list(layout)[-1]])
    return None


def load_weights(model: nn.Module, source: str | Path | Checkpoint) -> nn.Module:
    """Load a checkpoint into ``model`` and return it, in Normalized if the checkpoint normalizes its input.

    The checkpoint decides: a ``model`` that is Normalized gets the checkpoint's mean and std, or none.
    Raises UserError that names the file if it is unreadable or has another architecture or number of classes.
    """
    checkpoint = Checkpoint.of(source)
    network = model.model if isinstance(model, Normalized) else model
    fit = _choose(checkpoint, network.state_dict())
    statistics = _statistics(checkpoint, fit)
    network.load_state_dict(
        {key: value.detach().float() if value.is_floating_point() else value for key, value in fit.state.items()},
        strict=False,  # OPTIONAL
    )
    return normalize_input(network, *statistics) if statistics else network


def load_network(
    name: str, num_classes: int, source: str | Path | Checkpoint, image_size: int = 32, flag: str = "--model"
) -> nn.Module:
    """Build the network ``name`` and load a checkpoint into it, in DeepMind's layout if the checkpoint has that.

    Raises UserError for an unknown name, and as :func:`load_weights` does; for another network it names ``flag``.
    """
    name, checkpoint = canonical(name, MODELS, ALIASES, flag), Checkpoint.of(source)
    deepmind = DEEPMIND_LAYOUTS.get(name)
    if deepmind and any(fit.recognized for fit in checkpoint.fits(_layout(deepmind))):
        name = deepmind
    try:
        return load_weights(build(name, num_classes, image_size), checkpoint)
    except OtherNetwork as error:
        identified, _ = identify(checkpoint) or (None, 0)
        if identified in (None, name):
            raise
        raise UserError(
            f"{flag} {name}: {checkpoint.path} contains {identified}; use {flag} {identified}, or choose another file"
        ) from error


def _groups(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dict of a file that has weights, with its path of keys, and without what wrappers insert in keys."""
    queue, seen = [("", content)], set()
    for location, value in queue:  # grows meanwhile
        if id(value) in seen or location.count(".") > 3:  # a dict may contain itself
            continue
        seen.add(id(value))
        items = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if not isinstance(items, Mapping):
            continue
        tensors = _tensors(items)
        if any(key.endswith("weight") and _is_dense(tensors[key]) for key in tensors):
            clean = {".".join(part for part in key.split(".") if part not in INSERTED): key for key in tensors}
            if len(clean) == len(tensors):
                tensors = {key: tensors[original] for key, original in clean.items()}
            yield location, tensors
        nested = (Mapping, list, tuple)
        queue += [(f"{location}.{key}".lstrip("."), item) for key, item in items.items() if isinstance(item, nested)]


def _tensors(items: Mapping) -> dict[str, Tensor]:
    """Return the tensors of a dict; arrays of NumPy and lists of floats become tensors."""
    tensors = {}
    for key, value in items.items():
        floats = isinstance(value, list | tuple) and {type(number) for number in value} == {float}
        if floats or (isinstance(value, np.ndarray) and value.dtype in (np.float64, np.float32, np.float16, np.int64)):
            value = torch.tensor(value)
        if isinstance(key, str) and isinstance(value, Tensor) and not key.endswith(PROFILED):
            tensors[key] = value
    return tensors


def _is_dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not (value.is_quantized or value.is_meta)


def _is_floating(value: Tensor) -> bool:
    return _is_dense(value) and value.is_floating_point()


def _layout(name: str, image_size: int = 32) -> dict[str, Tensor]:
    return _cached_layout(name, image_size, MODELS[name])


@functools.cache
def _cached_layout(name: str, image_size: int, constructor: Callable) -> dict[str, Tensor]:
    with torch.device("meta"):  # only shapes: the largest network has 267 million parameters
        return build(name, 10, image_size).state_dict()


def _fit(location: str, prefix: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Fit:
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    weight, bias = list(expected)[-2:]  # every network ends with its linear classifier
    if weight not in inside and bias not in inside:  # it may have another name or prefix
        biases = {f"{key[:-4]}weight": key for key in tensors if key.endswith("bias")}
        layers = [key for key in biases if key in tensors and tensors[key].shape[1:] == expected[weight].shape[1:]]
        if len(layers) == 1:
            moved = {layers[0]: weight, biases[layers[0]]: bias}
            inside = {key: value for key, value in inside.items() if prefix + key not in moved}
            inside |= {moved[key]: tensors[key] for key in moved}
    state = {key: inside[key] for key in expected if key in inside}
    extra, first_parts = [key for key in inside if key not in expected], {key.split(".")[0] for key in expected}
    missing = [key for key in expected if key not in inside and not OPTIONAL.search(key)]
    unexpected = [key for key in extra if key.split(".")[0] in first_parts or not _is_extra(key, inside[key])]
    different = [key for key in state if state[key].shape != expected[key].shape]
    unsupported = [
        k for k, v in state.items() if not _is_dense(v) or v.is_floating_point() < expected[k].is_floating_point()
    ]
    problem, recognized = "", not (unexpected or missing or different)
    if unexpected or missing:
        keys = [f"{kind} {keys[0]}" for kind, keys in (("unexpected", unexpected), ("missing", missing)) if keys]
        problem = f"weights of another network ({', '.join(keys)})"
    elif {*different} == {weight, bias} and state[weight].shape[1:] == expected[weight].shape[1:]:
        problem = f"has {len(state[bias])} classes, not {len(expected[bias])}; choose the --dataset it was trained on"
        recognized = True
    elif unsupported:
        key, value = unsupported[0], state[unsupported[0]]
        problem = f"{key} is {value.dtype}, {value.layout}, on {value.device}; save it as float32 on the CPU"
    elif different:
        shapes = f"{different[0]} is {tuple(state[different[0]].shape)}, not {tuple(expected[different[0]].shape)}"
        problem = f"weights of another network or --image_size ({shapes})"
    return Fit(location, prefix, state, missing, problem, recognized)


def _is_extra(key: str, value: Tensor) -> bool:
    return bool(EXTRA.search(key.split(".")[0])) or bool(STATISTIC.fullmatch(key)) or value.numel() <= 1


def _choose(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> Fit:
    """Return the network of a file that is to be loaded; log which one if it has raw weights and their average."""
    path, fits = checkpoint.path, checkpoint.fits(expected)
    found = [fit for fit in fits if not fit.problem]
    if not found:
        nearest = min(fits, key=lambda fit: len(fit.missing))
        if nearest.recognized:
            raise UserError(f"{path}: {nearest.problem}")
        raise OtherNetwork(f"{path}: {nearest.problem}; choose the network and image size it was trained with")
    found = [fit for fit in found if not fit.parts & OTHERS] or found
    kinds = _by_kind(checkpoint, found, [fit for fit in fits if not fit.parts & (OTHERS | RAW)])
    used = checkpoint.weights or ("ema" if kinds["ema"] else "raw")
    other = "raw" if used == "ema" else "ema"
    if not kinds[used]:
        raise UserError(f"--weights {used}: {path} has no {KINDS[used]}; remove the flag")
    best, *others = sorted(kinds[used], key=_rank)
    others = [fit for fit in others if _rank(fit) == _rank(best)]
    if any(not torch.equal(best.state[key], fit.state[key]) for fit in others for key in best.state.keys() & fit.state):
        names = ", ".join(fit.name for fit in (best, *others))
        raise UserError(f"{path}: contains several such networks ({names}); save only one of them")
    if kinds[other]:
        message = "%s: uses the %s (%s), not the %s (%s); --weights %s uses those"
        checkpoint.log_once(INFO, message, path, KINDS[used], best.name, KINDS[other], kinds[other][0].name, other)
    used = {id(value) for value in best.state.values()}  # a classifier may be outside the prefix
    outside = {key for key, value in checkpoint.groups[best.location].items() if id(value) not in used}
    ignored = {key.removeprefix(best.prefix).split(".")[0] for key in outside if not STATISTIC.fullmatch(key)}
    ignored |= checkpoint.groups.keys() - {"", *(fit.location for fit in (best, *others, *kinds[other][:1]))}
    if ignored:
        checkpoint.log_once(INFO, "%s: not used: %s", path, ", ".join(sorted(ignored)))
    return best


def _by_kind(checkpoint: Checkpoint, found: list[Fit], candidates: list[Fit]) -> dict[str, list[Fit]]:
    """Divide networks into averages and raw weights, by the parts of their names."""
    kinds = {"ema": [], "raw": [], "": []}
    for fit in found:
        average = fit.parts & AVERAGE or "n_averaged" in checkpoint.groups[fit.location]
        kinds["raw" if fit.parts & RAW else "ema" if average else ""].append(fit)
    unnamed = kinds.pop("")
    if not kinds["raw"]:
        kinds["raw"] = unnamed
    elif not kinds["ema"]:
        kinds["ema"] = unnamed
    if kinds["raw"] and not kinds["ema"]:  # an average of the parameters, with the BatchNorm statistics of the network
        for fit in candidates:
            if fit.parts & AVERAGE and fit.missing and all(".running_" in f".{key}" for key in fit.missing):
                kinds["ema"].append(fit._replace(state=kinds["raw"][0].state | fit.state))
    return kinds


def _rank(fit: Fit) -> int:
    return min((WRAPPERS.index(part) for part in (fit.location, *fit.name.split(".")) if part in WRAPPERS), default=99)


def _statistics(checkpoint: Checkpoint, fit: Fit) -> tuple[Tensor, Tensor] | None:
    """Return mean and std, (3,) or (1,) each, with which the network normalizes its images; None if it does not.

    They are buffers of a module that contains the network or precedes it, or those of --normalize.
    """
    pairs: dict[str, dict[bool, Tensor]] = {}
    outside = {
        key: value
        for key, value in checkpoint.groups[fit.location].items()
        if key.removeprefix(fit.prefix) not in fit.state
    }
    for key, value in outside.items():
        parent = key.rpartition(".")[0]
        wrapper, _, module = parent.rpartition(".")
        if (
            (match := STATISTIC.fullmatch(key))
            and value.numel() in (1, 3)
            and _is_floating(value)
            and fit.prefix.startswith(wrapper and f"{wrapper}.")
            and not NOT_NORMALIZATION.search(module)
        ):
            pairs.setdefault(parent, {})[bool(match[1])] = value
    complete = [pair for pair in pairs.values() if len(pair) == 2]
    if pairs and not complete:
        raise UserError(f"{checkpoint.path}: has only one of the mean and std of its input; save it with both")
    if checkpoint.normalize and not complete and "model" not in checkpoint.metadata:
        return checkpoint.normalize
    if checkpoint.normalize:
        checkpoint.log_once(WARNING, "WARNING: --normalize is not used for %s, which has its own", checkpoint.path)
    if not complete and len(checkpoint.stated) == 2:
        message = "%s: images are normalized with the mean and std in the file; --normalize 0,0,0,1,1,1 prevents it"
        checkpoint.log_once(INFO, message, checkpoint.path)
        complete = [checkpoint.stated]
    if complete:
        mean, std = (complete[0][key].detach().float().flatten() for key in (True, False))
        scale = 255 if max(mean.max(), std.max()) > 1 else 1  # the network was trained on images in [0, 255]
        return mean / scale, std / scale
    last = fit.prefix.rstrip(".").rpartition(".")[2]
    if (last.isdigit() and last != "0") or any("normal" in key for key in outside):
        message = '%s: WARNING: its keys begin with "%s", as after a layer that normalizes images, but it has no mean '
        message += "and std; without them its accuracy will be low; --normalize cifar10 (or mean and std) adds them"
        checkpoint.log_once(WARNING, message, checkpoint.path, fit.prefix)
    return None
