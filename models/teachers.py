"""Teachers by name: architecture, place of the file, published accuracy. ``python -m models.teachers`` lists them."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from models import MODELS, robustbench
from models.weights import load_network, load_weights
from utils.errors import UserError
from utils.names import canonical
from utils.tables import text_table


class Teacher(NamedTuple):
    """A teacher for one data set: accuracies in percent, and where the official code looks for the file.

    ``shipped`` is its folder in models/pretrained/, None where the file does not come along.
    """

    architecture: str
    source: str
    clean: float | None = None
    autoattack: float | None = None  # Linf, epsilon 8/255
    file: str | None = None
    shipped: str | None = None


PRETRAINED = Path(__file__).with_name("pretrained")

# name -> data set -> teacher. RobustBench's own names, so that its cache is found.
TEACHERS = {
    "wideresnet34_10": {
        "CIFAR10": Teacher("wideresnet34_10", "AdaAD, DGAD"),
    },
    "Zhang2019Theoretically": {
        # TRADES's WRN-34-10; its accuracy under attack is at its own epsilon, 0.031.
        "CIFAR10": Teacher("wideresnet34_10", "RSLAD, RobustBench", 84.92, 53.08, "models/model_cifar_wrn.pt"),
    },
    "Chen2021LTD_WRN34_10": {
        "CIFAR10": Teacher("wideresnet34_10", "RobustBench", 85.21, 56.94),
        "CIFAR100": Teacher(
            architecture="wideresnet34_10",
            source="DGAD, RobustBench",
            clean=64.07,
            autoattack=30.59,
            file="teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt",
        ),
    },
    "Chen2021LTD_WRN34_20": {
        "CIFAR10": Teacher(
            architecture="wideresnet34_20",
            source="DGAD, RobustBench",
            clean=86.03,
            autoattack=57.71,
            file="teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt",
        ),
    },
    "Gowal2020Uncovering": {
        # DeepMind's, without extra data.
        "CIFAR100": Teacher(
            architecture="wideresnet70_16_deepmind",
            source="RSLAD, RobustBench",
            clean=60.86,
            autoattack=30.03,
            file="models/cifar100_linf_wrn70-16_without.pt",
        ),
    },
    "small_resnet": {
        # Ours: AT on a copy of CIFAR-10 saved as JPEG, 2,000 of its test images, AutoAttack on 500.
        "CIFAR10": Teacher("small_resnet", "comes along", 52.90, 26.40, shipped="small_resnet_cifar10"),
    },
    "presnet18": {
        # Trained with TRADES.
        "Tiny_Image": Teacher(
            architecture="presnet18",
            source="DGAD",
            file="teacher_models/TinyImageNet/TRADES/best_PGD10_acc_model.pth",
        ),
    },
}

# DGAD's spellings.
ALIASES = {"Chen2021LTD_WRD34_20": "Chen2021LTD_WRN34_20", "Chen2021WRN34_10": "Chen2021LTD_WRN34_10"}


def teacher_name(name: str, flag: str = "--teacher_model") -> str:
    """Our name of a teacher: one of TEACHERS or MODELS, or ``robustbench:<Name>`` as it is.

    Raises UserError that names ``flag`` and the nearest names.
    """
    return name if name.startswith(robustbench.PREFIX) else canonical(name, {**TEACHERS, **MODELS}, ALIASES, flag)


def find_teacher(name: str, dataset: str, path: str | Path | None = None, *, data_flags: str = "") -> Path | None:
    """Return the file of a teacher: ``path``, or where it is kept; None where the zoo's package is to fetch it.

    Raises UserError where there is none; the line holds the places and the command that trains such a teacher, with
    ``data_flags`` added to it.
    """
    if path:
        if not Path(path).is_file():
            wrong = "a folder, not the checkpoint of" if Path(path).is_dir() else "no such file for"
            raise UserError(f"{path}: {wrong} teacher {name}; name its checkpoint")
        return Path(path)
    if name.startswith(robustbench.PREFIX):
        return None
    found = _present(name, dataset)
    if found is None:
        command = training_command("AT", architecture_of(name, dataset), dataset, data_flags)
        looked = " or ".join(map(str, places(name, dataset)))
        shipped = _shipped(name) if dataset == "Folder" else {}  # whose classes may be those of a shipped teacher
        others = [f" (where the classes are those of {other}: {file})" for other, file in shipped.items()]
        raise UserError(
            f"--teacher_model {name}: no file at {looked}; give another place with --teacher_path FILE"
            f"{''.join(others)}, or train one: {command} (then --teacher_path .../best_PGD10_acc_model.pth)"
        )
    return found


def training_command(method: str, model: str, dataset: str, data_flags: str = "") -> str:
    """The command that trains a teacher, as an error proposes it."""
    script = "main_tiny.py" if dataset == "Tiny_Image" else "main.py"
    return f"python {script} --dataset {dataset} --method {method} --model {model}{data_flags}"


def load_teacher(
    name: str, dataset: str, num_classes: int, path: str | Path | None = None, image_size: int = 32
) -> nn.Module:
    """Return a teacher in eval mode that needs no parameter gradients, from ``path`` or from where it is kept.

    ``name`` is one of TEACHERS, an alias, any network of MODELS, or ``robustbench:<Name>``.
    Raises UserError for an unknown name, for an unfit file, and, with the command that trains a teacher, for none.
    """
    name = teacher_name(name)
    file = find_teacher(name, dataset, path)
    if name.startswith(robustbench.PREFIX):
        teacher = load_from_zoo(name, dataset, num_classes, file)
    else:
        teacher = load_network(architecture_of(name, dataset), num_classes, file, image_size)
    return teacher.eval().requires_grad_(False)


def architecture_of(name: str, dataset: str) -> str:
    """The network of a teacher of TEACHERS or MODELS."""
    if name in MODELS:
        return name
    return TEACHERS[name].get(dataset, next(iter(TEACHERS[name].values()))).architecture


def load_from_zoo(name: str, dataset: str, num_classes: int, path: str | Path | None = None) -> nn.Module:
    """Return the network ``robustbench:<Name>`` with its published weights, or with those of ``path``.

    Raises UserError where it is not to be had.
    """
    network = robustbench.load_published(name.removeprefix(robustbench.PREFIX), dataset, num_classes)
    return load_weights(network, path) if path else network


def places(name: str, dataset: str) -> list[Path]:
    """Return where a teacher's file may lie: official places and RobustBench's cache under the working directory, then
    what comes along.
    """
    teacher = TEACHERS.get(name, {}).get(dataset)
    found = [Path(teacher.file)] if teacher and teacher.file else []
    found.append(Path("teacher_models", dataset, name, "robust_teacher.pth"))
    if dataset in robustbench.DATASETS:
        found.append(robustbench.cached(name, dataset))
    return found + [file for other, file in _shipped(name).items() if other == dataset]


def _shipped(name: str) -> dict[str, Path]:
    """The files of a teacher that come along, by data set."""
    teachers = TEACHERS.get(name, {}).items()
    return {dataset: PRETRAINED / one.shipped / "model.safetensors" for dataset, one in teachers if one.shipped}


def _present(name: str, dataset: str) -> Path | None:
    return next((place for place in places(name, dataset) if place.exists()), None)


def _table() -> str:
    header, rows = ("teacher", "data set", "network", "clean", "AutoAttack", "source", "file"), []
    for name, datasets in TEACHERS.items():
        for dataset, teacher in datasets.items():
            accuracies = (str(value or "-") for value in (teacher.clean, teacher.autoattack))
            file = _present(name, dataset) or f"absent ({places(name, dataset)[0]})"
            rows.append((name, dataset, teacher.architecture, *accuracies, teacher.source, str(file)))
    return text_table(header, rows)


if __name__ == "__main__":
    print(_table())
