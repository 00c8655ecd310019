"""Signs that an evaluation flatters a network whose gradients mislead the attacks (gradient masking).

After Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1, and
Carlini et al., "On Evaluating Adversarial Robustness" (2019).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy
from attacks.suite import Perturb, linf
from data import Split, subset
from data.loader import Batches
from engine.accuracy import evaluate
from engine.evaluation.records import Record
from utils.log import logger

CHECKED_IMAGES = 100  # images: enough to tell 0 from 5 %
WIDE = 0.5  # a radius at which every image can be turned into any other half-way
STANDING = 5.0  # percent; a network whose gradients lead anywhere has about none left at that radius
FLAT = 1.01  # the loss at that radius against the loss at epsilon; grows several times over where gradients lead
GRADIENT_ATTACKS = ("PGD-", "C&W-inf-")  # titles of attacks that follow gradients in the ball
TOLERANCE = 0.5  # points by which a weaker attack may win by chance


class SanityCheck(NamedTuple):
    """PGD-20 on some images: its loss at epsilon, and its loss and accuracy (%) at radius 0.5."""

    loss: float
    wide_loss: float
    wide_accuracy: float


def sanity_check(
    network: nn.Module, images: Split, epsilon: float, device, *, batch_size: int, seed: int
) -> SanityCheck:
    """Attack some of the images at ``epsilon`` in [0, 1] and at radius 0.5, taking every step."""
    batches = Batches(subset(images, CHECKED_IMAGES, seed), batch_size, device=device)
    near, wide = (evaluate(network, batches, _from_the_image(radius)) for radius in (epsilon, WIDE))
    return SanityCheck(near.loss, wide.loss, wide.accuracy)


def _from_the_image(radius: float) -> Perturb:
    attack = linf(cross_entropy, radius, radius / 4, 20)
    # No random start: at this radius noise alone turns images, and only what the gradients do is asked.
    return lambda model, x, y, noise: attack(model, x, y, torch.zeros_like(noise))


def warn_of_constant_prediction(predicted: Tensor, classes: Sequence[str]) -> bool:
    """Whether a network reads every image as the same class, which no attack changes and no robustness is; logged."""
    answers = predicted.unique().tolist()
    if len(answers) == 1 and len(predicted) > 1:
        logger.warning("WARNING: reads every image as %r: hardly trained, its figures say nothing", classes[answers[0]])
        return True
    return False


def warn_of_masking(record: Record, epsilon: float, checked: SanityCheck | None) -> list[str]:
    """Log, and return, one line for each sign of gradient masking in the kept figures and the sanity_check."""
    warnings = list(_weaker_attacks_that_win(_comparable(record)))
    if checked and checked.wide_accuracy > STANDING:
        warnings.append(
            f"{checked.wide_accuracy:.0f} % stand against PGD-20 at epsilon {WIDE:g}, where nothing should: "
            "the gradients lead nowhere"
        )
    if checked and epsilon <= WIDE / 2 and checked.wide_loss <= FLAT * checked.loss:
        warnings.append(
            f"the loss under PGD-20 does not grow from epsilon {epsilon:.3g} ({checked.loss:.3g}) to {WIDE:g} "
            f"({checked.wide_loss:.3g}): the loss is flat where the attack looks"
        )
    for warning in warnings:
        logger.warning("WARNING, likely gradient masking: %s; trust no figure but the lowest", warning)
    return warnings


def _comparable(record: Record) -> dict[str, dict]:
    """Figures of every protocol on the same network, images and radius."""
    same = ("sha256", "model", "dataset", "images", "eps", "restarts", "seed")
    wanted = [record.conditions[key] for key in same]
    kept = [entry for entry in record.evaluations if [entry["conditions"].get(key) for key in same] == wanted]
    return {title: figure for entry in kept for title, figure in entry["figures"].items()}


def _weaker_attacks_that_win(figures: dict[str, dict]):
    attack_model = {title: figure for title, figure in figures.items() if title.startswith(GRADIENT_ATTACKS)}
    for title, figure in attack_model.items():
        if "FGSM" in figures and title.startswith("PGD-") and _crosses(figure) and _beats(figures["FGSM"], figure):
            yield f"{_won('FGSM', figures['FGSM'], title, figure)}: one step finds more than many"
    stages = figures.get("AutoAttack", {}).get("stages")
    if stages:
        attack_model["AutoAttack's gradient attacks"] = figures["AutoAttack"] | {"accuracy": stages["FAB-T"]}
        if _beats(
            figures["AutoAttack"] | {"accuracy": stages["Square"]}, attack_model["AutoAttack's gradient attacks"]
        ):
            fooled_at = stages["FAB-T"] - stages["Square"]
            yield f"Square turns {fooled_at:.2f} % of the images, which AutoAttack's gradient attacks left standing"
    if "Square" in figures and attack_model:
        same = {title: figure for title, figure in attack_model.items() if figure["n"] == figures["Square"]["n"]}
        title = min(same, key=lambda name: same[name]["accuracy"], default=None)
        if title and _beats(figures["Square"], same[title]):
            yield f"{_won('Square', figures['Square'], title, attack_model[title])}: what uses no gradient finds more"


def _won(weaker: str, lower: dict, title: str, higher: dict) -> str:
    return f"{weaker} beats {title} ({lower['accuracy']:.2f} < {higher['accuracy']:.2f} %)"


def _crosses(figure: dict) -> bool:
    """Whether the attack's steps can lead from one side of its ball to the other."""
    parameters = figure["parameters"]
    return parameters["steps"] * parameters["step_size"] >= 2 * parameters["epsilon"]


def _beats(weaker: dict, stronger: dict) -> bool:
    """Whether the weaker attack leaves fewer of the same images."""
    lead = stronger["accuracy"] - weaker["accuracy"]
    return weaker["n"] == stronger["n"] and lead > max(TOLERANCE, 100 / stronger["n"])
