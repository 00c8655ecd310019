"""Signs of gradient masking: the network misleads the attacks, and its robust accuracy is overestimated.

After Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1, and
Carlini et al., "On Evaluating Adversarial Robustness" (2019).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy
from attacks.suite import Perturb, linf
from data import TEST_SUBSET_SEED, Split, subset
from data.loader import Batches
from engine.accuracy import CAUSES_OF_CHANCE_LEVEL, evaluate, minimum_accuracy
from engine.evaluation.records import Record
from utils.log import logger

CHECKED_IMAGES = 100
LARGE_EPSILON = 0.5  # at this radius every image can become uniform gray
MAX_ROBUST = 5.0  # accuracy in % above which the attack at LARGE_EPSILON has failed
MIN_LOSS_RATIO = 1.01  # of the losses at LARGE_EPSILON and epsilon; without masking the loss grows several times
MIN_LEAD = 0.5  # percentage points by which a weaker attack may win at random
GRADIENT_ATTACKS = ("PGD-", "C&W-inf-")  # titles of gradient-based attacks in the ball
SAME = ("sha256", "model", "dataset", "images", "eps", "restarts", "seed")  # conditions of comparable results


class SanityCheck(NamedTuple):
    """PGD-20 on some images: its loss at epsilon, and its loss and accuracy in % at LARGE_EPSILON."""

    loss: float
    large_loss: float
    large_accuracy: float


def sanity_check(network: nn.Module, images: Split, epsilon: float, device, *, batch_size: int) -> SanityCheck:
    """Run PGD-20 on some of the images at ``epsilon``, in [0, 1], and at LARGE_EPSILON."""
    batches = Batches(subset(images, CHECKED_IMAGES, TEST_SUBSET_SEED), batch_size, device=device)
    small, large = (evaluate(network, batches, _pgd20_without_start(radius)) for radius in (epsilon, LARGE_EPSILON))
    return SanityCheck(small.loss, large.loss, large.accuracy)


def _pgd20_without_start(epsilon: float) -> Perturb:
    attack = linf(cross_entropy, epsilon, epsilon / 4, 20)
    # At LARGE_EPSILON a random start fools the network without any gradient.
    return lambda model, x, y, noise: attack(model, x, y, torch.zeros_like(noise))


def warn_of_constant_prediction(predicted: Tensor, classes: Sequence[str]) -> bool:
    """Return, and log, whether the network predicts one class for all images, which no attack can change."""
    constant = len(predicted) > 1 and len(predicted.unique()) == 1
    if constant:
        logger.warning(
            "WARNING: predicts class %r for every image; the network is untrained or collapsed", classes[predicted[0]]
        )
    return constant


def warn_of_chance_level(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """Log the usual causes of a clean accuracy that is close to chance level."""
    accuracy = 100 * float((predicted == labels).double().mean())
    if accuracy < minimum_accuracy(len(classes)):
        message = "WARNING: the clean accuracy, %.1f %%, is near chance level (%.1f %%): %s"
        logger.warning(message, accuracy, 100 / len(classes), CAUSES_OF_CHANCE_LEVEL)


def warn_of_masking(record: Record, epsilon: float, check: SanityCheck | None) -> list[str]:
    """Return, and log, one line per sign of gradient masking in the results on disk and in the sanity check."""
    warnings = list(_weaker_attacks_that_win(_comparable_results(record)))
    if check and check.large_accuracy > MAX_ROBUST:
        warnings.append(
            f"the accuracy under PGD-20 at epsilon {LARGE_EPSILON:g} is {check.large_accuracy:.0f} %, expected 0 %: "
            "the gradients do not lead to adversarial examples"
        )
    if check and epsilon <= LARGE_EPSILON / 2 and check.large_loss <= MIN_LOSS_RATIO * check.loss:
        warnings.append(
            f"the loss under PGD-20 does not increase from epsilon {epsilon:.3g} ({check.loss:.3g}) to "
            f"{LARGE_EPSILON:g} ({check.large_loss:.3g}): the loss is flat around the images"
        )
    for warning in warnings:
        logger.warning("WARNING, likely gradient masking: %s; only the lowest robust accuracy is reliable", warning)
    return warnings


def _comparable_results(record: Record) -> dict[str, dict]:
    """Results of all protocols on the same network, images and radius."""
    wanted = [record.conditions[key] for key in SAME]
    same = (entry for entry in record.evaluations if [entry["conditions"].get(key) for key in SAME] == wanted)
    return {title: result for entry in same for title, result in entry["figures"].items()}


def _weaker_attacks_that_win(results: dict[str, dict]) -> Iterator[str]:
    gradient = {title: result for title, result in results.items() if title.startswith(GRADIENT_ATTACKS)}
    fgsm, black_box = results.get("FGSM"), {"Square": results.get("Square")}
    for title, result in gradient.items():
        path_length = result["parameters"]["steps"] * result["parameters"]["step_size"]
        crosses_ball = path_length >= 2 * result["parameters"]["epsilon"]
        if fgsm and title.startswith("PGD-") and crosses_ball and _wins(fgsm, result):
            yield f"FGSM is stronger than {title} ({_accuracies(fgsm, result)}), although it is a single step"
    autoattack = results.get("AutoAttack")
    if autoattack and autoattack["stages"]:
        accuracies = autoattack["stages"]
        gradient["AutoAttack's gradient-based attacks"] = autoattack | {"accuracy": accuracies["FAB-T"]}
        black_box["AutoAttack's Square"] = autoattack | {"accuracy": accuracies["Square"]}
    for title, square in black_box.items():
        others = [name for name in gradient if square and gradient[name]["n"] == square["n"]]
        best = min(others, key=lambda name: gradient[name]["accuracy"], default=None)
        if best and _wins(square, gradient[best]):
            yield f"{title} is stronger than {best} ({_accuracies(square, gradient[best])}), although it is black-box"


def _accuracies(lower: dict, higher: dict) -> str:
    return f"{lower['accuracy']:.2f} < {higher['accuracy']:.2f} %"


def _wins(weaker: dict, stronger: dict) -> bool:
    """Whether the weaker attack has the lower robust accuracy on as many images, by more than randomness."""
    lead = stronger["accuracy"] - weaker["accuracy"]
    return weaker["n"] == stronger["n"] and lead > max(MIN_LEAD, 100 / stronger["n"])
