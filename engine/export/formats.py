"""The export formats: each function writes its files into ``folder`` and returns the network loaded from them."""

import errno
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from engine.checkpoint import save_checkpoint
from engine.export.robustbench import ARCHITECTURES, RESULTS, ExportConfig, Published, model_info, per_255, percent
from models.hub import load_folder, save_folder
from models.weights import load_network
from utils.files import write_atomically, write_text
from utils.tables import markdown_table

Classifier = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [0, 1] -> logits (B, C)

CARD = """---
pipeline_tag: image-classification
tags:
- adversarial-robustness
- pytorch_model_hub_mixin
---

# {name}

An image classifier for {dataset}: {architecture} (`{model}`), {num_classes} classes{classes}.
{paper}
{results}

Input: RGB images (B, 3, {size}, {size}) in [0, 1]; the network includes any normalization it needs. Output: logits
(B, {num_classes}). Load it in the root folder of the code that exported it:

```python
import torch
from huggingface_hub import PyTorchModelHubMixin
from models.hub import PublishedNetwork

class Network(PublishedNetwork, PyTorchModelHubMixin):
    pass

network = Network.from_pretrained("USER/{name}")  # or the path of this folder
logits = network(torch.rand(1, 3, {size}, {size}))
```

Without `huggingface_hub`: `models.hub.load_folder(path)`.
"""


def model_card(published: Published, config: ExportConfig) -> str:
    """Return README.md of the hub's folder."""
    paper = ". ".join(filter(None, [config.title, config.authors, config.venue, config.link]))
    header = [f"on {published.dataset}", "accuracy in %", "test images"]
    results = "No evaluation was kept with this checkpoint."
    if published.results:
        rows = [[RESULTS[title], percent(result), result["n"]] for title, result in published.results.items()]
        results = markdown_table(header, rows)
    if "AutoAttack" in published.results:
        results += f"\n\nAutoAttack: standard version, L-infinity, epsilon {per_255(published.epsilon)}."
    return CARD.format(
        name=config.name,
        dataset=published.dataset,
        architecture=ARCHITECTURES[published.model],
        model=published.model,
        num_classes=published.num_classes,
        classes=f", in the order of the logits: {', '.join(published.classes)}" if published.classes else "",
        paper=f"\nPaper: {paper}.\n" if paper else "",
        results=results,
        size=published.image_size,
    )


def export_robustbench(published: Published, config: ExportConfig, folder: Path) -> Classifier:
    """Write <Name>.pt, a bare state dict, and model_info/<dataset>/Linf/<Name>.json."""
    info, path = model_info(published, config), folder / f"{config.name}.pt"
    info_path = folder / "model_info" / info["dataset"] / "Linf" / f"{config.name}.json"
    info_path.parent.mkdir(parents=True)
    write_text(info_path, json.dumps(info, indent=2) + "\n")
    with _as_os_errors():
        save_checkpoint(path, dict(published.network.state_dict()))
    return load_network(published.model, published.num_classes, path, published.image_size).eval()


def export_hub(published: Published, config: ExportConfig, folder: Path) -> Classifier:
    """Write hub/: model.safetensors, config.json and README.md."""
    with _as_os_errors():
        save_folder(published.network, folder / "hub", published.model, published.num_classes, published.image_size)
    write_text(folder / "hub" / "README.md", model_card(published, config))
    return load_folder(folder / "hub")


def export_program(published: Published, config: ExportConfig, folder: Path) -> Classifier:
    """Write <Name>.pt2, a program of torch.export for any batch size."""
    path, content = folder / f"{config.name}.pt2", io.BytesIO()
    example = torch.rand(2, 3, published.image_size, published.image_size)  # a batch of one would be traced as fixed
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(published.network, (example,), dynamic_shapes=shapes), content)
    # Given a file on a full disk, torch.export.save would end the whole process.
    write_atomically(path, lambda temporary: temporary.write_bytes(content.getbuffer()))
    return torch.export.load(path).module()


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise OSError for a full disk, for which torch and safetensors raise errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(errno.EIO, f"is the disk full? {str(error).splitlines()[0]}") from error


FORMATS = {"robustbench": export_robustbench, "hub": export_hub, "torch_export": export_program}
