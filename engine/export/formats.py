"""The forms that others take a network in: RobustBench's, the Hugging Face Hub's, and PyTorch's program."""

import errno
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from engine.checkpoint import save_checkpoint
from engine.export.published import KNOWN, Figure, Published
from models.hub import load_folder, save_folder
from models.robustbench import DATASETS
from models.weights import load_network
from utils.files import write_atomically, write_text
from utils.tables import markdown_table

# In RobustBench's spelling.
ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "mobilenetV2": "MobileNetV2",
    "vgg16": "VGG-16",
    "wideresnet34_10": "WideResNet-34-10",
    "wideresnet28_10": "WideResNet-28-10",
    "wideresnet34_20": "WideResNet-34-20",
    "wideresnet70_16": "WideResNet-70-16",
    "wideresnet70_16_deepmind": "WideResNet-70-16",
    "presnet18": "PreActResNet-18",
    "small_resnet": "SmallResNet",
}
WORDS = {"Clean": "clean accuracy", "AutoAttack": "AutoAttack"}  # for the published figures, inside a sentence


class Entry(NamedTuple):
    """What a network is published under: a ``name``, which names files, and the words of its paper, "" where none.

    ``reported`` is the robust accuracy in percent that the paper reports.
    """

    name: str
    title: str
    authors: str
    venue: str
    link: str
    reported: str


class Format(NamedTuple):
    """``write(published, entry, folder)``, and ``load`` of the same, which returns logits (B, C) of images.

    ``folder`` is empty but for what other formats wrote there. ``write`` raises OSError where the disk takes no more.
    """

    write: Callable[[Published, Entry, Path], None]
    load: Callable[[Published, Entry, Path], Callable[[Tensor], Tensor]]


def model_info(published: Published, entry: Entry) -> dict:
    """The fields of RobustBench's ``model_info``, in its types: figures are text, empty where none is kept."""
    kept = published.figures.kept
    return {
        "link": entry.link,
        "name": entry.title,
        "authors": entry.authors,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": DATASETS.get(published.dataset, published.dataset.lower()),
        "venue": entry.venue,
        "architecture": ARCHITECTURES[published.model],
        "eps": _of_255(published.figures.epsilon),
        "clean_acc": _percent(kept.get("Clean")),
        "reported": entry.reported,
        "autoattack_acc": _percent(kept.get("AutoAttack")),
        "footnote": _footnote(published),
        "unreliable": False,
    }


def model_card(published: Published, entry: Entry) -> str:
    """README.md of the hub's folder."""
    size, kept = published.image_size, published.figures.kept
    about = f"{ARCHITECTURES[published.model]} (`{published.model}`), {published.num_classes} classes"
    listed = f": {', '.join(published.classes)}, in the order of the logits" if published.classes else ""
    paper = ". ".join(filter(None, [entry.title, entry.authors, entry.venue, entry.link]))
    rows = [[WORDS[title], _percent(figure), figure.n] for title, figure in kept.items()]
    epsilon = f"AutoAttack: standard version, L-infinity, epsilon {_of_255(published.figures.epsilon)}."
    table = markdown_table([f"on {published.dataset}", "accuracy in %", "test images"], rows)
    parts = [
        f"---\npipeline_tag: image-classification\ntags:\n- adversarial-robustness\n- pytorch_model_hub_mixin\n---\n\n"
        f"# {entry.name}",
        f"An image classifier for {published.dataset}. {about}{listed}.",
        paper and f"Paper: {paper}.",
        table if kept else "No evaluation was kept with this checkpoint.",
        epsilon if "AutoAttack" in kept else "",
        f"Input: RGB images (B, 3, {size}, {size}) in [0, 1], not normalised: what normalisation the network needs is "
        f"inside. Output: logits (B, {published.num_classes}).",
        "It loads back with the code that exported it, in that code's root folder:",
        _LOADING.format(name=entry.name, size=size),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


_LOADING = """```python
import torch
from huggingface_hub import PyTorchModelHubMixin
from models.hub import PublishedNetwork

class Network(PublishedNetwork, PyTorchModelHubMixin):
    pass

network = Network.from_pretrained("USER/{name}")  # or the path of this folder
logits = network(torch.rand(1, 3, {size}, {size}))
```

Without `huggingface_hub`: `models.hub.load_folder(path)`."""


def _write_robustbench(published: Published, entry: Entry, folder: Path) -> None:
    info = model_info(published, entry)
    place = folder / "model_info" / info["dataset"] / "Linf" / f"{entry.name}.json"
    place.parent.mkdir(parents=True)
    write_text(place, json.dumps(info, indent=2) + "\n")
    with _disk_errors():
        save_checkpoint(folder / f"{entry.name}.pt", dict(published.network.state_dict()))


def _load_robustbench(published: Published, entry: Entry, folder: Path) -> nn.Module:
    path = folder / f"{entry.name}.pt"
    return load_network(published.model, published.num_classes, path, published.image_size).eval()


def _write_hub(published: Published, entry: Entry, folder: Path) -> None:
    folder = folder / "hub"
    with _disk_errors():
        save_folder(published.network, folder, published.model, published.num_classes, published.image_size)
    write_text(folder / "README.md", model_card(published, entry))


def _load_hub(published: Published, entry: Entry, folder: Path) -> nn.Module:
    return load_folder(folder / "hub")


def _write_program(published: Published, entry: Entry, folder: Path) -> None:
    example = torch.rand(2, 3, published.image_size, published.image_size)  # a batch of one would be taken for fixed
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(published.network, (example,), dynamic_shapes=sizes)
    content = io.BytesIO()  # given a file on a full disk, torch.export.save ends the whole process
    torch.export.save(program, content)
    write_atomically(_program(entry, folder), lambda temporary: temporary.write_bytes(content.getbuffer()))


def _load_program(published: Published, entry: Entry, folder: Path) -> nn.Module:
    return torch.export.load(_program(entry, folder)).module()


def _program(entry: Entry, folder: Path) -> Path:
    return folder / f"{entry.name}.pt2"


FORMATS = {
    "robustbench": Format(_write_robustbench, _load_robustbench),
    "hub": Format(_write_hub, _load_hub),
    "torch_export": Format(_write_program, _load_program),
}


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A disk that takes no more is an OSError, as elsewhere: torch and safetensors have errors of their own for it."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(errno.EIO, f"is the disk full? {str(error).splitlines()[0]}") from error


def _footnote(published: Published) -> str:
    whole = KNOWN[published.dataset].test_images if published.dataset in KNOWN else math.inf
    parts = [(WORDS[title], figure.n) for title, figure in published.figures.kept.items() if figure.n < whole]
    text = ", ".join(f"{words} on {n} test images" for words, n in parts)
    return text and f"{text[0].upper()}{text[1:]}."


def _percent(figure: Figure | None) -> str:
    return f"{figure.accuracy:.2f}" if figure else ""


def _of_255(epsilon: float) -> str:
    return f"{255 * epsilon:.4g}/255"
