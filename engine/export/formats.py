"""The export formats: each function writes its files into ``folder`` and returns the network loaded from them."""

import json
from pathlib import Path

from torch import nn

from engine.checkpoint import save_checkpoint
from engine.export.robustbench import ARCHITECTURES, RESULTS, ExportConfig, Published, model_info
from models.hub import load_folder, save_folder
from models.weights import load_network
from utils.files import write_text
from utils.tables import markdown_table

CARD = """---
pipeline_tag: image-classification
tags: [adversarial-robustness, pytorch_model_hub_mixin]
---

# {name}

An image classifier for {dataset}: {architecture} (`{model}`), {num_classes} classes{names}.
{paper}
{table}

Input: RGB images (B, 3, {image_size}, {image_size}) in [0, 1]; any normalization is inside the network. Output: logits
(B, {num_classes}). In the root folder of the code that exported it, `models.hub.load_folder(path)` loads it, and also:

```python
import torch
from huggingface_hub import PyTorchModelHubMixin
from models.hub import PublishedNetwork

class Network(PublishedNetwork, PyTorchModelHubMixin): ...

network = Network.from_pretrained("USER/{name}")  # or the path of this folder
logits = network(torch.rand(1, 3, {image_size}, {image_size}))
```
"""


def model_card(published: Published, config: ExportConfig) -> str:
    """Return README.md of the hub's folder."""
    paper = ". ".join(filter(None, [config.title, config.authors, config.venue, config.link]))
    rows = [[RESULTS[title], f"{result['accuracy']:.2f}", result["n"]] for title, result in published.results.items()]
    table = markdown_table([f"on {published.dataset}", "accuracy in %", "test images"], rows)
    attack = f"\n\nAutoAttack: standard version, L-infinity, epsilon {published.eps}."
    return CARD.format(
        **published._asdict(),
        name=config.name,
        architecture=ARCHITECTURES[published.model],
        names=f", in the order of the logits: {', '.join(published.classes)}" if published.classes else "",
        paper=f"\nPaper: {paper}.\n" if paper else "",
        table=table + attack * ("AutoAttack" in published.results)
        if rows
        else "It was not evaluated before the export.",
    )


def export_robustbench(published: Published, config: ExportConfig, folder: Path) -> nn.Module:
    """Write <Name>.pt, a bare state dict, and model_info/<dataset>/Linf/<Name>.json."""
    info, path = model_info(published, config), folder / f"{config.name}.pt"
    info_path = folder / "model_info" / info["dataset"] / "Linf" / f"{config.name}.json"
    info_path.parent.mkdir(parents=True)
    write_text(info_path, json.dumps(info, indent=2) + "\n")
    save_checkpoint(path, published.network.state_dict())
    return load_network(published.model, published.num_classes, path, published.image_size).eval()


def export_hub(published: Published, config: ExportConfig, folder: Path) -> nn.Module:
    """Write hub/: model.safetensors, config.json and README.md."""
    save_folder(published.network, folder / "hub", published.model, published.num_classes, published.image_size)
    write_text(folder / "hub" / "README.md", model_card(published, config))
    return load_folder(folder / "hub")
