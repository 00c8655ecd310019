"""PeerAiD: Jung et al., "PeerAiD: Improving Adversarial Distillation from a Specialized Peer Tutor", CVPR 2024."""

import torch
import torch.nn.functional as F

from attacks.pgd import gaussian
from methods.losses import Step, kl

_CIFAR = {"temp": 5.0, "gamma2": 0.1, "lambda1": 0.0, "lambda2": 1.0, "lambda3": 1.0}
OFFICIAL = {
    "CIFAR10": _CIFAR,
    "CIFAR100": {**_CIFAR, "gamma2": 1.0},
    "Tiny_Image": {**_CIFAR, "temp": 1.0, "gamma2": 100.0, "lambda1": 0.035, "lambda2": 35.0, "lambda3": 20.0},
}


class PeerAiD:
    """A peer of the student's architecture learns from the student's adversarial images and teaches the student.

    The state is the peer, which the optimizer trains too. ``weights`` are the keyword arguments of
    :func:`peeraid_loss`.
    """

    def __init__(self, **weights):
        self.keywords = weights

    def setup(self, setup):
        """Receive a :class:`~methods.losses.Setup`."""
        self.network = setup.make_network()
        self.peer = setup.forward(self.network)

    def __call__(self, student, attack, x, y, epoch):
        """Forwards of the peer: x'; of the student: x', x', x."""
        self.network.eval()
        with torch.no_grad():
            target = self.peer(x)
        self.network.train()
        x_adv = attack(lambda s: lambda z: kl(target, s(z)), x, noise=gaussian)
        peer_adv = self.peer(x_adv)
        adv, again, clean = student(x_adv), student(x_adv), student(x)
        return Step(peeraid_loss(peer_adv, adv, again, clean, y, **self.keywords), clean, adv)

    def parameters(self):
        """Return the parameters that the optimizer trains beside the student's."""
        return self.network.parameters()

    def state_dict(self):
        """Return the state to resume from."""
        return {"peer": self.network.state_dict()}

    def load_state_dict(self, state):
        """Load a state of :meth:`state_dict`; raises RuntimeError for another network."""
        self.network.load_state_dict(state["peer"])


def peeraid_loss(
    peer_adv, s_adv, s_adv_again, s_clean, y, *, temp, gamma2, lambda1, lambda2, lambda3, temp2=1.0, gamma1=1.0
):
    """``gamma1 CE(p', y) + gamma2 K(s1' || p'; T2)`` of the peer, plus the student's loss.

    The latter is ``lambda1 CE(s2', y) + lambda2 K(p' || s2'; T) + lambda3 K(s || s2'; T)``. K is T^2 times the mean KL
    over images and classes, s1' and s2' are two forwards of x', T = ``temp``, T2 = ``temp2``. Only the p' of lambda2's
    term has no gradient. Logits (B, C), labels (B,).
    """

    def k(target, logits, temperature):
        return temperature**2 * kl(target, logits, temperature).mean() / logits.shape[1]

    peer = gamma1 * F.cross_entropy(peer_adv, y) + gamma2 * k(s_adv, peer_adv, temp2)
    distilled = lambda2 * k(peer_adv.detach(), s_adv_again, temp) + lambda3 * k(s_clean, s_adv_again, temp)
    return peer + lambda1 * F.cross_entropy(s_adv_again, y) + distilled
