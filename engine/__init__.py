"""The Python API: load any supported checkpoint, evaluate any network, train. Everything else is imported on use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from utils.config import TrainConfig

__all__ = ["Accuracy", "Report", "evaluate", "load_model", "train"]

ROOT = Path(__file__).resolve().parents[1]


class Accuracy(NamedTuple):
    """Accuracy in percent on ``n`` images under one attack with these ``settings``.

    ``correct`` has one character per image: "1" if it is classified correctly, else "0"; "" for the worst case.
    """

    accuracy: float
    n: int
    settings: str
    correct: str = ""


class Report(Mapping):
    """Results of an evaluation: an :class:`Accuracy` by title of the attack, "worst case" for all bounded attacks."""

    def __init__(self, results: dict[str, dict]):
        self._results = results

    def __getitem__(self, title: str) -> Accuracy:
        return Accuracy(**{key: value for key, value in self._results[title].items() if key in Accuracy._fields})

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        return "\n".join(
            f"{title:<19} {each.accuracy:6.2f} %  (n {each.n}; {each.settings})" for title, each in self.items()
        )

    def to_dict(self) -> dict[str, dict]:
        """Return all that eval.json holds of each attack, as plain values."""
        return self._results


def load_model(path: str | Path, model: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Load a checkpoint of any supported layout onto the CPU: images (B, 3, H, W) in [0, 1] to logits (B, classes).

    Args:
        path: File, or folder with ``model.safetensors``; a relative path may start at the root of this repository.
        model: Name of the network; default: as in the file's metadata, else recognized by its keys and shapes.
        num_classes: Default: as in the file.

    Returns the network in eval mode. Raises utils.errors.UserError if the file is missing, damaged or does not fit.
    """
    from engine.networks import network_in
    from models.robustbench import PREFIX
    from models.teachers import load_from_zoo
    from models.weights import IMAGE_SIZES, load_network, read_metadata, read_state_dict
    from utils.errors import UserError

    path = Path(path) if Path(path).exists() else ROOT / path
    path = path / "model.safetensors" if path.is_dir() else path
    name, metadata = network_in(path, model, "model"), read_metadata(path)
    if num_classes is None:
        matrices = [value for value in read_state_dict(path).values() if value.ndim == 2]
        num_classes = len(metadata.get("classes", matrices[-1] if matrices else ()))
    if name.startswith(PREFIX):
        return load_from_zoo(name, metadata.get("dataset", "CIFAR10"), num_classes, path).eval()
    *sizes, last = [metadata["image_size"]] if "image_size" in metadata else IMAGE_SIZES
    for image_size in sizes:  # the classifier of presnet18 depends on the image size
        try:
            return load_network(name, num_classes, path, image_size).eval()
        except UserError:
            continue
    return load_network(name, num_classes, path, last).eval()


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float = 8 / 255,
    attacks: str = "clean,pgd,aa",
    *,
    steps: int | None = None,
    restarts: int = 1,
    batch_size: int = 200,
    seed: int = 42,
    device: torch.device | str | None = None,
    precision: str = "auto",
) -> Report:
    """Evaluate a network under attack, as ``main_eval.py`` does with the same settings.

    Args:
        model: Maps images to logits (B, classes). Its mode, device and ``requires_grad`` are the same afterwards.
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) integers from 0.
        eps: Radius of the L-infinity ball, in [0, 1].
        attacks: Keys of the paper protocol, separated by commas: clean fgsm pgd pgd_trades cw aa; "" for all.
        steps: Steps of the attack ``pgd``; default 20.
        restarts: Random restarts of PGD and C&W-inf.
        batch_size: Images per batch.
        seed: Of the attacks' starts.
        device: Default: the model's.
        precision: Of the attacks: "fp32", "bf16", "tf32" (GPU), or "auto", TF32 on a GPU and float32 on a CPU;
            predictions are always verified in strict float32.

    Raises ValueError if an argument is invalid or the logits are not finite.
    """
    import torch

    from attacks.suite import PROTOCOLS, Setting
    from data import Split
    from engine.accuracy import predict
    from engine.device import full_precision
    from engine.evaluation.evaluate import choose_attacks, choose_precision, require_classes, run_attacks
    from engine.evaluation.records import worst_case
    from utils.errors import UserError

    _require(0 <= eps <= 1, f"eps: must be in [0, 1], not {eps}; divide by 255")
    _require_images(images, labels)
    device = torch.device(device or next(model.parameters(), images).device)
    images, labels = images.to(device), labels.to(device, torch.int64)
    try:
        precision = choose_precision(precision, device)
        keys = choose_attacks(attacks, "paper", "attacks")
        with _frozen(model, device), full_precision():
            with torch.no_grad():
                logits = model(images[:1])
            _require(logits.ndim == 2, f"model: must return logits (B, classes), not of shape {tuple(logits.shape)}")
            classes = logits.shape[1]
            _require(labels.min() >= 0 and labels.max() < classes, f"labels: must be in 0..{classes - 1}")
            require_classes(keys, classes, "attacks")
            protocol = PROTOCOLS["paper"](Setting(eps, seed, steps, restarts))

            def batches(part: Split) -> list[tuple[Tensor, Tensor]]:
                return list(zip(part.images.split(batch_size), part.labels.split(batch_size), strict=True))

            whole = Split(images, labels)
            inputs = model, {key: protocol[key] for key in keys}, whole, predict(model, batches(whole))
            names = list(map(str, range(classes)))
            outcomes = run_attacks(*inputs, classes=names, batches=batches, precision=precision, seed=seed)
            results = {protocol[key].title: result for key, _, result in outcomes}
    except UserError as error:
        raise ValueError(str(error)) from error
    return Report(results | worst_case(results))


def train(config: TrainConfig) -> Path:
    """Train as ``main.py`` does and return the run's folder.

    With ``recipe="paper"`` the recipe sets the fields that have their default value.
    Raises utils.errors.UserError for everything that the user can fix.
    """
    from dataclasses import fields

    from engine.training.run import train as run

    return run(
        config, frozenset(field.name for field in fields(config) if getattr(config, field.name) != field.default)
    )


def _require_images(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless images and labels have the form that :func:`evaluate` takes."""
    dtype, shape = (getattr(images, name, type(images).__name__) for name in ("dtype", "shape"))
    _require(str(dtype) == "torch.float32", f"images: must be a float32 tensor in [0, 1], not {dtype}")
    _require(len(shape) == 4 and len(images) > 0, f"images: must have shape (N, C, H, W), N > 0, not {tuple(shape)}")
    low, high = float(images.min()), float(images.max())
    _require(0 <= low <= high <= 1, f"images: must be in [0, 1], not in [{low:g}, {high:g}]")
    integers = hasattr(labels, "dtype") and not (labels.is_floating_point() or labels.is_complex())
    _require(integers and labels.shape == shape[:1], f"labels: must be an integer tensor of shape ({len(images)},)")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@contextmanager
def _frozen(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model on ``device``, in eval mode with constant parameters; restore all three afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    origin = next((parameter.device for parameter in model.parameters()), device)
    try:
        model.to(device).eval().requires_grad_(False)
        yield
    finally:
        model.to(origin)
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
