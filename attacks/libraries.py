"""Attacks of other libraries as stages of an evaluation: AutoAttack, Square and C&W L2."""

import sys

from torch import Tensor

AUTOATTACK_CLASSES = 4  # the DLR loss compares the logits of four classes
STANDARD = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}  # in execution order
TARGET_CLASSES = 9  # of the targeted attacks in the standard version


def autoattack_stages(epsilon: float, seed: int) -> dict:
    """AutoAttack, standard version, L-infinity (Croce & Hein, ICML 2020): one stage per attack, in their order.

    Runs the authors' code: ``pyautoattack`` from PyPI, or their git package ``autoattack`` if only that is installed.
    Each stage attacks the images that are still classified correctly, so all stages together equal one call of the
    authors' code on the same batch.
    """
    return {title: _stage(name, epsilon, seed) for title, name in STANDARD.items()}


def _stage(name: str, epsilon: float, seed: int):
    def perturb(model, x, y, noise):
        try:
            from pyautoattack import AutoAttack
        except ImportError:
            from autoattack import AutoAttack

            options, batch_size = {"verbose": False}, {"bs": len(x)}
        else:
            options, batch_size = {}, {"batch_size": len(x)}
        attack = AutoAttack(model, norm="Linf", eps=epsilon, seed=seed, device=x.device, **options)
        classes = model(x[:1]).shape[1]
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGET_CLASSES, classes - 1)
        attack.attacks_to_run = [name]
        result = attack.run_standard_evaluation(x, y, **batch_size)
        return result[0] if isinstance(result, tuple) else result  # pyautoattack also returns predictions

    return perturb


def carlini_wagner_l2(model, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
    """C&W L2 of advertorch with the constants of the official DGAD script; it has no epsilon and no randomness."""
    import torch.autograd.gradcheck  # noqa: F401  (the attribute torch.autograd.gradcheck is a function)

    gradcheck = sys.modules["torch.autograd.gradcheck"]
    if not hasattr(gradcheck, "zero_gradients"):  # advertorch 0.2.3 imports it for another attack
        gradcheck.zero_gradients = lambda x: x.grad is not None and x.grad.detach_().zero_()
    from advertorch.attacks import CarliniWagnerL2Attack

    constants = {"confidence": 0.01, "max_iterations": 1000, "binary_search_steps": 1, "initial_const": 0.1}
    return CarliniWagnerL2Attack(model, model(x[:1]).shape[1], **constants).perturb(x, y)
