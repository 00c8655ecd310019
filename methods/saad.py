"""SAAD: Lee & Chung, "Sample-wise Adaptive Weighting for Transfer Consistency in Adversarial Distillation".

TMLR 2026.
"""

import torch

from attacks.pgd import gaussian
from methods.igdm import mirrored, ramped
from methods.losses import Step, as_probabilities, kl
from utils.log import logger

SCALE = 5.0  # of the weights (official)


class SAAD:
    """IGDM on images weighted by the teacher's uncertainty on x', attacked with a linear estimate of the teacher.

    Its state is the number of batches of the epoch whose weights are all 0.
    """

    def __init__(self, *, igdm, beta, gamma, epochs):
        self.keywords = {"igdm": igdm, "beta": beta, "gamma": gamma, "epochs": epochs}
        self.unweighted = torch.zeros((), dtype=torch.int64)

    def __call__(self, student, teacher, attack, x, y, epoch):
        """Forwards of the student: x', x - d, x."""
        beta, gamma = self.keywords["beta"], self.keywords["gamma"]
        t_clean, gradient = label_gradient(teacher, x, y)
        x_adv = attack(lambda s, t: lambda z: kl(estimate(t_clean, gradient, z - x, y), s(z)), x, noise=gaussian)
        x_minus = mirrored(x, x_adv)
        with torch.no_grad():
            t_adv, t_minus = teacher(x_adv), teacher(x_minus)
        adv, s_minus, clean = student(x_adv), student(x_minus), student(x)
        alpha = ramped(self.keywords["igdm"], epoch, self.keywords["epochs"])
        loss = saad_loss(clean, adv, s_minus, t_clean, t_adv, t_minus, alpha=alpha, beta=beta, gamma=gamma)
        self.unweighted = self.unweighted.to(x.device) + (weights(t_adv, gamma).max() == 0)
        return Step(loss, clean, adv, t_clean, t_adv)

    def after_epoch(self, epoch):
        """Log the batches of an epoch, from 0, whose weights were all 0."""
        if count := int(self.unweighted):
            message = "SAAD: epoch %d had %d batches or parts of weight 0 (one image, or a teacher equally certain); "
            logger.warning(f"{message}without --saad_beta they train nothing", epoch + 1, count)
        self.unweighted = torch.zeros_like(self.unweighted)

    def state_dict(self):
        """Return the state to resume from."""
        return {"unweighted": self.unweighted}

    def load_state_dict(self, state):
        """Load a state of :meth:`state_dict`."""
        self.unweighted = state["unweighted"]


def saad_loss(clean, adv, s_minus, t_clean, t_adv, t_minus, *, alpha, beta, gamma):
    """``mean { w [KL(t' || s') + alpha KL(t' - t- || s' - s-)] + beta (1 - v) KL(t || s) }``.

    w = :func:`weights`, v is w scaled to [0, 1] over the batch, alpha is already ramped. Logits (B, C) of student and
    teacher on x, x' and ``x - d``; gradient into the student's.
    """
    w = weights(t_adv, gamma)
    v = (w - w.min()) / (w.max() - w.min() + 1e-8)
    robust = kl(t_adv, adv) + alpha * kl(t_adv - t_minus, adv - s_minus)
    return (w * robust + beta * (1 - v) * kl(t_clean, clean)).mean()


def weights(t_adv, gamma):
    """``5 (H - min H)`` per image, (B,), without gradient; H is the Renyi entropy of order ``gamma`` of softmax(t').

    The most certain image of a batch has weight 0, so a batch of one image has no other. Logits (B, C).
    """
    p = t_adv.detach().softmax(1)
    entropy = -(p * (p + 1e-12).log()).sum(1) if gamma == 1 else ((p**gamma).sum(1) + 1e-12).log() / (1 - gamma)
    return SCALE * (entropy - entropy.min())


def label_gradient(teacher, x, y):
    """Return the teacher's logits (B, C) on images x, and the gradient of the label's logit, like x.

    Of mixed labels y (B, C) it is the gradient of the mean logit.
    """
    images = x.detach().requires_grad_()
    logits = teacher(images)
    (gradient,) = torch.autograd.grad((logits * as_probabilities(y, logits)).sum(), images)
    return logits.detach(), gradient


def estimate(logits, gradient, delta, y):
    """Return logits (B, C) whose label's logit is moved by the inner product of ``gradient`` and ``delta``."""
    return logits + as_probabilities(y, logits) * (gradient * delta).flatten(1).sum(1, keepdim=True)
