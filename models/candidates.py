"""The tensors of a checkpoint that may be the weights of a network, compared with its keys and shapes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from models.checkpoint import Checkpoint, is_dense
from models.normalized import statistic

# Extra keys that belong to a training code and not to the network.
EXTRA = re.compile(
    r"criterion|loss|metric|acc|normal|n_averaged|decay|num_updates|step|epoch|temperature|attack|teacher|sub_block1"
)
# Keys that may be missing: new in PyTorch 0.4.1, or of a block that no forward pass uses.
OPTIONAL = re.compile(r"num_batches_tracked$|^sub_block1\.")


class Candidate(NamedTuple):
    """The tensors under one prefix of a state dict in a file, as the ``state`` of a network.

    ``outside`` are the others of that state dict; ``problem`` is why ``state`` cannot be loaded, "" if it can.
    ``recognized``: keys and shapes are those of the network, except for the number of classes.
    """

    location: str
    prefix: str
    state: dict[str, Tensor]
    outside: dict[str, Tensor]
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


def find_candidates(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> list[Candidate]:
    """Compare the state dict ``expected`` of a network with the tensors under every prefix at which it may begin."""
    first, found = next(iter(expected)), []
    for location, tensors in checkpoint.state_dicts.items():
        prefixes = {key.removesuffix(first) for key in tensors if f".{key}".endswith(f".{first}")} or {""}
        found += [_compare(location, prefix, tensors, expected) for prefix in sorted(prefixes)]
    return found


def classifier_keys(expected: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return the keys of weight and bias of the linear classifier, with which every network ends."""
    weight, bias = list(expected)[-2:]
    return weight, bias


def _compare(location: str, prefix: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Candidate:
    tensors = _with_classifier(tensors, prefix, expected)
    state = {key: tensors[prefix + key] for key in expected if prefix + key in tensors}
    used = {prefix + key for key in state}
    outside = {key: value for key, value in tensors.items() if key not in used}
    missing = [key for key in expected if key not in state and not OPTIONAL.search(key)]
    extra = {key.removeprefix(prefix): value for key, value in outside.items() if key.startswith(prefix)}
    modules = {key.split(".")[0] for key in expected}
    unexpected = [key for key, value in extra.items() if key.split(".")[0] in modules or not _is_extra(key, value)]
    problem, recognized = _problem(state, missing, unexpected, expected)
    return Candidate(location, prefix, state, outside, missing, problem, recognized)


def _with_classifier(
    tensors: Mapping[str, Tensor], prefix: str, expected: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Rename the classifier if it has another name or prefix: it is the only layer of its input size."""
    weight, bias = classifier_keys(expected)
    if prefix + weight in tensors or prefix + bias in tensors:
        return tensors
    biases = {f"{key.removesuffix('bias')}weight": key for key in tensors if key.endswith("bias")}
    inputs = expected[weight].shape[1:]
    weights = [key for key in biases if key in tensors and tensors[key].shape[1:] == inputs]
    if len(weights) != 1:
        return tensors
    names = {weights[0]: prefix + weight, biases[weights[0]]: prefix + bias}
    return {names.get(key, key): value for key, value in tensors.items()}


def _is_extra(key: str, value: Tensor) -> bool:
    return bool(EXTRA.search(key.split(".")[0])) or statistic(key) is not None or value.numel() <= 1


def _problem(
    state: Mapping[str, Tensor], missing: list[str], unexpected: list[str], expected: Mapping[str, Tensor]
) -> tuple[str, bool]:
    """Return ``problem`` and ``recognized`` of a Candidate."""
    if unexpected or missing:
        keys = [f"{kind} {keys[0]}" for kind, keys in (("unexpected", unexpected), ("missing", missing)) if keys]
        return f"weights of another network ({', '.join(keys)})", False
    weight, bias = classifier_keys(expected)
    # A scalar may have one dimension; load_state_dict accepts it.
    different = [key for key in state if state[key].shape not in (expected[key].shape, expected[key].shape or (1,))]
    if {*different} == {weight, bias} and state[weight].shape[1:] == expected[weight].shape[1:]:
        classes = f"{len(state[weight])} classes, not {len(expected[weight])}"
        return f"has {classes}; choose the --dataset it was trained on", True
    if different:
        key = different[0]
        shapes = f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        return f"weights of another network or --image_size ({shapes})", False
    for key, value in state.items():
        if not is_dense(value) or (expected[key].is_floating_point() and not value.is_floating_point()):
            return f"{key} is {value.dtype}, {value.layout}, on {value.device}; save it as float32 on the CPU", True
    return "", True
