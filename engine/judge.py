"""How well a network does, clean and under the PGD-10 by which epochs are compared."""

import torch
import torch.nn.functional as F
from torch import nn

from attacks.pgd import uniform
from attacks.suite import pgd10
from data.loader import Batches
from engine.evaluate import Score, strongest
from engine.precision import Arithmetic
from engine.views import View
from utils.log import progress


class Judge:
    """Scores one network, again and again as it trains, on the same images from the same starts.

    Args:
        network: What is judged; the attack climbs a float32 view of it.
        batches: Images on the network's device.
        epsilon: Radius of the attack, in [0, 1].
        seed: Of the starts; every call draws them anew, so that calls differ by the network alone.
    """

    def __init__(self, network: nn.Module, batches: Batches, epsilon: float, seed: int):
        self.network, self.batches, self.perturb, self.seed = network, batches, pgd10(epsilon), seed
        self.view = View(network, Arithmetic(channels_last=batches.device.type == "cpu"))

    def __call__(self) -> tuple[Score, Score]:
        """Clean and robust score. What is misread clean is not attacked, and PGD stops for an image that is fooled.

        So the robust loss is that of the images where the attack stopped. Leaves the network in eval mode.
        """
        self.network.eval()
        self.view.refresh()
        generator = torch.Generator(self.batches.device).manual_seed(self.seed)
        losses, rights, n = [], [], 0
        for x, y in progress(self.batches, "PGD-10"):
            noise = uniform(x, 1, generator)
            with torch.no_grad():
                clean = self.network(x)
            robust, right = clean.clone(), clean.argmax(1) == y
            if right.any():
                _, robust[right] = strongest(self.view, self.network, self.perturb, x[right], y[right], noise[right])
            losses.append(torch.stack([F.cross_entropy(z, y, reduction="sum").double() for z in (clean, robust)]))
            rights.append(torch.stack([(z.argmax(1) == y).sum() for z in (clean, robust)]))
            n += len(y)
        means, counts = torch.stack(losses).sum(0) / n, torch.stack(rights).sum(0)
        return tuple(Score(float(mean), 100 * int(count) / n, n) for mean, count in zip(means, counts, strict=True))
