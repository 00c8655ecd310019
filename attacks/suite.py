"""The named attacks of an evaluation, and the protocols that they make up."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from attacks.libraries import autoattack_stages, carlini_wagner_l2, square_stage
from attacks.objectives import cross_entropy, margin
from attacks.pgd import pgd, pgd_until_fooled

# Network in eval mode, images (B, C, H, W) in [0, 1], labels (B,), noise uniform in [-1, 1] of the images' shape
# -> adversarial images. The caller draws, so that the start of an image depends on nothing that was attacked before.
Perturb = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

TRADES_STEP = 0.003  # of RSLAD's and TRADES' evaluations, whatever epsilon
BLACK_BOX_QUERIES = 5000


class Attack(NamedTuple):
    """One attack of a protocol: its column, what is printed and kept beside its number, and what it does to images.

    ``stages`` run in turn, each on the images that the network still classifies correctly: the restarts of PGD, the
    four attacks of AutoAttack. ``every_image`` attacks the images too that are misclassified before any attack, and
    judges by the result alone, as the official scripts do. An attack that is not ``bounded`` leaves the ball.
    """

    title: str
    parameters: dict
    stages: dict[str, Perturb]
    every_image: bool = False
    bounded: bool = True

    @property
    def settings(self) -> str:
        """The parameters in words."""
        return ", ".join(_WORDS[key](value) for key, value in self.parameters.items()) or "no attack"


class Setting(NamedTuple):
    """What a protocol is asked for: ``epsilon`` in [0, 1]; ``steps`` of PGD where not the protocol's own; when an image
    counts as fooled (a key of LINF); a ``surrogate`` network for transfer, and what to call it.
    """

    epsilon: float
    seed: int
    steps: int | None = None
    restarts: int = 1
    judge: str = "every"
    surrogate: nn.Module | None = None
    surrogate_name: str = ""


def fgsm(epsilon: float) -> Perturb:
    """One step of length epsilon from the image itself (Goodfellow et al., ICLR 2015)."""

    def perturb(model, x, y, noise):
        return pgd(lambda z: cross_entropy(model(z), y), x, x, epsilon=epsilon, step_size=epsilon, steps=1)

    return perturb


def linf(objective, epsilon: float, step_size: float, steps: int) -> Perturb:
    """PGD on ``objective(logits, y) -> (B,)`` from a uniform start in the ball, clamped to [0, 1]; every step taken."""

    def perturb(model, x, y, noise):
        start = _start(x, noise, epsilon)
        return pgd(lambda z: objective(model(z), y), x, start, epsilon=epsilon, step_size=step_size, steps=steps)

    return perturb


def linf_until_fooled(objective, epsilon: float, step_size: float, steps: int) -> Perturb:
    """The same attack as :func:`linf`, judged at every step: it ends for each image with its first success."""

    def perturb(model, x, y, noise):
        start = _start(x, noise, epsilon)
        return pgd_until_fooled(model, objective, x, y, start, epsilon=epsilon, step_size=step_size, steps=steps)

    return perturb


# When an image counts as fooled: once the network misclassifies it at any step, or where it does so after the last one.
LINF = {"every": linf_until_fooled, "last": linf}
_JUDGED = {"every": "at every step", "last": "after the last step"}


def _start(x: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    return (x + epsilon * noise).clamp(0, 1)


def pgd10(epsilon: float) -> Perturb:
    """The PGD-10 by which epochs are compared: cross entropy, steps of epsilon / 4, uniform start, until fooled."""
    return linf_until_fooled(cross_entropy, epsilon, epsilon / 4, 10)


def pgd20(setting: Setting) -> Attack:
    """PGD-20 of the papers: cross entropy, steps of epsilon / 4 (2/255 at 8/255), uniform start."""
    return _pgd_attack("PGD", cross_entropy, setting, setting.epsilon / 4, setting.steps or 20)


def paper_protocol(setting: Setting) -> dict[str, Attack]:
    """The attacks that the papers report; steps are 2/255 long at epsilon 8/255, PGD-TRADES' 0.003."""
    return {
        **_deterministic(setting),
        "pgd": pgd20(setting),
        "pgd_trades": _pgd_attack("PGD-TRADES", cross_entropy, setting, TRADES_STEP, 20),
        "cw": _pgd_attack("C&W-inf", margin, setting, setting.epsilon / 4, 30),
        "aa": _autoattack(setting),
    }


def official_protocol(setting: Setting) -> dict[str, Attack]:
    """The attacks of the official DGAD evaluation script, judged as there (its C&W is L2 and unbounded)."""
    setting = setting._replace(judge="last")
    cw = {"library": "advertorch", "iterations": 1000, "initial_const": 0.1, "confidence": 0.01, "norm": "L2"}
    return {
        **_deterministic(setting),
        "pgd": _pgd_attack("PGD", cross_entropy, setting, setting.epsilon / 4, setting.steps or 10),
        "cw": Attack("C&W-L2", cw, {"": carlini_wagner_l2}, every_image=True, bounded=False),
        "aa": _autoattack(setting),
    }


def blackbox_protocol(setting: Setting) -> dict[str, Attack]:
    """What is found without the network's gradients: on a surrogate and carried over, and by queries of its scores."""
    epsilon = setting.epsilon

    def transferred(title: str, objective, steps: int) -> Attack:
        perturb = linf(objective, epsilon, epsilon / 4, steps)
        parameters = {"surrogate": setting.surrogate_name, **_parameters(setting, epsilon / 4, steps)}
        stages = _repeated(_from(setting.surrogate, perturb), setting.restarts)
        return Attack(f"transfer {title}-{steps}", parameters, stages, every_image=setting.judge == "last")

    square = {"library": "AutoAttack", "epsilon": epsilon, "queries": BLACK_BOX_QUERIES}
    return {
        "clean": Attack("Clean", {}, {}),
        "transfer_pgd": transferred("PGD", cross_entropy, setting.steps or 20),
        "transfer_cw": transferred("C&W-inf", margin, 30),
        "square": Attack("Square", square, square_stage(epsilon, setting.seed)),
    }


PROTOCOLS = {"paper": paper_protocol, "official": official_protocol, "blackbox": blackbox_protocol}


def _deterministic(setting: Setting) -> dict[str, Attack]:
    parameters = {"epsilon": setting.epsilon, "steps": 1, "start": "none"}
    step = Attack("FGSM", parameters, {"": fgsm(setting.epsilon)}, every_image=setting.judge == "last")
    return {"clean": Attack("Clean", {}, {}), "fgsm": step}


def _pgd_attack(title: str, objective, setting: Setting, step_size: float, steps: int) -> Attack:
    perturb = LINF[setting.judge](objective, setting.epsilon, step_size, steps)
    parameters = _parameters(setting, step_size, steps) | {"judged": _JUDGED[setting.judge]}
    stages = _repeated(perturb, setting.restarts)
    return Attack(f"{title}-{steps}", parameters, stages, every_image=setting.judge == "last")


def _autoattack(setting: Setting) -> Attack:
    parameters = {"library": "AutoAttack", "epsilon": setting.epsilon, "version": "standard"}
    return Attack("AutoAttack", parameters, autoattack_stages(setting.epsilon, setting.seed))


def _from(surrogate: nn.Module, perturb: Perturb) -> Perturb:
    return lambda model, x, y, noise: perturb(surrogate, x, y, noise)


def _repeated(perturb: Perturb, restarts: int) -> dict[str, Perturb]:
    return {f"start {k + 1}": perturb for k in range(restarts)}


def _parameters(setting: Setting, step_size: float, steps: int) -> dict:
    sizes = {"epsilon": setting.epsilon, "steps": steps, "step_size": step_size}
    return sizes | {"start": "uniform", "restarts": setting.restarts}


def _of_255(value: float) -> str:
    return f"{255 * value:.4g}/255"


_WORDS = {
    "epsilon": lambda value: f"epsilon {_of_255(value)}",
    "steps": lambda value: "1 step" if value == 1 else f"{value} steps",
    "step_size": lambda value: f"step {_of_255(value)}",
    "start": lambda value: "no random start" if value == "none" else f"{value} start",
    "restarts": lambda value: "1 start" if value == 1 else f"{value} starts",
    "judged": lambda value: f"judged {value}",
    "library": str,
    "version": lambda value: f"{value}: APGD-CE, APGD-T, FAB-T, Square",
    "iterations": lambda value: f"{value} iterations",
    "initial_const": lambda value: f"constant {value}",
    "confidence": lambda value: f"confidence {value}",
    "norm": lambda value: f"{value}, no bound",
    "queries": lambda value: f"{value} queries",
    "surrogate": lambda value: f"from {value}",
}
