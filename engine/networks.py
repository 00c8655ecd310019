"""Student and teachers of a run, from the names and files in its config."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from data import TEST_SUBSET_SEED, Splits, decode_files, subset
from data.loader import Batches
from engine.accuracy import CAUSES_OF_CHANCE_LEVEL, minimum_accuracy, predict, warn_of_input_scale
from engine.checkpoint import best_checkpoint
from methods import count_teachers
from models import ALIASES, MODELS, build, robustbench
from models.robustbench import PREFIX
from models.teachers import find_teacher, load_teacher, training_command
from models.weights import Checkpoint, identify, load_network
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical

TEACHER_CHECK_IMAGES = 256


def network_name(name: str, dataset: str = "") -> str:
    """Return the canonical name of a network. Raises UserError with the nearest names.

    With a ``dataset``, RobustBench's model zoo must have a ``robustbench:<Name>`` for it.
    """
    if name.startswith(PREFIX):
        return robustbench.find(name, dataset) if dataset else name
    return canonical(name, MODELS, ALIASES, "--model")


def network_in(checkpoint: Checkpoint, requested: str | None, flag: str = "--model") -> str:
    """Return the name of the network in a checkpoint: ``requested``, else from its metadata, else from its weights.

    Raises UserError, naming ``flag``, if the file contradicts ``requested`` or the network is unknown.
    """
    stored = checkpoint.metadata.get("model")
    if requested is None:
        name = stored or (identify(checkpoint) or (None,))[0]
        if name is None:
            reason = f"{checkpoint.path} does not name its network, and its weights fit no known network exactly"
            raise UserError(f"{flag}: required: {reason}")
        return name
    name = network_name(requested)
    if stored not in (None, name):
        raise UserError(f"{flag} {requested}: {checkpoint.path} contains a {stored}; use {flag} {stored} or no {flag}")
    return name


def make_network(name: str, source: Path | Checkpoint | None, dataset: str, splits: Splits) -> nn.Module:
    """Build a network for the dataset, with the weights of ``source`` unless it is None."""
    classes, image_size = len(splits.classes), splits.image_size
    if name.startswith(PREFIX):
        return robustbench.load_published(name, dataset, source)
    return build(name, classes, image_size) if source is None else load_network(name, classes, source, image_size)


def find_teachers(config: TrainConfig) -> list[tuple[str, str, Checkpoint | nn.Module]]:
    """Return flag, name and file of the method's teachers: the robust one, then the standard one.

    For a network of RobustBench's model zoo, the network replaces the file. Raises UserError if one is missing or
    damaged, before any dataset is read.
    """
    data_flags = f" --data_root {config.data_root}" if config.data_root else ""
    data_flags += f" --image_size {config.image_size}" if config.image_size else ""
    wanted = (
        ("--teacher_model", config.teacher_model, config.teacher_path),
        ("--std_teacher_model", config.std_teacher_model, config.std_teacher_path),
    )
    teachers, errors = [], []
    for flag, name, path in wanted[: count_teachers(config.method)]:
        try:
            if flag == "--std_teacher_model" and not path:
                command = training_command("Natural", name, config.dataset, data_flags)
                command += f" (then --std_teacher_path .../{best_checkpoint('Natural')})"
                needed = f"{config.method} needs a naturally trained teacher"
                raise UserError(f"--std_teacher_path: {needed}; train one: {command}")
            file = find_teacher(name, config.dataset, path, data_flags=data_flags, flag=flag)
            published = robustbench.load_published(name, config.dataset) if file is None else None
            teachers.append((flag, name, published or Checkpoint(file, config.weights, config.normalize)))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("; ".join(errors))
    return teachers


def make_teachers(config: TrainConfig, found: list, splits: Splits, device: torch.device) -> list[nn.Module]:
    """Load the teachers that :func:`find_teachers` found, and check their classes and their accuracy."""
    teachers = []
    for flag, name, source in found:
        teacher = _load_teacher(config, flag, name, source, splits) if isinstance(source, Checkpoint) else source
        teacher = teacher.eval().requires_grad_(False).to(device)
        _check(teacher, flag, name, splits, config, device)
        teachers.append(teacher)
    return teachers


def _load_teacher(config: TrainConfig, flag: str, name: str, file: Checkpoint, splits: Splits) -> nn.Module:
    image_size, trained = file.metadata.get("image_size"), file.metadata.get("classes")
    if image_size not in (None, splits.image_size):
        logger.warning("%s was trained at --image_size %d, not %d", file.path, image_size, splits.image_size)
    difference = class_difference(trained, splits.classes) if trained else None
    if difference and not config.no_teacher_check:
        raise UserError(
            f"{flag} {name}: {file.path} was trained on other classes ({difference}); use data with the same "
            "classes in the same order; --no_teacher_check accepts it"
        )
    return load_teacher(name, config.dataset, len(splits.classes), file, splits.image_size, flag)


def class_difference(trained: Sequence[str], classes: Sequence[str]) -> str | None:
    """Describe how the classes of a checkpoint differ from those of the data, or return None."""
    if len(trained) != len(classes):
        return f"{len(trained)}, not {len(classes)}"
    pairs = zip(trained, classes, strict=True)
    different = [f"class {k} is {old!r}, not {new!r}" for k, (old, new) in enumerate(pairs) if old != new]
    more = f", and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(different[:3]) + more if different else None


def checksum(network: nn.Module) -> int:
    """Return a CRC-32 of the network's weights."""
    total = 0
    for value in network.state_dict().values():
        total = zlib.crc32(value.detach().cpu().contiguous().numpy(), total)
    return total


def _check(teacher: nn.Module, flag: str, name: str, splits: Splits, config: TrainConfig, device: torch.device) -> None:
    """Log the teacher's accuracy on clean test images; raise UserError if it is close to chance level."""
    (images,) = decode_files(subset(splits.test, TEACHER_CHECK_IMAGES, TEST_SUBSET_SEED))
    batches = Batches(images, config.bs, device=device)
    predicted, n = predict(teacher, batches, f"{flag} {name}"), len(images.labels)
    accuracy = 100 * float((predicted == images.labels).double().mean())
    kind = "standard" if flag.startswith("--std") else "robust"
    logger.info("%s teacher %s: clean accuracy %.2f %% on %d test images", kind, name, accuracy, n)
    warn_of_input_scale(teacher, next(iter(batches))[0], f"{kind} teacher {name}")
    if config.no_teacher_check:
        return
    if len(predicted.unique()) == 1 < len(images.labels.unique()):
        problem = f"predicts class {splits.classes[predicted[0]]!r} for all {n} clean test images"
    elif accuracy < minimum_accuracy(len(splits.classes)):
        problem = f"classifies only {accuracy:.1f} % of {n} clean test images correctly"
    else:
        return
    raise UserError(
        f"{flag} {name}: {problem} (chance level {100 / len(splits.classes):.1f} %): {CAUSES_OF_CHANCE_LEVEL}; "
        "--no_teacher_check accepts it"
    )
