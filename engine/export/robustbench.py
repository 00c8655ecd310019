"""A checkpoint with its results, as RobustBench publishes networks: weights and model_info."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from data import DATASETS, dataset_name
from engine.evaluation.records import read_evaluations, results_path
from engine.networks import network_in
from models import MODELS, robustbench
from models.weights import DEEPMIND_LAYOUTS, Checkpoint, identify, load_network
from utils.errors import UserError
from utils.flags import flag


class Known(NamedTuple):
    """Properties of a dataset."""

    classes: int
    image_size: int
    test_images: int


KNOWN = {
    "CIFAR10": Known(10, 32, 10_000),
    "CIFAR100": Known(100, 32, 10_000),
    "Tiny_Image": Known(200, 64, 10_000),
    "Digits": Known(10, 32, 360),
}
RESULTS = {"Clean": "clean accuracy", "AutoAttack": "AutoAttack"}  # the published ones, and their names in a sentence
# RobustBench's names.
ARCHITECTURES = {
    **{"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50", "presnet18": "PreActResNet-18"},
    **{"mobilenetV2": "MobileNetV2", "vgg16": "VGG-16", "small_resnet": "SmallResNet"},
    **{name: name.replace("wideresnet", "WideResNet-").replace("_", "-") for name in MODELS if "wide" in name},
    "wideresnet70_16_deepmind": "WideResNet-70-16",
}

RUN, PAPER = "export", "paper (fields of RobustBench's model_info)"


@dataclass(frozen=True)
class ExportConfig:
    """Flags of scripts/export.py: what to export, and where."""

    model_path: str = flag("", "checkpoint of any kind that main_eval.py reads", group=RUN)
    name: str = flag("", "public name: first author, year, word of the title, such as Name2026Word", group=RUN)
    out: str = flag("", "folder of the export; one folder per network", group=RUN)
    dataset: str | None = flag(None, "dataset it was trained on (default: as the file states, else CIFAR10)", group=RUN)
    model: str | None = flag(None, "network (default: as the file states, else by its keys and shapes)", group=RUN)
    title: str = flag("", "title", group=PAPER)
    authors: str = flag("", "authors, separated by commas", group=PAPER)
    venue: str = flag("", "venue and year: ICML 2026, or arXiv, May 2026", group=PAPER)
    link: str = flag("", "address", group=PAPER)
    reported: str = flag("", "robust accuracy that the paper reports, in percent", group=PAPER)


class Published(NamedTuple):
    """A network in eval mode, its class names, () if the file has none, and its RESULTS in eval.json at ``eps``."""

    network: nn.Module
    model: str
    dataset: str
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    eps: str
    results: dict[str, dict]


def read(config: ExportConfig) -> Published:
    """Load a checkpoint and its results; raises UserError if they are damaged, unsupported or contradict the flags."""
    path, file = config.model_path, Checkpoint(config.model_path)
    metadata, identified = file.metadata, identify(file)
    stated, given = metadata.get("dataset"), config.dataset and dataset_name(config.dataset)
    if stated and stated not in DATASETS:  # it becomes the name of a folder
        raise UserError(f"{path}: states the unknown dataset {stated!r}: the file is damaged")
    if stated and given not in (None, stated):
        raise UserError(f"--dataset {given}: {path} was trained on {stated}; remove the flag")
    dataset = given or stated or "CIFAR10"
    name = network_in(file, config.model)
    if name.startswith(robustbench.PREFIX) and identified:  # a student that started from it
        name = identified[0]
    if name not in MODELS:
        raise UserError(f"{path}: contains {name}, which RobustBench already has; export another network")
    known = KNOWN.get(dataset, Known(identified[1] if identified else 0, 32, 0))
    num_classes = identified[1] if identified else known.classes
    if num_classes != known.classes:
        problem = f"has {known.classes} classes, but {path} has {num_classes}"
        raise UserError(f"--dataset {dataset}: {problem}; give the dataset that it was trained on")
    image_size = metadata.get("image_size", known.image_size)
    network = load_network(name, num_classes, file, image_size).eval()
    if "init_conv.weight" in network.state_dict():
        name = DEEPMIND_LAYOUTS.get(name, name)
    classes = tuple(map(str, metadata.get("classes", ())))
    return Published(network, name, dataset, num_classes, classes, image_size, *find_results(file, dataset))


def find_results(checkpoint: Checkpoint, dataset: str) -> tuple[str, dict[str, dict]]:
    """Return eps and results of the newest evaluation of this file, on ``dataset``, that has most of RESULTS."""
    file, eps, best = results_path(checkpoint.path), "8/255", {}  # RobustBench's eps for CIFAR and L-infinity
    try:
        for evaluation in read_evaluations(file) if file.exists() else ():  # the newest is the last
            conditions = evaluation["conditions"]
            results = {title: result for title, result in evaluation["figures"].items() if title in RESULTS}
            same = (conditions.get("sha256"), conditions.get("dataset")) == (checkpoint.sha256, dataset)
            if same and results and len(results) >= len(best):
                eps, best = f"{255 * conditions['eps']:.4g}/255", results
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged; delete it and evaluate the checkpoint again") from error
    return eps, best


def model_info(published: Published, config: ExportConfig) -> dict:
    """Return RobustBench's ``model_info`` in its types: numbers are text, empty without a result."""
    test_images = KNOWN[published.dataset].test_images if published.dataset in KNOWN else float("inf")
    subsets = {RESULTS[title]: result["n"] for title, result in published.results.items() if result["n"] < test_images}
    footnote = ", ".join(f"{name} on {n} test images" for name, n in subsets.items())
    accuracy = {title: f"{result['accuracy']:.2f}" for title, result in published.results.items()}
    return {
        "link": config.link,
        "name": config.title,
        "authors": config.authors,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": robustbench.DATASETS.get(published.dataset, published.dataset.lower()),
        "venue": config.venue,
        "architecture": ARCHITECTURES[published.model],
        "eps": published.eps,
        "clean_acc": accuracy.get("Clean", ""),
        "reported": config.reported,
        "autoattack_acc": accuracy.get("AutoAttack", ""),
        "footnote": footnote and f"{footnote[0].upper()}{footnote[1:]}.",
        "unreliable": False,
    }
