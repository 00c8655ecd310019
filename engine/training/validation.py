"""How well a network does, clean and under the PGD-10 by which epochs are compared."""

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
from engine.fast.precision import Arithmetic
from utils.progress import progress


class Validator:
    """Scores one network, again and again as it trains, on the same images from the same starts.

    Args:
        network: What is judged; the attack climbs a float32 view of it.
        batches: Images on the network's device.
        epsilon: Radius of the attack, in [0, 1].
        seed: Of the starts; every call draws them anew, so that calls differ by the network alone.
        processes: Those that share the images; every one draws all starts, so that scores do not depend on how many.
    """

    def __init__(
        self, network: nn.Module, batches: Batches, epsilon: float, seed: int, processes: Processes = SINGLE_PROCESS
    ):
        self.network, self.batches, self.perturb, self.seed = network, batches, pgd10(epsilon), seed
        self.processes = processes
        self.view = FoldedModel(network, Arithmetic(channels_last=batches.device.type == "cpu"))

    def __call__(self, between: Callable[[], None] = lambda: None) -> tuple[Score, Score]:
        """Clean and robust score. What is misclassified clean is not attacked; PGD stops for an image that is fooled.

        So the robust loss is that of the images where the attack stopped. Leaves the network in eval mode. ``between``
        is called after each batch.
        """
        self.network.eval()
        with full_precision():  # whatever a GPU trains in
            return self._scores(between)

    def _scores(self, between: Callable[[], None]) -> tuple[Score, Score]:
        self.view.refresh()
        generator = torch.Generator(self.batches.device).manual_seed(self.seed)
        sums, n = torch.zeros(4, dtype=torch.float64, device=self.batches.device), 0
        for x, y in progress(self.batches, "PGD-10", len(self.batches)):
            own = self.processes.rows(len(y))
            noise = uniform(x, 1, generator)
            if own.start < own.stop:
                sums += self._batch(x[own], y[own], noise[own])
            n += len(y)
            between()
        loss, right, robust_loss, robust_right = self.processes.all_reduce_sum(sums.cpu()).tolist()
        return Score(loss / n, 100 * right / n, n), Score(robust_loss / n, 100 * robust_right / n, n)

    def _batch(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Summed loss and number of correctly classified images, clean and then under attack."""
        with torch.no_grad():
            clean = self.network(x)
        robust, right = clean.clone(), clean.argmax(1) == y
        if right.any():
            _, robust[right] = attack_and_verify(
                self.view, self.network, self.perturb, x[right], y[right], noise[right]
            )
        found = [(F.cross_entropy(z, y, reduction="sum"), (z.argmax(1) == y).sum()) for z in (clean, robust)]
        return torch.stack([value.double() for pair in found for value in pair])
