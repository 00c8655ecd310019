"""The mean and std by which the network of a checkpoint normalizes its images."""

import re
from logging import INFO, WARNING

from torch import Tensor

from models.candidates import Candidate
from models.checkpoint import Checkpoint, is_dense
from models.normalized import statistic
from utils.errors import UserError

# Modules that may have a mean, but not that of the images.
OTHER_MODULES = re.compile("metric|loss|acc|criterion|teacher|attack|surrogate|proxy|discriminator|optim|momentum")


def find_statistics(checkpoint: Checkpoint, network: Candidate) -> tuple[Tensor, Tensor] | None:
    """Return mean and std, (3,) or (1,) each, with which the network normalizes its images; None if it does not.

    They are buffers of a module that contains the network or precedes it, those of ``--normalize``, or values beside
    the weights. Raises UserError for a mean without std.
    """
    found = _in_modules(checkpoint, network)
    if checkpoint.normalize and not found and "model" not in checkpoint.metadata:
        return checkpoint.normalize
    if checkpoint.normalize:
        checkpoint.log_once(WARNING, "WARNING: --normalize is not used for %s, which has its own", checkpoint.path)
    beside = {} if found else _beside_weights(checkpoint)
    if beside:
        message = "%s: images are normalized with the mean and std in the file; --normalize 0,0,0,1,1,1 prevents it"
        checkpoint.log_once(INFO, message, checkpoint.path)
    if not found and not beside:
        _warn_if_lost(checkpoint, network)
        return None
    mean, std = ((found or beside)[name].detach().float().flatten() for name in ("mean", "std"))
    scale = 255 if max(mean.max(), std.max()) > 1 else 1  # the network was trained on images in [0, 255]
    return mean / scale, std / scale


def _in_modules(checkpoint: Checkpoint, network: Candidate) -> dict[str, Tensor]:
    """Return "mean" and "std" of a module that contains the network or precedes it, {} if there is none."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in network.outside.items():
        module = key.rpartition(".")[0]
        wrapper, _, name = module.rpartition(".")
        contains = network.prefix.startswith(f"{wrapper}." if wrapper else "")
        if contains and _is_statistic(key, value) and not OTHER_MODULES.search(name):
            modules.setdefault(module, {})[statistic(key)] = value
    complete = [pair for pair in modules.values() if len(pair) == 2]
    if modules and not complete:
        raise UserError(f"{checkpoint.path}: has only one of the mean and std of its input; save it with both")
    return complete[0] if complete else {}


def _beside_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return "mean" and "std" of the file's own dict, {} if it does not have both."""
    beside = {key: value for key, value in checkpoint.tensors.items() if "." not in key and value.numel() == 3}
    pair = {statistic(key): value for key, value in beside.items() if _is_statistic(key, value)}
    return pair if len(pair) == 2 else {}


def _is_statistic(key: str, value: Tensor) -> bool:
    is_floating = is_dense(value) and value.is_floating_point()
    return statistic(key) is not None and is_floating and value.numel() in (1, 3)


def _warn_if_lost(checkpoint: Checkpoint, network: Candidate) -> None:
    last = network.prefix.rstrip(".").rpartition(".")[2]
    if (last.isdigit() and last != "0") or any("normal" in key for key in network.outside):
        message = '%s: WARNING: its keys begin with "%s", as after a layer that normalizes images, but it has no mean '
        message += "and std; without them its accuracy will be low; --normalize cifar10 (or mean and std) adds them"
        checkpoint.log_once(WARNING, message, checkpoint.path, network.prefix)
