"""Read the checkpoints of all supported codes into our networks, without executing code from a file."""

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
from models.normalized import Normalized, normalize_input
from utils.errors import UserError
from utils.names import canonical

# Keys under which codes of this field store the weights, and prefixes that wrappers add to the weights' keys.
WRAPPERS = ("net", "state_dict", "model_state_dict", "model", "student")
PREFIXES = ("module.", "model.", "_orig_mod.", "student.", "1.")  # "1.": nn.Sequential(Normalize, network)
STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}

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


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint under the keys that our networks use, on the CPU.

    Wrappers and prefixes are removed and floating-point tensors become float32. If the checkpoint normalizes its input,
    the keys ``mean`` and ``std`` have 3 values (or 1) each. Raises UserError that names the file.
    """
    tensors = _find_weights(_open(Path(path)), path)
    if sum(value.numel() for value in tensors.values()) > Path(path).stat().st_size:
        # An expanded view of one number could fill the memory when it is converted.
        raise UserError(f"{path}: damaged, it declares more values than it has bytes; copy or download it again")
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    statistics = {k: v for k, v in tensors.items() if k.rpartition(".")[2] in STATISTICS and v.numel() in (1, 3)}
    state = _strip_prefixes({key: value for key, value in tensors.items() if key not in statistics})
    for key, value in statistics.items():
        state[STATISTICS[key.rpartition(".")[2]]] = value.flatten()
    if ("mean" in state) != ("std" in state):
        raise UserError(f"{path}: has only one of the mean and std of its input; save it with both")
    return state


def read_metadata(path: str | Path) -> dict[str, object]:
    """Return the metadata of one of our own checkpoints: ``model``, ``dataset``, ``image_size``, ``classes``.

    Returns an empty dict for other files. Raises UserError that names the file if it cannot be read.
    """
    content = _open(Path(path))
    if not isinstance(content, Mapping):
        return {}
    return {key: content[key] for key, is_valid in METADATA.items() if key in content and is_valid(content[key])}


def identify_architecture(path: str | Path) -> str | None:
    """Return the name in MODELS of the network with the keys and shapes of a checkpoint, None if there is none.

    Raises UserError that names the file if it cannot be read.
    """
    state = {key: value for key, value in read_state_dict(path).items() if key not in ("mean", "std")}
    matrices = [value for value in state.values() if value.ndim == 2]
    for name, image_size in itertools.product(MODELS if matrices else (), IMAGE_SIZES):
        with torch.device("meta"):  # only shapes: the largest network has 267 million parameters
            expected = build(name, len(matrices[-1]), image_size).state_dict()
        if _mismatch(_match_sub_block1(state, expected), expected) is None:
            return name
    return None


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint strictly into ``model`` and return it, in Normalized if the checkpoint normalizes its input.

    The checkpoint decides: a ``model`` that is Normalized gets the checkpoint's mean and std, or none.
    Raises UserError that names the file if it is unreadable or has another architecture or number of classes.
    """
    return _load(model, read_state_dict(path), path)


def load_network(name: str, num_classes: int, path: str | Path, image_size: int = 32) -> nn.Module:
    """Build the network ``name`` and load a checkpoint into it, in DeepMind's layout if the checkpoint has that.

    Raises UserError for an unknown name, and as :func:`load_weights` does.
    """
    name = canonical(name, MODELS, ALIASES, "--model")
    state = read_state_dict(path)
    if "init_conv.weight" in state:
        name = DEEPMIND_LAYOUTS.get(name, name)
    return _load(build(name, num_classes, image_size), state, path)


def _open(path: Path) -> object:
    """Return the content of a file: only tensors and plain containers."""
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a checkpoint file") from error
    if not head:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if head.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not a checkpoint; open the download link in a browser")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer, not a checkpoint; run git lfs pull in its repository")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path}: truncated; copy or download it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file is either loaded or refused with our message
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise UserError(f"{path}: {_explain(error, head)}") from error


def _explain(error: Exception, head: bytes) -> str:
    resave = "which is refused; if you trust the file, save only its state dict"
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
        return f"loading it would execute code ({code[1]}), {resave}"
    if "TorchScript" in str(error):
        return f"a TorchScript program, {resave}"
    if isinstance(error, SafetensorError | EOFError) or head.startswith((b"PK", b"\x80")):
        return "truncated, damaged or not written by PyTorch; copy or download it again"
    return "not a PyTorch checkpoint; name a file written by torch.save or safetensors"


def _find_weights(content: object, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of the innermost state dict."""
    for _ in WRAPPERS:  # a limit, as a dict may contain itself
        if isinstance(content, Mapping):
            content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    items = content.items() if isinstance(content, Mapping) else ()
    # n_averaged counts the updates of a weight average (torch.optim.swa_utils) and is no weight.
    tensors = {k: v for k, v in items if isinstance(k, str) and k != "n_averaged" and _is_dense(v)}
    if not tensors:
        raise UserError(f"{path}: no weights at the top level or under {', '.join(WRAPPERS)}; name a checkpoint")
    return tensors


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_quantized or value.is_meta)


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        # Some distillation codes save the teacher together with the student.
        state = {key: value for key, value in state.items() if key.startswith("student.")} or state
        prefix = next((prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            return state
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _load(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> nn.Module:
    statistics = [state.pop(key) for key in ("mean", "std") if key in state]
    network = model.model if isinstance(model, Normalized) else model
    expected = network.state_dict()
    state = _match_sub_block1(state, expected)
    mismatch = _mismatch(state, expected)
    if mismatch:
        raise UserError(f"{path}: {mismatch}")
    network.load_state_dict(state)
    return normalize_input(network, *statistics) if statistics else network


def _match_sub_block1(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add or remove the weights of ``sub_block1``, which no forward pass uses, as the network expects them."""
    unused = {key: value for key, value in expected.items() if key.startswith("sub_block1.")}
    return {**unused, **{k: v for k, v in state.items() if k in expected or not k.startswith("sub_block1.")}}


def _mismatch(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """Describe how the checkpoint's keys and shapes differ from the network's, or return None."""
    unexpected = next((key for key in state if key not in expected), None)
    # Files older than PyTorch 0.4.1 have no num_batches_tracked; load_state_dict adds it.
    missing = next((key for key in expected if key not in state and not key.endswith("num_batches_tracked")), None)
    if unexpected or missing:
        keys = (("unexpected", unexpected), ("missing", missing))
        keys = ", ".join(f"{kind} {key}" for kind, key in keys if key)
        return f"weights of another network ({keys}); name the network it was saved from"
    different = [key for key in state if state[key].shape != expected[key].shape]
    if not different:
        return None
    weight, bias = list(expected)[-2:]  # every network ends with its linear classifier
    if set(different) == {weight, bias} and state[weight].shape[1:] == expected[weight].shape[1:]:
        return f"has {len(state[bias])} classes, not {len(expected[bias])}; choose the --dataset it was trained on"
    key = different[0]
    shapes = f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
    return f"weights of another network or --image_size ({shapes}); choose the network and size it was trained with"
