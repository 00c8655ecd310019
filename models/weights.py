"""Any published checkpoint to a clean state dict and a loaded network, or one clear error."""

import itertools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models import ALIASES, MODELS, build
from models.normalized import Normalized
from utils.errors import UserError
from utils.names import canonical

# Where the codes of this field keep the weights in the file, and what wrappers put before the keys.
WRAPPERS = ("net", "state_dict", "model_state_dict", "model", "student")
PREFIXES = ("module.", "model.", "_orig_mod.", "student.", "1.")  # "1.": nn.Sequential(Normalize, network)
STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}

IMAGE_SIZES = (32, 64)  # of the published networks; presnet18 has another classifier for each

LARGEST_IMAGE = 1024  # of --image_size
# What our own checkpoints say of themselves -> whether a value can be that; a file may come from anyone.
FACTS = {
    "model": lambda value: isinstance(value, str),
    "dataset": lambda value: isinstance(value, str),
    "image_size": lambda value: type(value) is int and 0 < value <= LARGEST_IMAGE,
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}

# The same published network in two layouts of code.
DEEPMIND_TWINS = {"wideresnet70_16": "wideresnet70_16_deepmind"}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint under the keys that our networks use, on the CPU.

    Wrappers and prefixes are removed and floating tensors become float32. Where the file normalises its input, the
    keys ``mean`` and ``std`` hold 3 numbers (or 1) each. Raises UserError, one line that names the file.
    """
    tensors = _weights_of(_open(Path(path)), path)
    if sum(value.numel() for value in tensors.values()) > Path(path).stat().st_size:
        # A view of one number as of a billion would fill the memory as soon as it is converted.
        raise UserError(f"{path}: promises more numbers than it has bytes: damaged, copy or download it again")
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    statistics = {key: value for key, value in tensors.items() if _is_statistic(key, value)}
    network = _strip({key: value for key, value in tensors.items() if key not in statistics})
    for key, value in statistics.items():
        network[STATISTICS[key.rpartition(".")[2]]] = value.flatten()
    if ("mean" in network) != ("std" in network):
        raise UserError(f"{path}: normalises its input by a mean or a std alone: re-save it with both")
    return network


def read_metadata(path: str | Path) -> dict[str, object]:
    """Return what one of our own checkpoints says of itself: ``model``, ``dataset``, ``image_size``, ``classes``.

    Of other files it returns nothing. Raises UserError, one line that names the file, where it cannot be read.
    """
    content = _open(Path(path))
    if not isinstance(content, Mapping):
        return {}
    return {key: content[key] for key, is_fact in FACTS.items() if key in content and is_fact(content[key])}


def recognise(path: str | Path) -> str | None:
    """Return the name in MODELS of the network whose keys and shapes a checkpoint has, None for any other.

    Raises UserError, one line that names the file, where it cannot be read.
    """
    state = {key: value for key, value in read_state_dict(path).items() if key not in ("mean", "std")}
    matrices = [value for value in state.values() if value.ndim == 2]
    for name, image_size in itertools.product(MODELS if matrices else (), IMAGE_SIZES):
        with torch.device("meta"):  # shapes alone: the largest has 267 million parameters
            expected = build(name, len(matrices[-1]), image_size).state_dict()
        if _mismatch(_with_unused(state, expected), expected) is None:
            return name
    return None


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint strictly into ``model`` and return it, inside Normalized where the file normalises its input.

    The file decides: a ``model`` that is Normalized loses its numbers to the file's, or to none.
    Raises UserError, one line that names the file, when it is unreadable or of another network or class count.
    """
    return _fill(model, read_state_dict(path), path)


def load_network(name: str, num_classes: int, path: str | Path, image_size: int = 32) -> nn.Module:
    """Build the network of that name and load the checkpoint, in DeepMind's layout where the file has it.

    Raises UserError for an unknown name or for an unfit file (naming it).
    """
    name = canonical(name, MODELS, ALIASES, "--model")
    state = read_state_dict(path)
    if "init_conv.weight" in state:
        name = DEEPMIND_TWINS.get(name, name)
    return _fill(build(name, num_classes, image_size), state, path)


def _open(path: Path) -> object:
    """Return what the file holds, tensors and plain containers only."""
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{path}: the file is empty: copy or download it again")
    if head.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not a checkpoint: the download link is dead or wants a login")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer, not the checkpoint itself: run git lfs pull where it came from")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path}: truncated: copy or download it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd about the file: it is read, or refused in our words
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise UserError(f"{path}: {_diagnosis(error, head)}") from error


def _diagnosis(error: Exception, head: bytes) -> str:
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
        return f"needs code to open ({code[1]}), which is refused: if you trust it, re-save its state dict alone"
    if "TorchScript" in str(error):
        return "a TorchScript program, which is refused: if you trust it, re-save its state dict alone"
    if isinstance(error, SafetensorError | EOFError) or head.startswith((b"PK", b"\x80")):
        return "truncated, damaged or not written by PyTorch: copy or download it again"
    return "not a PyTorch checkpoint"


def _weights_of(content: object, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of the innermost state dict."""
    for _ in WRAPPERS:  # no deeper than that: a dict may hold itself
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {}
    if isinstance(content, Mapping):
        # n_averaged counts the updates of a weight average (torch.optim.swa_utils): no weight.
        tensors = {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and _is_plain(value) and key != "n_averaged"
        }
    if not tensors:
        raise UserError(f"{path}: holds no weights, neither at the top nor under {', '.join(WRAPPERS)}")
    return tensors


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that lie in memory one after another, as weights do."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_quantized or value.is_meta)


def _is_statistic(key: str, value: Tensor) -> bool:
    return key.rpartition(".")[2] in STATISTICS and value.numel() in (1, 3)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        # A distillation wrapper saves its teacher beside the student.
        state = {key: value for key, value in state.items() if key.startswith("student.")} or state
        prefix = next((prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _fill(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> nn.Module:
    statistics = [state.pop(key) for key in ("mean", "std") if key in state]
    network = model.model if isinstance(model, Normalized) else model
    expected = network.state_dict()
    state = _with_unused(state, expected)
    mismatch = _mismatch(state, expected)
    if mismatch:
        raise UserError(f"{path}: {mismatch}")
    network.load_state_dict(state)
    return _normalise(network, *statistics) if statistics else network


def _with_unused(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """No forward uses sub_block1: what the file lacks stays initialised, what it has too much is dropped."""
    unused = {key: value for key, value in expected.items() if key.startswith("sub_block1.")}
    return {**unused, **{k: v for k, v in state.items() if k in expected or not k.startswith("sub_block1.")}}


def _mismatch(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """Say in what the file differs from the network, or return None."""
    surplus = next((key for key in state if key not in expected), None)
    # Files older than PyTorch 0.4.1 lack num_batches_tracked; load_state_dict supplies it.
    missing = next((key for key in expected if key not in state and not key.endswith("num_batches_tracked")), None)
    if surplus or missing:
        sides = (
            f"only the file has {surplus}" if surplus else "",
            f"only the network has {missing}" if missing else "",
        )
        return f"the weights of another network ({', '.join(filter(None, sides))}): name the one it was saved from"
    unequal = [key for key in state if state[key].shape != expected[key].shape]
    if not unequal:
        return None
    head = list(expected)[-2:]  # every network ends with the weight and the bias of its classifier
    ours, theirs = expected[head[0]], state[head[0]]
    if set(unequal) == set(head) and ours.shape[1:] == theirs.shape[1:]:
        return f"made for {len(theirs)} classes, not {len(ours)}: choose the --dataset it was trained on"
    first = unequal[0]
    return (
        f"the weights of another network or image size: {first} is {tuple(state[first].shape)} in the file, "
        f"{tuple(expected[first].shape)} in the network"
    )


def _normalise(network: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """Make ``network`` standardise its images with the file's numbers: in its own buffers, or else around it."""
    device = next(network.parameters()).device
    mean, std = (value.to(device).view(1, -1, 1, 1) for value in (mean, std))
    if not hasattr(network, "mean"):
        return Normalized(network, mean, std)
    # Registered anew, DeepMind's constants join the state dict: they are the file's own now, and must be saved.
    network.register_buffer("mean", mean)
    network.register_buffer("std", std)
    return network
