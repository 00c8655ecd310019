"""A network as a folder for the Hugging Face Hub: its weights, and a class that rebuilds it from ``config.json``."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from models import build
from models.normalized import normalize_input
from utils.files import write_atomically, write_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the names that huggingface_hub expects


def weights_file(path: Path) -> Path:
    """Return the weights in a folder of :func:`save_folder`; another path is returned as it is."""
    return path / WEIGHTS if (path / WEIGHTS).exists() else path


class PublishedNetwork(nn.Module):
    """A network of MODELS, built from strings and numbers: images (B, 3, H, W) in [0, 1] to logits (B, C).

    ``model`` is its name; ``normalized`` says whether the weights include the mean and std of its input. Used with
    ``huggingface_hub.PyTorchModelHubMixin`` as a second base class, it has ``from_pretrained`` and ``push_to_hub``;
    by itself it only needs PyTorch. Raises UserError for an unknown name.
    """

    def __init__(self, model: str, num_classes: int, image_size: int = 32, normalized: bool = False):
        super().__init__()
        network = build(model, num_classes, image_size)
        self.model = normalize_input(network, torch.zeros(3), torch.ones(3)) if normalized else network

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images x (B, 3, H, W) in [0, 1]."""
        return self.model(x)


def save_folder(network: nn.Module, folder: Path, model: str, num_classes: int, image_size: int) -> None:
    """Write the configuration and the weights of ``network``, which is MODELS[model] or Normalized around it."""
    state = network.state_dict()
    for key in {"mean", "std"} & state.keys():
        state[key] = state[key].expand(1, 3, 1, 1)  # a single value holds for all three channels
    weights = {f"model.{key}": value.contiguous() for key, value in state.items()}
    config = {"model": model, "num_classes": num_classes, "image_size": image_size, "normalized": "mean" in state}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda temporary: save_file(weights, temporary, {"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_folder(folder: str | Path) -> PublishedNetwork:
    """Return the network of a folder that :func:`save_folder` wrote, in eval mode. The weights are loaded strictly.

    Raises OSError for a missing file and RuntimeError for weights of another network.
    """
    network = PublishedNetwork(**json.loads(Path(folder, CONFIG).read_text(encoding="utf-8")))
    load_model(network, Path(folder, WEIGHTS), strict=True)
    return network.eval()
