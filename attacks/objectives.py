"""Objectives that attacks maximize: functions of logits (B, C) and labels (B,) that return losses (B,)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of every image, (B,); y may also be probabilities (B, C)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Negative C&W margin of every image, (B,): ``-max(z_y - max_{c != y} z_c + 50, 0)``.

    With a confidence of 50 ordinary logits never reach the clamp, so the gradient of a misclassified image is not zero.
    Source: Carlini & Wagner (S&P 2017), loss f6, as in the L-infinity attack of the IAD code.
    """
    of_label = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return -(of_label - others + 50.0).clamp(min=0)
