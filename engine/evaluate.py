"""Accuracy as a count over images."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.suite import Perturb


class Score(NamedTuple):
    """Mean cross entropy and accuracy in percent over ``n`` images."""

    loss: float
    accuracy: float
    n: int


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], perturb: Perturb | None = None) -> Score:
    """Score ``model`` in eval mode, on clean images or on those that ``perturb`` makes of them.

    Sums over images, never means over batches, so that a short last batch has no more weight than its images.
    """
    model.eval()
    loss = correct = 0
    n = 0
    for x, y in batches:
        x = perturb(model, x, y) if perturb else x
        with torch.no_grad():
            logits = model(x)
            loss = loss + F.cross_entropy(logits, y, reduction="sum").double()
            correct = correct + (logits.argmax(1) == y).sum()
        n += len(y)
    return Score(float(loss) / n, 100 * int(correct) / n, n)
