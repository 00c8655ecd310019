"""The named attacks of an evaluation: our own loop, and the libraries' AutoAttack and C&W L2."""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.objectives import cross_entropy, margin
from attacks.pgd import pgd, uniform

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network in eval mode, images, labels -> adversarial images


class Attack(NamedTuple):
    """One attack of a protocol: its column, the settings printed beside its number, and what it does to images."""

    title: str
    settings: str
    perturb: Perturb | None  # None leaves the images clean


def fgsm(epsilon: float) -> Perturb:
    """One step of length epsilon from the image itself (Goodfellow et al., ICLR 2015)."""

    def perturb(model, x, y):
        return pgd(lambda z: cross_entropy(model(z), y), x, x, epsilon=epsilon, step_size=epsilon, steps=1)

    return perturb


def linf(objective, epsilon: float, step_size: float, steps: int, generator: torch.Generator) -> Perturb:
    """PGD on ``objective(logits, y) -> (B,)`` from a uniform start in the ball, clamped to [0, 1]."""

    def perturb(model, x, y):
        start = (x + uniform(x, epsilon, generator)).clamp(0, 1)
        return pgd(lambda z: objective(model(z), y), x, start, epsilon=epsilon, step_size=step_size, steps=steps)

    return perturb


def autoattack(epsilon: float, batch_size: int, seed: int) -> Perturb:
    """AutoAttack, standard version, L-infinity (Croce & Hein, ICML 2020), by its authors' own code.

    That is ``pyautoattack`` on PyPI, or their git package ``autoattack`` where only that is installed.
    """

    def perturb(model, x, y):
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        settings = {"norm": "Linf", "eps": epsilon, "seed": seed, "device": x.device}
        try:
            from pyautoattack import AutoAttack
        except ImportError:
            from autoattack import AutoAttack

            attack = AutoAttack(model, **settings, verbose=False)
            run = partial(attack.run_standard_evaluation, bs=batch_size)
        else:
            attack = AutoAttack(model, **settings)
            run = partial(attack.run_standard_evaluation, batch_size=batch_size)
        # The standard version aims at 9 other classes; a data set of fewer has fewer to aim at.
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        found = run(x, y)
        return found[0] if isinstance(found, tuple) else found  # pyautoattack returns its predictions too

    return perturb


def carlini_wagner_l2() -> Perturb:
    """C&W L2 of advertorch with the constants of the official DGAD script; it knows no epsilon."""

    def perturb(model, x, y):
        attacks = _advertorch_attacks()
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        attack = attacks.CarliniWagnerL2Attack(
            model, classes, confidence=0.01, max_iterations=1000, binary_search_steps=1, initial_const=0.1
        )
        return attack.perturb(x, y)

    return perturb


def _advertorch_attacks():
    """advertorch 0.2.3 imports a function that PyTorch has dropped; put that one back first."""
    import torch.autograd.gradcheck  # noqa: F401  (the attribute of that name is a function that hides the module)

    module = sys.modules["torch.autograd.gradcheck"]
    if not hasattr(module, "zero_gradients"):
        module.zero_gradients = _zero_gradients
    import advertorch.attacks

    return advertorch.attacks


def _zero_gradients(x: Tensor) -> None:
    if x.grad is not None:
        x.grad.detach_().zero_()


def pgd10(epsilon: float, generator: torch.Generator) -> Attack:
    """The PGD-10 by which every epoch is judged: cross entropy, steps of epsilon / 4, uniform start."""
    return _pgd("PGD", cross_entropy, epsilon, epsilon / 4, 10, generator)


def paper_protocol(epsilon: float, *, steps: int | None, batch_size: int, seed: int, device) -> dict[str, Attack]:
    """The attacks that the papers report; steps are 2/255 long at epsilon 8/255, PGD-TRADES' 0.003."""

    def starts(stream: int) -> torch.Generator:  # its own for each attack: a figure depends on no other attack
        return torch.Generator(device).manual_seed(8 * seed + stream)

    return {
        **_without_chance(epsilon),
        "pgd": _pgd("PGD", cross_entropy, epsilon, epsilon / 4, steps or 20, starts(0)),
        "pgd_trades": _pgd("PGD-TRADES", cross_entropy, epsilon, 0.003, 20, starts(1)),
        "cw": _pgd("C&W-inf", margin, epsilon, epsilon / 4, 30, starts(2)),
        "aa": _autoattack(epsilon, batch_size, seed),
    }


def official_protocol(epsilon: float, *, steps: int | None, batch_size: int, seed: int, device) -> dict[str, Attack]:
    """The attacks of the official DGAD evaluation script (its C&W is L2 and unbounded)."""
    generator = torch.Generator(device).manual_seed(8 * seed)
    return {
        **_without_chance(epsilon),
        "pgd": _pgd("PGD", cross_entropy, epsilon, epsilon / 4, steps or 10, generator),
        "cw": Attack("C&W-L2", "advertorch, 1000 iterations, constant 0.1, no bound", carlini_wagner_l2()),
        "aa": _autoattack(epsilon, batch_size, seed),
    }


PROTOCOLS = {"paper": paper_protocol, "official": official_protocol}


def _without_chance(epsilon) -> dict[str, Attack]:
    settings = f"epsilon {_of_255(epsilon)}, one step, no random start"
    return {"clean": Attack("Clean", "no attack", None), "fgsm": Attack("FGSM", settings, fgsm(epsilon))}


def _pgd(title, objective, epsilon, step_size, steps, generator) -> Attack:
    settings = f"epsilon {_of_255(epsilon)}, {steps} steps of {_of_255(step_size)}, uniform start, 1 restart"
    return Attack(f"{title}-{steps}", settings, linf(objective, epsilon, step_size, steps, generator))


def _autoattack(epsilon, batch_size, seed) -> Attack:
    settings = f"epsilon {_of_255(epsilon)}, standard: APGD-CE, APGD-T, FAB-T, Square"
    return Attack("AutoAttack", settings, autoattack(epsilon, batch_size, seed))


def _of_255(value: float) -> str:
    return f"{255 * value:.4g}/255"
