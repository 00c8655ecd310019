"""A checkpoint in the forms that others take: for RobustBench, for the Hugging Face Hub, and as a program.

python scripts/export.py --model_path CHECKPOINT --name Name2026Word --out DIR

Each form is loaded back and must give the logits of the checkpoint, on random images, before anything is put into DIR.
"""

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from engine.checkpoint import save_checkpoint
from engine.names import CHOICES
from engine.networks import network_in
from engine.records import place_of, read_evaluations
from engine.settings import dataset_name
from models import MODELS
from models.hub import load_folder, save_folder
from models.robustbench import DATASETS, PREFIX
from models.weights import DEEPMIND_TWINS, load_network, read_facts, read_state_dict, recognise
from utils.command import run_command
from utils.errors import UserError
from utils.files import write_atomically
from utils.flags import flag, parse
from utils.log import logger
from utils.names import canonical
from utils.report import markdown_table
from utils.seed import seed_everything

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


class Known(NamedTuple):
    """What is certain of a data set: classes, side of its images, number of test images."""

    classes: int
    image_size: int
    test_images: int


KNOWN = {
    "CIFAR10": Known(10, 32, 10_000),
    "CIFAR100": Known(100, 32, 10_000),
    "Tiny_Image": Known(200, 64, 10_000),
    "Digits": Known(10, 32, 360),
}

BENCHMARK_EPSILON = 8 / 255  # RobustBench's, for CIFAR and L-infinity
TITLES = {"Clean": "clean accuracy", "AutoAttack": "AutoAttack"}  # of the figures, and their words in a footnote
CHECKED_IMAGES = 4
# Of the largest logit. The same weights in the same order of operations differ by nothing, in another order by the
# rounding of float32 through some seventy layers, about 1e-5; another weight or normalisation changes the first digits.
TOLERANCE = 1e-4

RUN, PAPER = "export", "paper (fields of RobustBench's model_info)"


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and where to."""

    model_path: str = flag("", "checkpoint of any kind that main_eval.py reads", group=RUN)
    name: str = flag(
        "", "public name, RobustBench's pattern: first author, year, first word of the title: Name2026Word", group=RUN
    )
    out: str = flag("", "folder of the export; a folder for each network", group=RUN)
    dataset: str | None = flag(
        None, "data set it was trained on (what the checkpoint says, else CIFAR10, when not given)", group=RUN
    )
    model: str | None = flag(
        None,
        "network of the checkpoint; needed only where neither the file nor its keys and shapes tell",
        group=RUN,
    )
    format: tuple[str, ...] = flag((), "some of: robustbench hub torch_export (all when not given)", group=RUN)

    title: str = flag("", "title", group=PAPER)
    authors: str = flag("", "authors, separated by commas", group=PAPER)
    venue: str = flag("", "venue and year: ICML 2026, or arXiv, May 2026", group=PAPER)
    link: str = flag("", "address", group=PAPER)
    reported: str = flag("", "robust accuracy that it reports, in percent", group=PAPER)


class Figures(NamedTuple):
    """The kept figures of an evaluation by their titles, as ``engine/records.py`` has them; ``epsilon`` in [0, 1]."""

    epsilon: float
    kept: dict[str, dict]


class Published(NamedTuple):
    """A network in eval mode, and what is known of it. ``classes`` are their names, () where the file has none."""

    config: ExportConfig
    network: nn.Module
    model: str
    dataset: str
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    figures: Figures


class Format(NamedTuple):
    """``write(published, folder)``, and ``load(published, folder)``, which returns logits (B, C) of images."""

    write: Callable[[Published, Path], None]
    load: Callable[[Published, Path], Callable[[Tensor], Tensor]]


def export(config: ExportConfig) -> None:
    """Write the checkpoint in every form asked for, all of them or none.

    Raises UserError for whatever the user can mend, RuntimeError where a form gives other logits than the checkpoint.
    """
    _require_words(config)
    forms = [canonical(word, FORMATS, {}, "--format") for word in config.format] or list(FORMATS)
    seed_everything(0)  # stages that no forward uses may be absent from the file: the same export every time
    published = read(config)
    shape = CHECKED_IMAGES, 3, published.image_size, published.image_size
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    _require_finite(config, published.network, images)
    out = Path(config.out)
    with _staging(out) as staged:
        for form in forms:
            FORMATS[form].write(published, Path(staged))
            _require_same_logits(published.network, FORMATS[form].load(published, Path(staged)), images, form)
        for place in _put_in_place(Path(staged), out):
            logger.info("%s", place)
    logger.info("loaded back with the logits of %s: %s", config.model_path, ", ".join(forms))
    if missing := [title for title in TITLES if title not in published.figures.kept]:
        logger.info("no figure for %s; this makes them: %s", " and ".join(missing), _evaluation(published))


def read(config: ExportConfig) -> Published:
    """Recognise and load the checkpoint; raises UserError where it is unfit or contradicts a flag."""
    path, facts = config.model_path, read_facts(config.model_path)
    dataset = _dataset_of(config, facts)
    name = network_in(path, config.model)
    if name.startswith(PREFIX):  # trained on from a network of the zoo: the file may still hold one of ours
        name = recognise(path) or name
    if name not in MODELS:
        raise UserError(f"{path}: holds {name}, which is none of our networks; RobustBench has its form already")
    num_classes = _count_classes(path)
    known = KNOWN.get(dataset, Known(num_classes, 32, 0))
    if num_classes != known.classes:
        raise UserError(
            f"--dataset {dataset}: has {known.classes} classes, {path} {num_classes}; name the one it was trained on"
        )
    image_size = facts.get("image_size", known.image_size)
    network = load_network(name, num_classes, path, image_size).eval()
    if "init_conv.weight" in network.state_dict():
        name = DEEPMIND_TWINS.get(name, name)
    classes = tuple(map(str, facts.get("classes", ())))
    return Published(config, network, name, dataset, num_classes, classes, image_size, find_figures(path, dataset))


def find_figures(path: str, dataset: str) -> Figures:
    """Clean accuracy and AutoAttack kept beside a checkpoint: of the newest evaluation that has most of the two.

    Evaluations of another file under that name, or on another data set, do not count.
    """
    try:
        evaluations = read_evaluations(place_of(path))
    except UserError:  # none yet, or damaged
        evaluations = []
    wanted = hashlib.sha256(Path(path).read_bytes()).hexdigest(), dataset
    found = [Figures(BENCHMARK_EPSILON, {})]
    for evaluation in evaluations:
        conditions, figures = evaluation["conditions"], evaluation["figures"]
        kept = {title: figures[title] for title in TITLES if title in figures}
        if kept and (conditions.get("sha256"), conditions.get("dataset")) == wanted:
            found.append(Figures(conditions["eps"], kept))
    return max(reversed(found), key=lambda figures: len(figures.kept))


def model_info(published: Published) -> dict:
    """The fields of RobustBench's ``model_info``, in its types: figures are text, empty where none is kept."""
    config, kept = published.config, published.figures.kept
    return {
        "link": config.link,
        "name": config.title,
        "authors": config.authors,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": DATASETS.get(published.dataset, published.dataset.lower()),
        "venue": config.venue,
        "architecture": ARCHITECTURES[published.model],
        "eps": _of_255(published.figures.epsilon),
        "clean_acc": _percent(kept.get("Clean")),
        "reported": config.reported,
        "autoattack_acc": _percent(kept.get("AutoAttack")),
        "footnote": _footnote(published),
        "unreliable": False,
    }


def model_card(published: Published) -> str:
    """README.md of the hub's folder."""
    config, size, kept = published.config, published.image_size, published.figures.kept
    about = f"{ARCHITECTURES[published.model]} (`{published.model}`), {published.num_classes} classes"
    listed = f": {', '.join(published.classes)}, in the order of the logits" if published.classes else ""
    paper = ". ".join(filter(None, [config.title, config.authors, config.venue, config.link]))
    rows = [[TITLES[title], _percent(figure), figure["n"]] for title, figure in kept.items()]
    epsilon = f"AutoAttack: standard version, L-infinity, epsilon {_of_255(published.figures.epsilon)}."
    table = markdown_table([f"on {published.dataset}", "accuracy in %", "test images"], rows)
    parts = [
        f"---\npipeline_tag: image-classification\ntags:\n- adversarial-robustness\n- pytorch_model_hub_mixin\n---\n\n"
        f"# {config.name}",
        f"An image classifier for {published.dataset}. {about}{listed}.",
        paper and f"Paper: {paper}.",
        table if kept else "No evaluation was kept with this checkpoint.",
        epsilon if "AutoAttack" in kept else "",
        f"Input: RGB images (B, 3, {size}, {size}) in [0, 1], not normalised: what normalisation the network needs is "
        f"inside. Output: logits (B, {published.num_classes}).",
        "It loads back with the code that exported it, in that code's root folder:",
        _LOADING.format(name=config.name, size=size),
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


def _write_robustbench(published: Published, folder: Path) -> None:
    info, name = model_info(published), published.config.name
    place = folder / "model_info" / info["dataset"] / "Linf" / f"{name}.json"
    place.parent.mkdir(parents=True)
    text = json.dumps(info, indent=2) + "\n"
    write_atomically(place, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    save_checkpoint(folder / f"{name}.pt", dict(published.network.state_dict()))


def _load_robustbench(published: Published, folder: Path) -> nn.Module:
    path = folder / f"{published.config.name}.pt"
    return load_network(published.model, published.num_classes, path, published.image_size).eval()


def _write_hub(published: Published, folder: Path) -> None:
    folder = folder / "hub"
    save_folder(published.network, folder, published.model, published.num_classes, published.image_size)
    card = model_card(published)
    write_atomically(folder / "README.md", lambda temporary: temporary.write_text(card, encoding="utf-8"))


def _load_hub(published: Published, folder: Path) -> nn.Module:
    return load_folder(folder / "hub")


def _write_program(published: Published, folder: Path) -> None:
    example = torch.rand(2, 3, published.image_size, published.image_size)  # a batch of one would be taken for fixed
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(published.network, (example,), dynamic_shapes=sizes)
    write_atomically(_program(published, folder), lambda temporary: torch.export.save(program, temporary))


def _load_program(published: Published, folder: Path) -> nn.Module:
    return torch.export.load(_program(published, folder)).module()


def _program(published: Published, folder: Path) -> Path:
    return folder / f"{published.config.name}.pt2"


FORMATS = {
    "robustbench": Format(_write_robustbench, _load_robustbench),
    "hub": Format(_write_hub, _load_hub),
    "torch_export": Format(_write_program, _load_program),
}


def _require_words(config: ExportConfig) -> None:
    for name in ("model_path", "name", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name}: needed; --help says what it names")
    if not re.fullmatch(r"\w[\w.-]{0,199}", config.name, re.ASCII):
        raise UserError(
            f"--name {config.name}: names files: letters, digits, _, - and . only, for example Name2026Word"
        )


def _dataset_of(config: ExportConfig, facts: dict) -> str:
    told = facts.get("dataset")
    asked = config.dataset and dataset_name(config.dataset)
    if told and asked not in (None, told):
        raise UserError(f"--dataset {asked}: {config.model_path} was trained on {told}; leave the flag out")
    return asked or told or "CIFAR10"


def _count_classes(path: str) -> int:
    matrices = [value for value in read_state_dict(path).values() if value.ndim == 2]
    if not matrices:
        raise UserError(f"{path}: has no linear classifier: the weights of another kind of network")
    return len(matrices[-1])


def _require_finite(config: ExportConfig, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        if not network(images).isfinite().all():
            raise UserError(f"{config.model_path}: its logits are nan or inf on random images: the file is damaged")


def _require_same_logits(network: nn.Module, loaded: Callable[[Tensor], Tensor], images: Tensor, form: str) -> None:
    for batch in (images, images[:1]):  # of another size than a program was traced with
        with torch.no_grad():
            expected, found = network(batch), loaded(batch)
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            raise RuntimeError(f"{form}: loaded back, it gives other logits than the checkpoint; nothing was written")


def _staging(out: Path) -> tempfile.TemporaryDirectory:
    """A folder inside ``out`` that goes when it is left: whatever fails in between leaves nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=out, prefix=".partial-")
    except OSError as error:
        raise _unwritable(out, error) from error


def _put_in_place(staged: Path, out: Path) -> list[Path]:
    places = {file: out / file.relative_to(staged) for file in sorted(staged.rglob("*")) if file.is_file()}
    try:
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        for file, place in places.items():
            write_atomically(place, file.replace)
    except OSError as error:
        raise _unwritable(out, error) from error
    return list(places.values())


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"--out {out}: cannot be written to ({error.strerror}); name another folder")


def _evaluation(published: Published) -> str:
    """The command that makes the figures."""
    config = published.config
    script = "main_eval_tinyimagenet.py" if published.dataset == "Tiny_Image" else "main_eval.py"
    data = " --data_root DIR" * (published.dataset == "Folder")
    model = f" --model {config.model}" * bool(config.model)
    return (
        f"python {script} --dataset {published.dataset}{data}{model} --model_path {config.model_path} "
        "--attacks clean,aa (then export again)"
    )


def _footnote(published: Published) -> str:
    whole = KNOWN[published.dataset].test_images if published.dataset in KNOWN else math.inf
    parts = [(TITLES[title], figure["n"]) for title, figure in published.figures.kept.items() if figure["n"] < whole]
    text = ", ".join(f"{words} on {n} test images" for words, n in parts)
    return text and f"{text[0].upper()}{text[1:]}."


def _percent(figure: dict | None) -> str:
    return f"{figure['accuracy']:.2f}" if figure else ""


def _of_255(epsilon: float) -> str:
    return f"{255 * epsilon:.4g}/255"


if __name__ == "__main__":
    run_command(lambda: export(parse(ExportConfig, description=__doc__, choices=CHOICES).config))
