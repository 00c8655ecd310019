"""The evaluation of one network: all chosen attacks on the same images. The command line and the Python API call it."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attacks.libraries import AUTOATTACK_CLASSES
from attacks.objectives import cross_entropy
from attacks.suite import PROTOCOLS, Attack, Setting
from data import TEST_SUBSET_SEED, Split, subset_mask, take
from engine.evaluation.attack import AttackResult, run_attack
from engine.evaluation.records import CORRECT, NOT_ATTACKED, WRONG
from engine.fast.frozen import make_attack_model
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical
from utils.versions import versions

PACKAGES = {"AutoAttack": ("pyautoattack", "autoattack"), "advertorch": ("advertorch",)}  # either of its authors'
# Batch sizes of other libraries' attacks, whose random numbers depend on the batch. A GPU needs large batches.
LIBRARY_BATCH = {"cpu": 200, "cuda": 1000}
BATCH_EFFECT = 0.01  # of the largest logit; by rounding, logits differ less, in bfloat16 too


class InParts(nn.Module):
    """Run ``model`` on ``size`` images at a time: (B, C, H, W) to logits (B, classes).

    The backward pass recomputes the activations of each part, so that memory does not grow with B.
    """

    def __init__(self, model: Callable, size: int):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits for images x, in their type."""
        if len(x) <= self.size:
            return self.model(x).to(x.dtype)
        parts = [checkpoint(self.model, part, use_reentrant=False) for part in x.split(self.size)]
        return torch.cat(parts).to(x.dtype)


def run_attacks(
    network: nn.Module,
    attacks: Mapping[str, Attack],
    images: Split,
    clean: Tensor,
    *,
    classes: Sequence[str],
    batches: Callable[..., Sequence],
    batch_size: int,
    precision: str,
    limit_aa: int | None = None,
    **options,
) -> Iterator[tuple[str, Tensor, dict]]:
    """Yield the key of each attack, the classes predicted under it (n,), and its entry in eval.json.

    Args:
        network: In eval mode with constant parameters.
        attacks: Attacks by key; ``aa`` attacks only ``limit_aa`` of the images.
        images: N images and labels, of which ``batches(split, batch_size)`` makes images (B, C, H, W) in [0, 1] and
            labels (B,) on the network's device.
        batch_size: Images per batch. It changes no result: attacks of other libraries always have batches of
            LIBRARY_BATCH, and the network gets at most ``batch_size`` of these images at a time.
        clean: Classes (N,) that the network predicts for the images.
        classes: Names of the classes.
        precision: "fp32", "tf32" or "bf16" for the attacks; predictions are verified in strict float32.
        options: Of :func:`run_attack`.
    """
    x, y = next(iter(batches(images, batch_size)))
    attack_model = make_attack_model(network, x, precision)
    _warn_of_unreliable_model(network, attack_model, x, y)
    options["tf32"] = precision == "tf32"
    for key, attack in attacks.items():
        start = time.monotonic()
        attacked = subset_mask(images, limit_aa if key == "aa" else None, TEST_SUBSET_SEED)
        part = take(images, attacked)
        model, copy, size = network, attack_model, batch_size
        if "library" in attack.parameters:
            model, size = InParts(network, batch_size).eval(), LIBRARY_BATCH.get(x.device.type, 200)
            copy = model if copy is network else InParts(copy, batch_size).eval()
        result = run_attack(model, batches(part, size), clean[attacked], attack, attack_model=copy, **options)
        seconds = time.monotonic() - start
        yield key, result.predicted, make_result(attack, result, part.labels.cpu(), attacked, seconds, classes)


def _warn_of_unreliable_model(network: nn.Module, attack_model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        alone, in_batch = network(x[:1]), network(x)[:1]
    if not (alone - in_batch).abs().max() <= BATCH_EFFECT * in_batch.abs().max():
        message = "WARNING: the logits of an image are random or change with the other images of its batch, as with "
        logger.warning(message + "BatchNorm without running statistics; robust accuracies may be too high")
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        loss = cross_entropy(attack_model(x), y).sum()
    if loss.requires_grad and torch.autograd.grad(loss, x)[0].isnan().any():
        logger.warning("WARNING: gradients of the loss are nan; PGD ignores these: robust accuracies may be too high")


def make_result(
    attack: Attack, result: AttackResult, labels: Tensor, attacked: Tensor, seconds: float, classes: Sequence[str]
) -> dict:
    """Return the entry of eval.json for one attack.

    ``labels`` (n,) belong to the attacked images; ``attacked`` (N,) bool marks these among all evaluated images.
    ``correct`` has one character per evaluated image; ``stages`` is the accuracy after each stage; ``per_class`` is
    the accuracy on the attacked images of each class that occurs.
    """
    correct = result.predicted == labels
    marks = iter(CORRECT if value else WRONG for value in correct.tolist())
    stages = {name: _percent(result.fooled_at > number) for number, name in enumerate(attack.stages, start=1) if name}
    return {
        "accuracy": _percent(correct),
        "n": len(correct),
        "settings": attack.settings,
        "parameters": attack.parameters,
        "bounded": attack.bounded,
        "stages": stages if len(stages) > 1 else {},
        "per_class": {classes[label]: _percent(correct[labels == label]) for label in labels.unique().tolist()},
        "seconds": round(seconds, 2),
        "versions": versions(),
        "correct": "".join(next(marks) if value else NOT_ATTACKED for value in attacked.tolist()),
    }


def choose_attacks(names: str, protocol: str, classes: int | None = None, flag: str = "--attacks") -> list[str]:
    """Return the keys of the attacks in ``names``, separated by commas; all of the protocol if it is empty.

    Raises UserError for an unknown name, a package that is not installed, and too few ``classes`` for AutoAttack.
    """
    attacks = PROTOCOLS[protocol](Setting(0.0, 0))
    requested = [name.strip() for name in names.split(",") if name.strip()]
    if names and not requested:
        raise UserError(f"{flag} {names}: names no attack; protocol {protocol} has {','.join(attacks)}")
    keys = list(dict.fromkeys(canonical(name, attacks, {}, flag) for name in requested)) or list(attacks)
    libraries = {attacks[key].parameters.get("library") for key in keys}
    for library, packages in PACKAGES.items():
        if library in libraries and not any(sys.modules.get(name) or find_spec(name) for name in packages):
            raise UserError(f"{flag}: {library} is not installed: pip install {packages[0]}")
    if "aa" in keys and classes and classes < AUTOATTACK_CLASSES:
        others = ",".join(key for key in attacks if key != "aa")
        least = f"at least {AUTOATTACK_CLASSES} classes, not {classes}"
        raise UserError(f"{flag}: AutoAttack requires {least}; choose from {others}")
    return keys


def choose_precision(precision: str, device: torch.device) -> str:
    """Replace "auto" by "tf32" on a GPU and "fp32" on a CPU. Raises UserError for "tf32" on a CPU."""
    if precision == "auto":
        return "tf32" if device.type == "cuda" else "fp32"
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: requires a GPU; use --precision fp32 or bf16 on a CPU")
    return precision


def _percent(values: Tensor) -> float:
    return 100 * int(values.sum()) / len(values)
