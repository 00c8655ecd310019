"""A checkpoint with its results as RobustBench and the Hugging Face Hub publish networks."""

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from data import DATASETS, dataset_name
from engine.checkpoint import save_checkpoint
from engine.evaluation.records import read_evaluations, results_path
from engine.networks import network_in
from models import MODELS, robustbench
from models.hub import load_folder, save_folder
from models.weights import DEEPMIND_LAYOUTS, Checkpoint, identify, load_network
from utils.errors import UserError
from utils.fields import flag
from utils.files import PARTIAL, require_writable, write_text
from utils.log import logger
from utils.seed import seed_everything
from utils.tables import markdown_table

TOLERANCE = 1e-4  # of the largest logit; the rounding of float32 in seventy layers is about 1e-5
# Dataset -> classes, image size, test images.
KNOWN = {"CIFAR10": (10, 32, 10_000), "CIFAR100": (100, 32, 10_000)}
KNOWN |= {"Tiny_Image": (200, 64, 10_000), "Digits": (10, 32, 360)}
RESULTS = ("Clean", "AutoAttack")  # the published ones
# RobustBench's names.
ARCHITECTURES = {
    **{"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50", "presnet18": "PreActResNet-18"},
    **{"mobilenetV2": "MobileNetV2", "vgg16": "VGG-16", "small_resnet": "SmallResNet"},
    **{name: name.replace("wideresnet", "WideResNet-").replace("_", "-") for name in MODELS if "wide" in name},
    "wideresnet70_16_deepmind": "WideResNet-70-16",
}
CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
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


def export(config: ExportConfig) -> None:
    """Write the files for RobustBench and the hub; a failure before :func:`_move` changes no file of ``--out``.

    Raises UserError for bad input and RuntimeError if a written file returns other logits than the checkpoint.
    """
    for name in ("model_path", "name", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name}: required; see --help")
    if not re.fullmatch(r"\w[\w.-]{0,199}", config.name, re.ASCII):
        raise UserError(f"--name {config.name}: may have only letters, digits, _, - and ., for example Name2026Word")
    seed_everything(0)  # unused stages that are missing from the file are initialized equally in every export
    published, out = read(config), Path(config.out)
    images = torch.rand(4, 3, published.image_size, published.image_size)
    with torch.no_grad():
        expected = published.network(images)
    if not expected.isfinite().all():
        raise UserError(f"{config.model_path}: its logits are nan or inf on random images: the file is damaged")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as folder, torch.no_grad():
            for target, network in _write(published, config, Path(folder)).items():
                if not (network(images) - expected).abs().max() <= TOLERANCE * expected.abs().max():
                    raise RuntimeError(f"{target}: the file returns other logits; nothing was written")
            _move(Path(folder), out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {out}: cannot be written to ({reason}); choose another folder") from error
    logger.info("loaded back with the logits of %s", config.model_path)
    if missing := [title for title in RESULTS if title not in published.results]:
        command = f"main_eval.py --dataset {published.dataset} --model_path {config.model_path} --attacks clean,aa"
        logger.info("no result for %s; evaluate, then export again: python %s", " and ".join(missing), command)


def read(config: ExportConfig) -> Published:
    """Load a checkpoint and its results; raises UserError if they are damaged, unsupported or contradict the flags."""
    path, file = config.model_path, Checkpoint(config.model_path)
    stated, given = file.metadata.get("dataset"), config.dataset and dataset_name(config.dataset)
    if stated and stated not in DATASETS:  # it becomes the name of a folder
        raise UserError(f"{path}: states the unknown dataset {stated!r}: the file is damaged")
    if stated and given not in (None, stated):
        raise UserError(f"--dataset {given}: {path} was trained on {stated}; remove the flag")
    dataset, name, identified = given or stated or "CIFAR10", network_in(file, config.model), identify(file)
    if name.startswith(robustbench.PREFIX) and identified:  # a student that started from it
        name = identified[0]
    if name not in MODELS:
        raise UserError(f"{path}: contains {name}, which RobustBench already has; export another network")
    names = file.metadata.get("classes", ())
    num_classes, image_size, _ = KNOWN.get(dataset, (*identified[1:], None) if identified else (len(names), 32, None))
    image_size = file.metadata.get("image_size", image_size)
    network = load_network(name, num_classes, file, image_size).eval()
    if "init_conv.weight" in network.state_dict():
        name = DEEPMIND_LAYOUTS.get(name, name)
    eps, results = _find_results(file, dataset, image_size)
    return Published(network, name, dataset, num_classes, names, image_size, eps, results)


def _find_results(file: Checkpoint, dataset: str, image_size: int) -> tuple[str, dict[str, dict]]:
    """Return eps and results of the newest evaluation of the exported network that has most of RESULTS."""
    path, eps, best = results_path(file.path), "8/255", {}  # RobustBench's eps for CIFAR and L-infinity
    usual = {"normalize": None, "image_size": image_size}  # conditions that may be absent
    wanted = {"sha256": file.sha256, "dataset": dataset} | usual
    for evaluation in read_evaluations(path) if path.exists() else ():  # the newest is the last
        conditions = usual | evaluation["conditions"]
        results = {title: result for title, result in evaluation["figures"].items() if title in RESULTS}
        same = wanted.items() <= conditions.items() and conditions.get("weights") != "raw"
        if same and results and len(results) >= len(best):
            eps, best = f"{255 * conditions.get('eps', 8 / 255):.4g}/255", results
    return eps, best


def _write(published: Published, config: ExportConfig, folder: Path) -> dict[str, nn.Module]:
    """Write all files; return the networks that are loaded from them, in eval mode, by the name of their target."""
    network, model, _, num_classes, _, image_size, *_ = published
    info, weights = model_info(published, config), folder / f"{config.name}.pt"
    info_path = folder / "model_info" / info["dataset"] / "Linf" / f"{config.name}.json"
    info_path.parent.mkdir(parents=True)
    write_text(info_path, json.dumps(info, indent=2) + "\n")
    save_checkpoint(weights, network.state_dict())
    save_folder(network, folder / "hub", model, num_classes, image_size)
    write_text(folder / "hub" / "README.md", model_card(published, config))
    loaded = load_network(model, num_classes, weights, image_size).eval()
    return {weights.name: loaded, "hub": load_folder(folder / "hub")}


def _move(folder: Path, out: Path) -> None:
    """Move all files of ``folder`` into ``out``, one by one; raises OSError, before the first for a blocked path."""
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    for target in (out / file for file in files):
        require_writable(target.parent)
        if target.is_dir():
            raise UserError(f"--out {out}: {target} is a folder, not a file; choose another folder")
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).replace(out / file)
        logger.info("%s", out / file)


def model_info(published: Published, config: ExportConfig) -> dict:
    """Return RobustBench's ``model_info`` in its types: numbers are text, empty without a result."""
    *_, all_images = KNOWN.get(published.dataset, (float("inf"),))
    parts = {title: result["n"] for title, result in published.results.items() if result["n"] < all_images}
    accuracy = {title: f"{result['accuracy']:.2f}" for title, result in published.results.items()}
    info = {"name": config.title, "authors": config.authors, "venue": config.venue, "link": config.link}
    info |= {"dataset": robustbench.DATASETS.get(published.dataset, published.dataset.lower()), "eps": published.eps}
    info |= {"architecture": ARCHITECTURES.get(published.model, published.model), "number_forward_passes": 1}
    info |= {"additional_data": False}
    info |= {"clean_acc": accuracy.get("Clean", ""), "autoattack_acc": accuracy.get("AutoAttack", "")}
    info |= {"reported": config.reported, "unreliable": False}
    return info | {"footnote": ", ".join(f"{title} on {n} test images" for title, n in parts.items())}


def model_card(published: Published, config: ExportConfig) -> str:
    """Return README.md of the hub's folder."""
    paper = ". ".join(filter(None, [config.title, config.authors, config.venue, config.link]))
    rows = [[title, f"{result['accuracy']:.2f}", result["n"]] for title, result in published.results.items()]
    results = markdown_table([f"on {published.dataset}", "accuracy in %", "test images"], rows)
    if "AutoAttack" in published.results:
        results += f"\n\nAutoAttack: standard version, L-infinity, epsilon {published.eps}."
    return CARD.format(
        **published._asdict() | {"results": results if rows else "It was not evaluated before the export."},
        name=config.name,
        architecture=ARCHITECTURES.get(published.model, published.model),
        names=f", in the order of the logits: {', '.join(published.classes)}" if published.classes else "",
        paper=f"\nPaper: {paper}.\n" if paper else "",
    )
