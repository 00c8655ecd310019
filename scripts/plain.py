"""The plain reference that the benchmark times against: what the official codes do, step by step, in our words.

fp32, NCHW, eager, BatchNorm as it is, parameters that require gradients during the attack.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms


def pgd_accuracy(
    model: nn.Module, batches, *, noise: Sequence[Tensor], epsilon: float, step_size: float, steps: int
) -> float:
    """Accuracy in % of ``model`` under PGD on cross entropy: every step on every image.

    An image counts as fooled that is misclassified clean or at any step, so that the figure is the one of an attack
    that stops for it. ``noise`` holds a draw from [-1, 1] for each batch, of its shape; ``epsilon`` and ``step_size``
    lie in [0, 1].
    """
    model.eval()
    right = n = 0
    for (x, y), draw in zip(batches, noise, strict=True):
        x_adv = (x + epsilon * draw).clamp(0, 1)
        stands = _reads(model, x, y)
        for _ in range(steps):
            x_adv.requires_grad_()
            logits = model(x_adv)
            F.cross_entropy(logits, y, reduction="sum").backward()
            stands &= logits.argmax(1) == y
            delta = (x_adv.detach() + step_size * x_adv.grad.sign() - x).clamp(-epsilon, epsilon)
            x_adv = (x + delta).clamp(0, 1)
        stands &= _reads(model, x_adv, y)
        right, n = right + int(stands.sum()), n + len(y)
    model.zero_grad()
    return 100 * right / n


@torch.no_grad()
def _reads(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


class _Images(torch.utils.data.Dataset):
    """Images as PIL pictures, cropped, mirrored and turned into tensors one by one."""

    def __init__(self, split):
        self.pictures = [transforms.functional.to_pil_image(image) for image in split.images]
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, k):
        return self.transform(self.pictures[k]), self.labels[k]


def loader(split, batch_size: int, workers: int) -> torch.utils.data.DataLoader:
    """The official codes' training data: a DataLoader with random crop and flip."""
    return torch.utils.data.DataLoader(_Images(split), batch_size, shuffle=True, num_workers=workers)


class Trainer:
    """A training step as the official codes take it; the method and its loss are this project's own.

    During the attack the networks are run as they are, with parameters that require gradients (the student's), and
    the student is switched to the mode that the method's attack asks for. Arguments are those of Trainer.
    """

    def __init__(self, student, teachers, method, optimizer, *, epsilon: float, step_size: float, steps: int):
        self.student, self.teachers, self.method, self.optimizer = student, teachers, method, optimizer
        self.epsilon, self.step_size, self.steps = epsilon, step_size, steps

    def attack(self, objective, x: Tensor, *, noise, clamp: bool = False, bn: str = "eval") -> Tensor:
        """Adversarial images (B, C, H, W) that climb ``objective(student, *teachers)``."""
        self.student.train(bn == "train")
        x_adv = x + noise(x, self.epsilon, None)
        x_adv = x_adv.clamp(0, 1) if clamp else x_adv
        losses = objective(self.student, *self.teachers)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(x_adv).sum(), x_adv)
            x_adv = x_adv.detach() + self.step_size * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - self.epsilon), x + self.epsilon).clamp(0, 1)
        self.student.train()
        return x_adv.detach()

    def step(self, x: Tensor, y: Tensor, epoch: int = 0) -> None:
        """One optimizer step on images (B, C, H, W) and labels (B,)."""
        self.student.train()
        outcome = self.method(self.student, *self.teachers, self.attack, x, y, epoch)
        self.optimizer.zero_grad()
        outcome.loss.backward()
        self.optimizer.step()
