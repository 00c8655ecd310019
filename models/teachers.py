"""Teachers by name: architecture, file and published accuracy. ``python -m models.teachers`` lists them."""

from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate
from torch import nn

from models import ALIASES as ARCHITECTURES
from models import MODELS, robustbench
from models.hub import WEIGHTS, weights_file
from models.weights import Checkpoint, load_network
from utils.cli import run_command
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical


class Teacher(NamedTuple):
    """A teacher for one dataset, with its published accuracies in percent (AutoAttack: L-infinity, epsilon 8/255)."""

    name: str
    dataset: str
    source: str
    clean: float | None = None
    autoattack: float | None = None


# RobustBench's names for networks that it has, so that its cached files are found.
TEACHERS = (
    Teacher("wideresnet34_10", "CIFAR10", "AdaAD, DGAD"),
    # From TRADES; its robust accuracy is published for its own epsilon, 0.031.
    Teacher("Zhang2019Theoretically", "CIFAR10", "RSLAD, RobustBench", 84.92, 53.08),
    Teacher("Chen2021LTD_WRN34_10", "CIFAR10", "RobustBench", 85.21, 56.94),
    Teacher("Chen2021LTD_WRN34_10", "CIFAR100", "DGAD, RobustBench", 64.07, 30.59),
    Teacher("Chen2021LTD_WRN34_20", "CIFAR10", "DGAD, RobustBench", 86.03, 57.71),
    # From DeepMind, trained without extra data.
    Teacher("Gowal2020Uncovering", "CIFAR100", "RSLAD, RobustBench", 60.86, 30.03),
    # Ours: AT on a JPEG copy of CIFAR-10; accuracies on 2,000 of its test images, AutoAttack on 500.
    Teacher("small_resnet", "CIFAR10", "included", 52.90, 26.40),
    # Trained with TRADES.
    Teacher("presnet18", "Tiny_Image", "DGAD"),
)

# (name, dataset) -> path in the official code.
OFFICIAL_PATHS = {
    ("Zhang2019Theoretically", "CIFAR10"): "models/model_cifar_wrn.pt",
    ("wideresnet34_10", "CIFAR100"): "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt",
    ("Chen2021LTD_WRN34_10", "CIFAR100"): "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt",
    ("Chen2021LTD_WRN34_20", "CIFAR10"): "teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt",
    ("Gowal2020Uncovering", "CIFAR100"): "models/cifar100_linf_wrn70-16_without.pt",
    ("presnet18", "Tiny_Image"): "teacher_models/TinyImageNet/TRADES/best_PGD10_acc_model.pth",
}

PRETRAINED = Path(__file__).with_name("pretrained")
# (name, dataset) -> weights in this repository.
INCLUDED = {("small_resnet", "CIFAR10"): PRETRAINED / "small_resnet_cifar10" / WEIGHTS}

# DGAD's spellings.
ALIASES = {"Chen2021LTD_WRD34_20": "Chen2021LTD_WRN34_20", "Chen2021WRN34_10": "Chen2021LTD_WRN34_10"}


def teacher_name(name: str, flag: str = "--teacher_model") -> str:
    """Return the canonical name of a teacher: one of TEACHERS or MODELS; ``robustbench:<Name>`` is not changed.

    Raises UserError that names ``flag`` and the nearest names.
    """
    if name.startswith(robustbench.PREFIX):
        return name
    return canonical(name, dict.fromkeys([*(teacher.name for teacher in TEACHERS), *MODELS]), ALIASES, flag)


def architecture_of(name: str, flag: str = "--teacher_model") -> str:
    """Return the name in MODELS of a teacher's network."""
    return canonical(name, MODELS, ARCHITECTURES, flag)


def candidate_paths(name: str, dataset: str) -> list[Path]:
    """Return the paths of a teacher's file, in the order in which they are tried.

    First the official path, teacher_models/ and RobustBench's cache, relative to the working directory, then the
    included weights.
    """
    paths = [OFFICIAL_PATHS.get((name, dataset)), Path("teacher_models", dataset, name, "robust_teacher.pth")]
    if dataset in robustbench.DATASETS:
        paths.append(robustbench.cache_path(name, dataset))
    paths.append(INCLUDED.get((name, dataset)))
    return [Path(path) for path in paths if path]


def find_teacher(
    name: str, dataset: str, path: str | Path | None = None, *, data_flags: str = "", flag: str = "--teacher_model"
) -> Path | None:
    """Return the file of a teacher: ``path`` or the first existing candidate; None if robustbench loads it.

    Raises UserError if there is no file. Its message lists the candidates and a command that trains such a teacher,
    with ``data_flags`` appended.
    """
    if path:
        path = weights_file(Path(path))
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path}: {problem}; give a checkpoint of teacher {name}")
        return path
    if name.startswith(robustbench.PREFIX):
        return None
    candidates = candidate_paths(name, dataset)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    path_flag = flag.replace("_model", "_path")
    command = training_command("AT", architecture_of(name), dataset, data_flags)
    raise UserError(
        f"{flag} {name}: no file {' or '.join(map(str, candidates))}; give one with {path_flag} FILE, or train one: "
        f"{command} (then {path_flag} .../best_PGD10_acc_model.pth)"
    )


def training_command(method: str, model: str, dataset: str, data_flags: str = "") -> str:
    """Return the command that trains a teacher, for error messages."""
    script = "main_tiny.py" if dataset == "Tiny_Image" else "main.py"
    return f"python {script} --dataset {dataset} --method {method} --model {model}{data_flags}"


def load_teacher(
    name: str,
    dataset: str,
    num_classes: int,
    source: str | Path | Checkpoint | None = None,
    image_size: int = 32,
    flag: str = "--teacher_model",
) -> nn.Module:
    """Return a frozen teacher in eval mode, loaded from ``source`` or from the first existing candidate.

    ``name`` is one of TEACHERS, ALIASES or MODELS, or ``robustbench:<Name>``.
    Raises UserError for an unknown name and for a missing or unsuitable file.
    """
    name = teacher_name(name, flag)
    if not isinstance(source, Checkpoint):
        source = find_teacher(name, dataset, source)
    if name.startswith(robustbench.PREFIX):
        teacher = robustbench.load_published(name, dataset, source)
    else:
        teacher = load_network(architecture_of(name, flag), num_classes, source, image_size, flag)
    return teacher.eval().requires_grad_(False)


def _table() -> str:
    header, rows = ("teacher", "dataset", "network", "clean", "AutoAttack", "source", "file"), []
    for name, dataset, source, clean, autoattack in TEACHERS:
        candidates = candidate_paths(name, dataset)
        file = next((path for path in candidates if path.exists()), f"missing ({candidates[0]})")
        rows.append((name, dataset, architecture_of(name), clean, autoattack, source, file))
    table = tabulate(rows, header, floatfmt=".2f", missingval="-")
    try:
        zoo = {dataset: ", ".join(robustbench.zoo(dataset)) for dataset in robustbench.DATASETS}
    except UserError as error:
        return f"{table}\n\n{error}"
    return "\n\n".join([table, *(f"{robustbench.PREFIX}NAME for {dataset}: {names}" for dataset, names in zoo.items())])


if __name__ == "__main__":
    run_command(lambda: logger.info(_table()))
