"""The Python API: load a checkpoint, evaluate any network under attack, train. Its functions import what they use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from utils.config import TrainConfig

__all__ = ["Accuracy", "Report", "evaluate", "load_model", "train"]

ROOT = Path(__file__).resolve().parents[1]


class Accuracy(NamedTuple):
    """Accuracy in percent on ``n`` images under one attack; ``correct`` is "1" or "0" per image ("" for a summary)."""

    accuracy: float
    n: int
    settings: str
    correct: str = ""


class Report(dict[str, Accuracy]):
    """Accuracies by title of the attack; "worst case" counts the images that are robust to all of them."""

    def __init__(self, results: dict[str, dict]):
        for title, result in results.items():
            self[title] = Accuracy(*(result[key] for key in Accuracy._fields if key in result))
        self.results = results

    def __str__(self) -> str:
        return "\n".join(f"{name:<19} {row.accuracy:6.2f} %  (n {row.n}; {row.settings})" for name, row in self.items())

    def to_dict(self) -> dict[str, dict]:
        """Return what eval.json holds of each attack, as plain values."""
        return self.results


def load_model(path: str | Path, model: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Load a checkpoint of any supported layout: a network in eval mode, images (B, 3, H, W) in [0, 1] to logits.

    Args:
        path: File, or folder with a ``model.safetensors``; relative to the working directory or to this repository.
        model: Name of the network; default: from the file's metadata, otherwise from its keys and shapes.
        num_classes: Default: from the file.

    Raises utils.errors.UserError if the file is missing, damaged or does not fit.
    """
    from engine.networks import network_in
    from models.hub import weights_file
    from models.robustbench import PREFIX, load_published
    from models.weights import Checkpoint, identify, load_network

    path = Path(path).expanduser()
    path = ROOT / path if (ROOT / path).exists() and not path.exists() else path
    file = Checkpoint(weights_file(path))
    name, metadata = network_in(file, model, "model"), file.metadata
    if name.startswith(PREFIX):
        return load_published(name, metadata.get("dataset", "CIFAR10"), file).eval()
    classes, image_size = num_classes or len(metadata.get("classes", ())), metadata.get("image_size")
    if not (classes and image_size):
        _, *found = identify(file) or (name, 10, 32)
        classes, image_size = classes or found[0], image_size or found[1]
    return load_network(name, classes, file, image_size, "model").eval()


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 8 / 255,
    attacks: str | Sequence[str] = "clean,pgd,aa",
    *,
    steps: int | None = None,
    restarts: int = 1,
    batch_size: int = 200,
    seed: int = 42,
    device: torch.device | str | None = None,
    precision: str = "auto",
    judge: str = "every",
) -> Report:
    """Evaluate a network under attack, as ``main_eval.py`` does with the flags of the same names.

    Args:
        model: Maps images to logits (B, classes). Its mode, device and ``requires_grad``, and PyTorch's random
            generators, default type and TF32 switches, are restored afterwards, also after an error.
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) integers from 0.
        eps: Radius of the L-infinity ball, in [0, 1].
        attacks: Keys of protocol paper, a list or separated by commas: clean fgsm pgd pgd_trades cw aa; all if empty.
        steps: Steps of the attack ``pgd``; default: 20.
        restarts: Random restarts of PGD and C&W-inf.
        batch_size: Images per batch.
        seed: Seed of the attack starts.
        device: Default: the model's device.
        precision: Of the attacks: "fp32", "tf32" on a GPU, "bf16", or "auto" for TF32 on a GPU and fp32 on a CPU;
            predictions are always verified in strict float32.
        judge: "every": an image counts as fooled if any step of PGD fools the network; "last": if the last one does.

    Raises ValueError if an argument is invalid or the logits are not finite.
    """
    import torch

    from attacks.suite import PROTOCOLS, Setting
    from data import Split
    from engine.accuracy import predict
    from engine.device import full_precision
    from engine.evaluation.evaluate import choose_attacks, choose_precision, run_attacks
    from engine.evaluation.records import worst_case
    from utils.config import EvalConfig
    from utils.errors import UserError

    _require(isinstance(model, torch.nn.Module), f"model: must be an nn.Module, not a {type(model).__name__}")
    _require_images(images, labels)
    origin = next(chain(model.parameters(), model.buffers()), images).device
    device = torch.device(device or origin)
    _require(device.type != "meta", "model: is on the device meta, without weights")
    split = Split(images.detach().to(device).contiguous(), labels.to(device, torch.int64))

    def batches(part: Split, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(part.images.split(size), part.labels.split(size), strict=True))

    try:
        # Raises UserError for an invalid value.
        values = {"steps": steps, "restarts": restarts, "seed": seed, "precision": precision, "judge": judge}
        EvalConfig(eps=float(eps), bs=batch_size, **values)
        names = attacks if isinstance(attacks, str) else ",".join(map(str, attacks))
        precision = choose_precision(precision, device)
        with _frozen(model, origin, device), full_precision(), torch.no_grad():
            classes = _count_classes(model, split.images[:1])
            allowed = 0 <= int(split.labels.min()) <= int(split.labels.max()) < classes
            _require(allowed, f"labels: must be between 0 and {classes - 1}; the model has {classes} classes")
            protocol = PROTOCOLS["paper"](Setting(float(eps), seed, steps, restarts, judge))
            chosen = {key: protocol[key] for key in choose_attacks(names, "paper", classes, "attacks")}
            clean = predict(model, batches(split, batch_size), "model")
            options = {"batches": batches, "batch_size": batch_size, "precision": precision, "seed": seed}
            outcomes = run_attacks(model, chosen, split, clean, classes=list(map(str, range(classes))), **options)
            results = {chosen[key].title: result for key, _, result in outcomes}
    except UserError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError("model: its logits have no gradient in the images, which attacks need") from error
    return Report(results | worst_case(results))


def train(config: TrainConfig) -> Path:
    """Train as ``main.py`` does and return the run's folder; a recipe fills in the fields that have their default.

    Raises utils.errors.UserError for errors that the user can fix.
    """
    from dataclasses import fields

    from engine.training.run import train as run

    changed = (spec.name for spec in fields(config) if getattr(config, spec.name) != spec.default)
    return run(config, dict.fromkeys(changed, "flag"))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_images(images: Tensor, labels: Tensor) -> None:
    import torch

    for name, value in (("images", images), ("labels", labels)):
        _require(isinstance(value, torch.Tensor), f"{name}: must be a tensor, not a {type(value).__name__}")
    shape = tuple(images.shape)
    _require(images.dtype == torch.float32, f"images: must be float32, not {images.dtype}")
    _require(len(shape) == 4 and 0 not in shape, f"images: must have shape (N, C, H, W) with N > 0, not {shape}")
    low, high = map(float, images.detach().aminmax())
    _require(0 <= low <= high <= 1, f"images: must be in [0, 1], not in [{low:.9g}, {high:.9g}]")
    integers = not (labels.is_floating_point() or labels.is_complex())
    _require(integers and labels.shape == shape[:1], f"labels: must be an integer tensor of shape ({shape[0]},)")


def _count_classes(model: nn.Module, image: Tensor) -> int:
    """Return the number of logits; raise ValueError if the model cannot classify an image (1, C, H, W)."""
    import torch

    from utils.errors import first_line

    copy = image.clone()
    try:
        logits = model(copy)
        unchanged = torch.equal(copy, image)
    except Exception as error:
        message = f"model: fails on a float32 image of shape {tuple(image.shape)}: {first_line(error)}"
        raise ValueError(message) from error
    is_matrix = isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.is_floating_point()
    _require(is_matrix, "model: must return one tensor of logits, of shape (N, classes)")
    _require(unchanged, "model: changes its images in place; it must compute on a copy")
    return logits.shape[1]


@contextmanager
def _frozen(model: nn.Module, origin: torch.device, device: torch.device) -> Iterator[None]:
    """Keep a model of device ``origin`` on ``device``, in eval mode with constant parameters; restore it afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = torch.get_default_dtype()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        torch.set_default_dtype(torch.float32)  # of AutoAttack's random numbers
        random_state = torch.random.fork_rng(gpus)  # AutoAttack sets the seed of all devices
        with random_state, torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            yield (model if device == origin else model.to(device)).eval()
    finally:
        torch.set_default_dtype(dtype)
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
        if device != origin:
            model.to(origin)
