"""MTARD and B-MTARD, two teachers whose weights (and temperatures) are balanced while the student trains.

Zhao et al., "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation", ECCV 2022, and "Mitigating
Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation", TPAMI 2024.
"""

import torch
import torch.nn.functional as F

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian
from methods.losses import Step

KL_WEIGHT = 0.1  # official, as RSLAD's: 1 / classes on CIFAR-10, ten times that on CIFAR-100
WEIGHT_RATE, TEMP_RATE = 0.025, 0.001  # official; both drop at the milestones
TEMPERATURES = 1.0, 10.0  # lowest and highest (official)


class MTARD:
    """The robust teacher on x' and the standard one on x; with ``temp_rate`` B-MTARD.

    The state is scalar tensors: the weight of the clean term, both terms of the first batch, both temperatures.
    """

    def __init__(self, *, kl_weight, temp_rate=0.0, milestones=()):
        self.keywords = {"kl_weight": kl_weight, "temp_rate": temp_rate}
        self.milestones = milestones
        start = {"weight_nat": 0.5, "first_adv": torch.nan, "first_nat": torch.nan, "temp_adv": 1.0, "temp_nat": 1.0}
        self.state = {key: torch.tensor(value, dtype=torch.float64) for key, value in start.items()}
        self.computed = []  # states, one for each part of a batch

    def __call__(self, student, teacher, std_teacher, attack, x, y, epoch):
        """Forwards of the student: x', x."""
        kl_weight, temp_rate = self.keywords["kl_weight"], self.keywords["temp_rate"]
        drop = 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        self.state = {key: value.to(x.device) for key, value in self.state.items()}
        x_adv = attack(lambda s, t, u: lambda z: cross_entropy(s(z), y), x, noise=gaussian)
        adv, clean = student(x_adv), student(x)
        with torch.no_grad():
            t_adv, t_nat = teacher(x_adv), std_teacher(x)
        soft_adv = t_adv / self.state["temp_adv"].to(x.dtype)
        soft_nat = t_nat / self.state["temp_nat"].to(x.dtype)
        loss_adv, loss_nat = kl_weight * divergence(soft_adv, adv), kl_weight * divergence(soft_nat, clean)
        state = rebalance(self.state, loss_adv.detach(), loss_nat.detach(), rate=drop * WEIGHT_RATE)
        w = state["weight_nat"].to(x.dtype)
        loss = mtard_loss(clean, adv, soft_nat, soft_adv, weight_adv=1 - w, weight_nat=w, kl_weight=kl_weight)
        self.computed.append(adjust_temperatures(state, soft_adv, soft_nat, rate=drop * temp_rate))
        return Step(loss, clean, adv, t_adv=t_adv)

    def after_step(self):
        """Use the mean of the states that the step computed."""
        self.state = {key: torch.stack([state[key] for state in self.computed]).mean(0) for key in self.state}
        self.computed = []

    def state_dict(self):
        """Return the state to resume from."""
        return dict(self.state)

    def load_state_dict(self, state):
        """Load a state of :meth:`state_dict`."""
        self.state, self.computed = {key: state[key] for key in self.state}, []


def mtard_loss(clean, adv, t_nat, t_adv, *, weight_adv, weight_nat, kl_weight):
    """``w [weight_adv m(t_adv; s') + weight_nat m(t_nat; s)]``, w = ``kl_weight``, m = :func:`divergence`.

    Logits (B, C) of the student, of the standard teacher on x and of the robust one on x', both divided by their
    temperatures. ``kl_weight`` is the weight of a mean over images, as in RSLAD's loss: officially 0.1.
    """
    return kl_weight * (weight_adv * divergence(t_adv, adv) + weight_nat * divergence(t_nat, clean))


def divergence(target, logits):
    """``mean [q log(q + 1e-5) - q log softmax(s)]``, q = softmax(t); logits (B, C).

    The constant 1e-5 stays, unlike in RSLAD's loss, because the weights depend on the value.
    """
    q = target.softmax(1)
    return (q * ((q + 1e-5).log() - F.log_softmax(logits, 1))).sum(1).mean()


def rebalance(state, loss_adv, loss_nat, *, rate):
    """Return the state after a batch with these terms, before its loss: more weight for what decreased less.

    ``w <- w - rate (w - r_nat / (r_adv + r_nat))`` is the weight of the clean term; r is a term relative to that of the
    first batch.
    """
    loss_adv, loss_nat, weight = loss_adv.double(), loss_nat.double(), state["weight_nat"]
    first_adv = torch.where(state["first_adv"].isnan(), loss_adv, state["first_adv"])
    first_nat = torch.where(state["first_nat"].isnan(), loss_nat, state["first_nat"])
    r_adv, r_nat = loss_adv / first_adv, loss_nat / first_nat
    weight = weight - rate * (weight - r_nat / (r_adv + r_nat))
    return {**state, "weight_nat": weight, "first_adv": first_adv, "first_nat": first_nat}


def adjust_temperatures(state, t_adv, t_nat, *, rate):
    """Return the state after the step: the teacher with higher entropy is sharpened by ``rate``, the other softened.

    Logits (B, C), divided by their temperatures. The entropies are exact. With the 1e-5 of the official code, the
    entropy of a confident teacher is negative, and both temperatures rise.
    """
    difference = (entropy(t_adv) - entropy(t_nat)).sign().double()
    temp_adv, temp_nat = state["temp_adv"] - rate * difference, state["temp_nat"] + rate * difference
    return {**state, "temp_adv": temp_adv.clamp(*TEMPERATURES), "temp_nat": temp_nat.clamp(*TEMPERATURES)}


def entropy(logits):
    """Mean entropy of softmax(logits) in nats; logits (B, C)."""
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1).mean()
