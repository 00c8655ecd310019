"""Validation after an epoch: clean accuracy, and accuracy under the PGD-10 that chooses the best checkpoint."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import pgd10
from data.loader import Batches
from engine.accuracy import Score, attack_and_verify
from engine.device import full_precision
from engine.distributed import SINGLE_PROCESS, Processes
from engine.fast.frozen import FoldedModel
from engine.fast.precision import PLAIN, Arithmetic
from utils.progress import progress_bar


class Validator:
    """Evaluates one network repeatedly as it trains, on the same images and from the same random starts.

    PGD-10 attacks a folded copy of the network in the arithmetic of training. The float32 network classifies every
    attacked image; one that fools only the copy is attacked again in float32. So no image counts as misclassified
    unless the float32 network misclassifies it.

    Args:
        network: Network to validate, float32.
        batches: Validation images, on the network's device.
        epsilon: Radius of the attack, in [0, 1].
        seed: Seed of the random starts. Every call draws the same starts, so that epochs differ only in the network.
        processes: Ranks that share the images; each draws all starts, so results do not depend on their number.
        arithmetic: How the attacked copy computes. It is never compiled: PGD stops early for fooled images, so batch
            sizes vary, and compiled code would serve only one of them.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        epsilon: float,
        seed: int,
        processes: Processes = SINGLE_PROCESS,
        arithmetic: Arithmetic = PLAIN,
    ):
        self.network, self.batches, self.perturb, self.seed = network, batches, pgd10(epsilon), seed
        self.processes = processes
        self.attack_model = FoldedModel(network, arithmetic._replace(compiled=False))

    def __call__(self, after_batch: Callable[[], None] = lambda: None) -> tuple[Score, Score]:
        """Return the clean and the robust score; call ``after_batch`` after each batch; leave the network in eval mode.

        Images that are misclassified without an attack are not attacked, and PGD stops for an image once it fools the
        network. The robust loss is that of the images at which the attack stopped.
        """
        self.network.eval()
        self.attack_model.refresh()
        generator = torch.Generator(self.batches.device).manual_seed(self.seed)
        sums, n = torch.zeros(4, dtype=torch.float64, device=self.batches.device), 0
        for x, y in progress_bar(len(self.batches), "PGD-10", batches=self.batches):
            rows = self.processes.rows(len(y))
            noise = uniform(x, 1, generator)
            if rows.start < rows.stop:
                with full_precision():  # float32 even if training uses TF32
                    sums += self._validate_batch(x[rows], y[rows], noise[rows])
            n += len(y)
            after_batch()
        loss, correct, robust_loss, robust = self.processes.all_reduce_sum(sums.cpu()).tolist()
        return Score(loss / n, 100 * correct / n, n), Score(robust_loss / n, 100 * robust / n, n)

    def _validate_batch(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Return the sum of the losses and the number of correct images, first clean, then under attack: (4,)."""
        with torch.no_grad():
            clean_logits = self.network(x)
        adv_logits, correct = clean_logits.clone(), clean_logits.argmax(1) == y
        if correct.any():
            attacked = x[correct], y[correct], noise[correct]
            _, adv_logits[correct] = attack_and_verify(self.attack_model, self.network, self.perturb, *attacked)
        sums = []
        for logits in (clean_logits, adv_logits):
            sums += [F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()]
        return torch.stack([value.double() for value in sums])
