"""Load the checkpoints of all supported codes into our networks, without executing code from a file."""

import functools
import itertools
from collections.abc import Mapping
from logging import INFO
from pathlib import Path

import torch
from torch import Tensor, nn

from models import ALIASES, MODELS, build
from models.candidates import Candidate, classifier_keys, find_candidates
from models.checkpoint import Checkpoint
from models.input_statistics import find_statistics
from models.normalized import Normalized, normalize_input, statistic
from utils.errors import UserError
from utils.names import canonical

# If several dicts of a file contain a network, the first of these names is used.
WRAPPERS = ("net", "state_dict", "model_state_dict", "model", "student")
# Parts of names, separated by dots and underscores, that identify the other networks in a file.
AVERAGE = {"ema", "swa", "wa", "avg", "average", "averaged", "averages", "polyak", "shadow", "teacherema"}
RAW = {"raw", "unaveraged", "online"}
OTHERS = {"teacher", "t", "attacker", "attack", "surrogate", "proxy", "discriminator", "optimizer", "optim", "momentum"}
OTHERS |= {"method"}  # our method_state: ADR's average makes labels, and is neither the validated nor the raw network
KINDS = {"ema": "average", "raw": "raw weights"}  # --weights

IMAGE_SIZES = (32, 64)  # of the published networks; presnet18 has a different classifier for each

# The same architecture has another layout of keys in DeepMind's code.
DEEPMIND_LAYOUTS = {"wideresnet70_16": "wideresnet70_16_deepmind"}


class OtherNetwork(UserError):
    """A file with weights of another architecture."""


def identify(source: str | Path | Checkpoint) -> tuple[str, int, int] | None:
    """Return name in MODELS, number of classes and image size (of IMAGE_SIZES) of a network, by its keys and shapes.

    Returns None if it is another network. Raises UserError that names the file if it cannot be read.
    """
    checkpoint = Checkpoint.of(source)
    for name, image_size in itertools.product(MODELS, IMAGE_SIZES):
        try:
            layout = _layout(name, image_size)
        except RuntimeError:  # a network of the user that cannot be built without memory
            continue
        weight, _ = classifier_keys(layout)
        if layout[weight].ndim != 2:
            continue
        for candidate in find_candidates(checkpoint, layout):
            if candidate.recognized:
                return name, len(candidate.state[weight]), image_size
    return None


def load_weights(model: nn.Module, source: str | Path | Checkpoint) -> nn.Module:
    """Load a checkpoint into ``model`` and return it, in Normalized if the checkpoint normalizes its input.

    The checkpoint decides: a ``model`` that is Normalized gets the checkpoint's mean and std, or none.
    Raises UserError that names the file if it is unreadable or has another architecture or number of classes.
    """
    checkpoint = Checkpoint.of(source)
    network = model.model if isinstance(model, Normalized) else model
    chosen = _choose(checkpoint, network.state_dict())
    statistics = find_statistics(checkpoint, chosen)
    network.load_state_dict(
        {key: value.detach().float() if value.is_floating_point() else value for key, value in chosen.state.items()},
        strict=False,  # some keys are optional
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
    if deepmind and any(candidate.recognized for candidate in find_candidates(checkpoint, _layout(deepmind))):
        name = deepmind
    try:
        return load_weights(build(name, num_classes, image_size), checkpoint)
    except OtherNetwork as error:
        identified, *_ = identify(checkpoint) or (name,)
        if identified == name:
            raise
        raise UserError(
            f"{flag} {name}: {checkpoint.path} contains {identified}; use {flag} {identified}, or choose another file"
        ) from error


@functools.cache
def _layout(name: str, image_size: int = 32) -> dict[str, Tensor]:
    with torch.device("meta"):  # only shapes: the largest network has 267 million parameters
        return build(name, 10, image_size).state_dict()


def _choose(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> Candidate:
    """Return the network of a file that is to be loaded, and log what else is in the file."""
    candidates = find_candidates(checkpoint, expected)
    average, raw = _average_and_raw(checkpoint, _loadable(checkpoint, candidates), candidates)
    networks = {"ema": average, "raw": raw}
    used = checkpoint.weights or ("ema" if average else "raw")
    other = "raw" if used == "ema" else "ema"
    if not networks[used]:
        raise UserError(f"--weights {used}: {checkpoint.path} has no {KINDS[used]}; remove the flag")
    best, *copies = _best(checkpoint, networks[used])
    beside = networks[other][:1]
    if beside:
        message = "%s: using the %s (%s), not the %s (%s); --weights %s selects the latter"
        values = KINDS[used], best.name, KINDS[other], beside[0].name, other
        checkpoint.log_once(INFO, message, checkpoint.path, *values)
    ignored = {key.removeprefix(best.prefix).split(".")[0] for key in best.outside if not statistic(key)}
    ignored |= checkpoint.state_dicts.keys() - {"", *(network.location for network in (best, *copies, *beside))}
    if ignored:
        checkpoint.log_once(INFO, "%s: not used: %s", checkpoint.path, ", ".join(sorted(ignored)))
    return best


def _loadable(checkpoint: Checkpoint, candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that can be loaded, without teachers and the like; raise UserError if there is none."""
    loadable = [candidate for candidate in candidates if not candidate.problem]
    if loadable:
        return [candidate for candidate in loadable if not candidate.parts & OTHERS] or loadable
    nearest = min(candidates, key=lambda candidate: len(candidate.missing))
    if nearest.recognized:
        raise UserError(f"{checkpoint.path}: {nearest.problem}")
    raise OtherNetwork(f"{checkpoint.path}: {nearest.problem}; choose the network and image size it was trained with")


def _average_and_raw(
    checkpoint: Checkpoint, loadable: list[Candidate], candidates: list[Candidate]
) -> tuple[list[Candidate], list[Candidate]]:
    """Divide networks into averages and raw weights, by the parts of their names."""
    average, raw, unnamed = [], [], []
    for network in loadable:
        if network.parts & RAW:
            raw.append(network)
        elif network.parts & AVERAGE or "n_averaged" in checkpoint.state_dicts[network.location]:
            average.append(network)
        else:
            unnamed.append(network)
    if not raw:
        raw = unnamed
    elif not average:
        average = unnamed
    if raw and not average:
        state = raw[0].state
        average = [each._replace(state=state | each.state) for each in candidates if _averages_parameters(each, state)]
    return average, raw


def _averages_parameters(candidate: Candidate, state: Mapping[str, Tensor]) -> bool:
    """Return whether ``candidate`` is an average of the parameters of ``state``, without BatchNorm statistics."""
    if not candidate.parts & AVERAGE or candidate.parts & (OTHERS | RAW) or not candidate.missing:
        return False
    same_shapes = all(key not in state or value.shape == state[key].shape for key, value in candidate.state.items())
    return same_shapes and all(".running_" in f".{key}" for key in candidate.missing)


def _best(checkpoint: Checkpoint, networks: list[Candidate]) -> list[Candidate]:
    """Return the networks whose name is first in WRAPPERS; raise UserError unless they are the same."""
    best = min(map(_rank, networks))
    first, *others = same_rank = [network for network in networks if _rank(network) == best]
    for other in others:
        keys = first.state.keys() & other.state
        if not all(torch.equal(first.state[key], other.state[key]) for key in keys):
            names = ", ".join(network.name for network in same_rank)
            raise UserError(f"{checkpoint.path}: contains several such networks ({names}); save only one of them")
    return same_rank


def _rank(network: Candidate) -> int:
    return min((WRAPPERS.index(part) for part in network.name.split(".") if part in WRAPPERS), default=len(WRAPPERS))
