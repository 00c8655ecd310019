"""Run one attack on all images and record which of its stages fools each image."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack
from engine.accuracy import attack_and_verify
from engine.distributed import SINGLE_PROCESS, Processes
from engine.evaluation.state import State
from utils.errors import UserError
from utils.progress import progress_bar

NOISE_BLOCK = 200  # images whose starts are drawn together, whatever the batch size
ROUNDING = 1e-5  # of a float32 pixel when epsilon is added and subtracted


class AttackResult(NamedTuple):
    """Outcome of an attack on N images, on the CPU.

    ``predicted`` (N,) int64 is the class predicted for the adversarial image. ``fooled_at`` (N,) int64 is the stage,
    from 1, that fooled the network: 0 if it misclassifies the clean image, stages + 1 if no stage succeeded.
    """

    predicted: Tensor
    fooled_at: Tensor


def run_attack(
    model: nn.Module,
    batches,
    clean: Tensor,
    attack: Attack,
    *,
    seed: int,
    attack_model: nn.Module | None = None,
    tf32: bool = False,
    state: State | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> AttackResult:
    """Attack the N images of ``batches``; the start of an image depends only on seed, attack, stage and its index.

    Args:
        model: In eval mode with constant parameters; it verifies every result in strict float32.
        batches: Sized iterable of images (B, C, H, W) and labels (B,), the same in all processes.
        clean: Classes (N,) predicted for the clean images; an image misclassified here counts as fooled.
        attack: Its stages run in order, each on the images that are still classified correctly.
        seed: Seed of the starts.
        attack_model: A faster equivalent of ``model`` for the attacks; ``tf32`` allows it to use TF32.
        state: Stores each finished stage of each batch; an evaluation with other batch sizes can continue from it.
        processes: Each attacks its share of the batches.

    Raises UserError for logits of nan or inf, RuntimeError if an adversarial image is outside the ball or [0, 1].
    """
    predicted, fooled_at = torch.zeros_like(clean), torch.zeros_like(clean)  # the processes' results are summed
    robust_stage = len(attack.stages) + 1
    start = n = 0
    mine = range(processes.rank, len(batches), processes.count)
    with progress_bar(len(mine) * len(attack.stages), attack.title) as bar:
        for k, (x, y) in enumerate(batches):
            part, start = slice(start, start + len(y)), start + len(y)
            if k not in mine:
                continue
            n += len(y)
            result = AttackResult(clean[part], torch.where(clean[part] == y.cpu(), robust_stage, 0))
            for number, (stage, perturb) in enumerate(attack.stages.items(), start=1):
                key = f"{attack.title}-n{len(clean)}", number, part.start
                if finished := state and state.load(*key, len(y)):
                    result = AttackResult(*finished)
                else:
                    noise = make_noise(x, seed, attack.title, stage, part.start)
                    verified = partial(attack_and_verify, attack_model or model, model, perturb, tf32=tf32)
                    result = _run_stage(verified, attack, number, (x, y, noise), result)
                    if state:
                        state.save(*key, *result)
                fooled_at[part] = result.fooled_at
                bar.set_postfix_str(f"robust {100 * int((fooled_at == robust_stage).sum()) / n:.2f} %", refresh=False)
                bar.update()
            predicted[part], fooled_at[part] = result
    return AttackResult(processes.all_reduce_sum(predicted), processes.all_reduce_sum(fooled_at))


def _run_stage(perturb: Callable, attack: Attack, number: int, batch: tuple, before: AttackResult) -> AttackResult:
    """Run stage ``number`` on a batch (images, labels, noise) whose result so far is ``before``."""
    robust = len(attack.stages) + 1
    attacked = before.fooled_at == robust
    if attack.every_image and number == 1:
        attacked = torch.ones_like(attacked)
    if not attacked.any():
        return before
    x, y, noise = (values[attacked.to(values.device)] for values in batch)
    x_adv, logits = perturb(x, y, noise)
    if not (x_adv.isfinite().all() and logits.isfinite().all()):
        raise UserError(f"{attack.title}: the network's logits or gradients are nan or inf under this attack")
    distance = (x_adv - x).abs().max()
    if distance > attack.parameters.get("epsilon", 1.0) + ROUNDING or x_adv.min() < 0 or x_adv.max() > 1:
        raise RuntimeError(f"{attack.title}: adversarial images are outside the epsilon ball or [0, 1]")
    predicted = before.predicted.masked_scatter(attacked, logits.argmax(1).cpu())
    fooled_at = torch.where(predicted == batch[1].cpu(), robust, number)
    return AttackResult(predicted, torch.where(attacked, fooled_at, before.fooled_at))


def make_noise(x: Tensor, seed: int, title: str, stage: str, start: int) -> Tensor:
    """Return noise, uniform in [-1, 1] and in the shape of x, for one stage of an attack on images from ``start`` on.

    The noise of an image depends on its index, not on the batch. It is drawn on the CPU, because the random generators
    of devices differ.
    """
    blocks, end = [], start + len(x)
    for block in range(start // NOISE_BLOCK, (end - 1) // NOISE_BLOCK + 1):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {title} {stage} {block}".encode()))
        count = min(NOISE_BLOCK, end - block * NOISE_BLOCK)
        blocks.append(uniform(torch.empty(count, *x.shape[1:], dtype=x.dtype, device="cpu"), 1, generator))
    return torch.cat(blocks)[start % NOISE_BLOCK :].to(x.device)
