"""The named attacks of an evaluation, and the protocols that consist of them."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from attacks.libraries import STANDARD, autoattack_stages, carlini_wagner_l2
from attacks.objectives import cross_entropy, margin
from attacks.pgd import pgd, pgd_until_fooled

# Network in eval mode, images (B, C, H, W) in [0, 1], labels (B,), noise uniform in [-1, 1] of the images' shape
# -> adversarial images. The caller draws the noise, so the start of an image does not depend on other attacks.
Perturb = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

TRADES_STEP = 0.003  # step size in the evaluations of RSLAD and TRADES, for any epsilon
BLACK_BOX_QUERIES = 5000  # of Square (Andriushchenko et al., ECCV 2020), which uses no gradient


class Attack(NamedTuple):
    """One attack of a protocol: title of its column, parameters to report, and its stages.

    ``stages`` run in order, each on the images that the network still classifies correctly: the restarts of PGD, the
    four attacks of AutoAttack. ``every_image`` also attacks images that are misclassified clean and counts only the
    final prediction, as the official scripts do. ``bounded`` is False if the attack may leave the epsilon ball.
    """

    title: str
    parameters: dict
    stages: dict[str, Perturb]
    every_image: bool = False
    bounded: bool = True

    @property
    def settings(self) -> str:
        """The parameters as text."""
        return ", ".join(_TEXT[key](value) for key, value in self.parameters.items()) or "no attack"


class Setting(NamedTuple):
    """Parameters of a protocol.

    ``epsilon`` is in [0, 1]; ``steps`` replaces the protocol's number of PGD steps; ``judge`` is "every" if an image
    counts as fooled when any step fools the network, "last" if only the last step counts; ``surrogate`` is the network
    for transfer attacks, ``surrogate_name`` its name in reports.
    """

    epsilon: float
    seed: int
    steps: int | None = None
    restarts: int = 1
    judge: str = "every"
    surrogate: nn.Module | None = None
    surrogate_name: str = ""


def linf(objective, epsilon: float, step_size: float, steps: int, *, until_fooled: bool = False) -> Perturb:
    """PGD on ``objective(logits, y) -> (B,)`` from a uniform start in the ball, clamped to [0, 1].

    ``until_fooled`` stops for each image at its first success; otherwise all steps are taken.
    """
    ball = {"epsilon": epsilon, "step_size": step_size, "steps": steps}

    def perturb(model, x, y, noise):
        start = (x + epsilon * noise).clamp(0, 1)
        if until_fooled:
            return pgd_until_fooled(model, objective, x, y, start, **ball)
        return pgd(lambda z: objective(model(z), y), x, start, **ball)

    return perturb


def pgd10(epsilon: float) -> Perturb:
    """PGD-10 of the validation: cross entropy, steps of epsilon / 4, uniform start, until fooled."""
    return linf(cross_entropy, epsilon, epsilon / 4, 10, until_fooled=True)


def pgd20(setting: Setting) -> Attack:
    """PGD-20 of the papers: cross entropy, steps of epsilon / 4 (2/255 at 8/255), uniform start."""
    return _pgd_attack("PGD", cross_entropy, setting, setting.epsilon / 4, setting.steps or 20)


def paper_protocol(setting: Setting) -> dict[str, Attack]:
    """The attacks that the papers report; the step size is 2/255 at epsilon 8/255, 0.003 for PGD-TRADES."""
    return {
        **_deterministic(setting),
        "pgd": pgd20(setting),
        "pgd_trades": _pgd_attack("PGD-TRADES", cross_entropy, setting, TRADES_STEP, 20),
        "cw": _pgd_attack("C&W-inf", margin, setting, setting.epsilon / 4, 30),
        "aa": _autoattack(setting),
    }


def official_protocol(setting: Setting) -> dict[str, Attack]:
    """The attacks of the official DGAD evaluation script; only the last step counts (its C&W is L2 and unbounded)."""
    setting = setting._replace(judge="last")
    cw = {"library": "advertorch", "iterations": 1000, "initial_const": 0.1, "confidence": 0.01, "norm": "L2"}
    return {
        **_deterministic(setting),
        "pgd": _pgd_attack("PGD", cross_entropy, setting, setting.epsilon / 4, setting.steps or 10),
        "cw": Attack("C&W-L2", cw, {"": carlini_wagner_l2}, every_image=True, bounded=False),
        "aa": _autoattack(setting),
    }


def blackbox_protocol(setting: Setting) -> dict[str, Attack]:
    """Attacks without gradients of the network: transferred from a surrogate, and by queries of its scores."""
    epsilon = setting.epsilon

    def transferred(title: str, objective, steps: int) -> Attack:
        perturb = linf(objective, epsilon, epsilon / 4, steps)
        parameters = {"surrogate": setting.surrogate_name, **_parameters(setting, epsilon / 4, steps)}
        stages = _restarts(lambda model, *batch: perturb(setting.surrogate, *batch), setting)
        return Attack(f"transfer {title}-{steps}", parameters, stages, every_image=setting.judge == "last")

    square = {"library": "AutoAttack", "epsilon": epsilon, "queries": BLACK_BOX_QUERIES}
    return {
        "clean": Attack("Clean", {}, {}),
        "transfer_pgd": transferred("PGD", cross_entropy, setting.steps or 20),
        "transfer_cw": transferred("C&W-inf", margin, 30),
        "square": Attack("Square", square, {"Square": autoattack_stages(epsilon, setting.seed)["Square"]}),
    }


PROTOCOLS = {"paper": paper_protocol, "official": official_protocol, "blackbox": blackbox_protocol}


def _deterministic(setting: Setting) -> dict[str, Attack]:
    """No attack, and one step of length epsilon from the clean image (FGSM; Goodfellow et al., ICLR 2015)."""
    parameters = {"epsilon": setting.epsilon, "steps": 1, "start": "none"}
    step = linf(cross_entropy, setting.epsilon, setting.epsilon, 1)
    stages = {"": lambda model, x, y, noise: step(model, x, y, 0 * noise)}
    return {"clean": Attack("Clean", {}, {}), "fgsm": Attack("FGSM", parameters, stages, setting.judge == "last")}


def _pgd_attack(title: str, objective, setting: Setting, step_size: float, steps: int) -> Attack:
    until_fooled = setting.judge == "every"
    perturb = linf(objective, setting.epsilon, step_size, steps, until_fooled=until_fooled)
    parameters = _parameters(setting, step_size, steps)
    parameters["judged"] = "at every step" if until_fooled else "after the last step"
    return Attack(f"{title}-{steps}", parameters, _restarts(perturb, setting), every_image=not until_fooled)


def _autoattack(setting: Setting) -> Attack:
    parameters = {"library": "AutoAttack", "epsilon": setting.epsilon, "version": "standard"}
    return Attack("AutoAttack", parameters, autoattack_stages(setting.epsilon, setting.seed))


def _restarts(perturb: Perturb, setting: Setting) -> dict[str, Perturb]:
    return {f"start {k + 1}": perturb for k in range(setting.restarts)}


def _parameters(setting: Setting, step_size: float, steps: int) -> dict:
    sizes = {"epsilon": setting.epsilon, "steps": steps, "step_size": step_size}
    return sizes | {"start": "uniform", "restarts": setting.restarts}


_TEXT = {
    "epsilon": lambda value: f"epsilon {255 * value:.4g}/255",
    "steps": lambda value: "1 step" if value == 1 else f"{value} steps",
    "step_size": lambda value: f"step size {255 * value:.4g}/255",
    "start": lambda value: "no random start" if value == "none" else f"{value} start",
    "restarts": lambda value: "1 restart" if value == 1 else f"{value} restarts",
    "judged": lambda value: f"success counted {value}",
    "library": str,
    "version": lambda value: f"{value}: {', '.join(STANDARD)}",
    "iterations": lambda value: f"{value} iterations",
    "initial_const": lambda value: f"constant {value}",
    "confidence": lambda value: f"confidence {value}",
    "norm": lambda value: f"{value}, unbounded",
    "queries": lambda value: f"{value} queries",
    "surrogate": lambda value: f"transferred from {value}",
}
