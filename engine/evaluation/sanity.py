"""Signs that robust accuracies are meaningless: a network that does not classify, or that misleads the attacks.

Gradient masking after Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security" (ICML 2018),
section 3.1, and Carlini et al., "On Evaluating Adversarial Robustness" (2019).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy
from attacks.suite import linf
from data import TEST_SUBSET_SEED, Split, subset
from data.loader import Batches
from engine.accuracy import CAUSES_OF_CHANCE_LEVEL, Score, minimum_accuracy
from engine.evaluation.records import Record
from utils.log import logger

CHECKED_IMAGES = 100
LARGE_EPSILON = 0.5  # at this radius every image can become uniform gray
MAX_ROBUST = 5.0  # accuracy in % above which the attack at LARGE_EPSILON has failed
MIN_LOSS_RATIO = 1.01  # of the losses at LARGE_EPSILON and epsilon; without masking the loss grows several times
MIN_LEAD = 0.5  # percentage points by which a weaker attack may be ahead at random
GRADIENT_ATTACKS = ("PGD-", "C&W-inf-")  # titles of gradient-based attacks in the ball
# Conditions of comparable results.
SAME = ("sha256", "model", "weights", "normalize", "dataset", "images", "eps", "restarts", "seed")


def is_constant(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> bool:
    """Return whether the network predicts one class for images of several, which no attack can change.

    Logs a warning for this and for a clean accuracy close to chance level.
    """
    accuracy = 100 * float((predicted == labels).double().mean())
    if constant := len(predicted.unique()) == 1 < len(labels.unique()):
        message = "WARNING: predicts class %r for every image; the network is untrained or collapsed"
        logger.warning(message, classes[predicted[0]])
    elif accuracy < minimum_accuracy(len(classes)):
        message = "WARNING: the clean accuracy, %.1f %%, is near chance level (%.1f %%): %s"
        logger.warning(message, accuracy, 100 / len(classes), CAUSES_OF_CHANCE_LEVEL)
    return constant


def sanity_check(network: nn.Module, images: Split, epsilon: float, device, *, batch_size: int) -> tuple[Score, Score]:
    """Run PGD-20 on some of the images at ``epsilon``, in [0, 1], and at LARGE_EPSILON.

    PGD starts from the image: at LARGE_EPSILON a random start fools the network without any gradient.
    """
    batches = Batches(subset(images, CHECKED_IMAGES, TEST_SUBSET_SEED), batch_size, device=device)
    return _score_pgd20(network, batches, epsilon), _score_pgd20(network, batches, LARGE_EPSILON)


def _score_pgd20(network: nn.Module, batches: Batches, epsilon: float) -> Score:
    attack = linf(cross_entropy, epsilon, epsilon / 4, 20)
    loss = correct = 0.0
    for x, y in batches:
        with torch.no_grad():
            logits = network(attack(network, x, y, torch.zeros_like(x)))
        loss += float(cross_entropy(logits, y).sum())
        correct += int((logits.argmax(1) == y).sum())
    n = len(batches.labels)
    return Score(loss / n, 100 * correct / n, n)


def warn_of_masking(record: Record, epsilon: float, check: tuple[Score, Score] | None) -> list[str]:
    """Return, and log, one line per sign of gradient masking in the results on disk and in the sanity check."""
    wanted = [record.conditions.get(key) for key in SAME]  # in results of all protocols
    same = (entry for entry in record.evaluations if [entry["conditions"].get(key) for key in SAME] == wanted)
    results = {title: result for entry in same for title, result in entry["figures"].items()}
    warnings = [
        f"{weak} is stronger than {strong} ({low['accuracy']:.2f} < {high['accuracy']:.2f} %)"
        for weak, low, strong, high in [*_pairs_with_fgsm(results), *_pairs_with_square(results)]
        if low["n"] == high["n"] and high["accuracy"] - low["accuracy"] > max(MIN_LEAD, 100 / high["n"])
    ]
    if check:
        small, large = check
        if large.accuracy > MAX_ROBUST:
            warnings.append(
                f"the accuracy under PGD-20 at epsilon {LARGE_EPSILON:g} is {large.accuracy:.0f} %, expected 0 %"
            )
        if epsilon <= LARGE_EPSILON / 2 and large.loss <= MIN_LOSS_RATIO * small.loss:
            warnings.append(
                f"the loss under PGD-20 does not increase from epsilon {epsilon:.3g} ({small.loss:.3g}) to "
                f"{LARGE_EPSILON:g} ({large.loss:.3g})"
            )
    for warning in warnings:
        logger.warning("WARNING, likely gradient masking: %s; only the lowest robust accuracy is reliable", warning)
    return warnings


def _pairs_with_fgsm(results: dict[str, dict]) -> Iterator[tuple]:
    """FGSM and its result with each PGD whose steps cross the ball, which is stronger."""
    for title, result in results.items():
        if "FGSM" in results and title.startswith("PGD-"):
            parameters = result["parameters"]
            if parameters["steps"] * parameters["step_size"] >= 2 * parameters["epsilon"]:
                yield "FGSM, a single step,", results["FGSM"], title, result


def _pairs_with_square(results: dict[str, dict]) -> Iterator[tuple]:
    """Square, by itself and in AutoAttack, with the best gradient-based attack on as many images."""
    gradient = {title: result for title, result in results.items() if title.startswith(GRADIENT_ATTACKS)}
    black_box = {"Square": results["Square"]} if "Square" in results else {}
    autoattack = results.get("AutoAttack", {})
    if stages := autoattack.get("stages"):
        gradient["AutoAttack's gradient-based attacks"] = autoattack | {"accuracy": stages["FAB-T"]}
        black_box["AutoAttack's Square"] = autoattack | {"accuracy": stages["Square"]}
    for title, square in black_box.items():
        others = [name for name in gradient if gradient[name]["n"] == square["n"]]
        if others:
            best = min(others, key=lambda name: gradient[name]["accuracy"])
            yield f"{title}, which uses no gradient,", square, best, gradient[best]
