"""Run the attacks of an evaluation and count the images that each of them fools."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Perturb
from engine.accuracy import attack_and_verify
from engine.distributed import SINGLE_PROCESS, Processes
from engine.evaluation.state import NO_STATE, State
from utils.progress import Bar

ROUNDING = 1e-5  # of a pixel in float32, adding and taking away epsilon, by us or by a library


class AttackResult(NamedTuple):
    """What an attack made of N images, on the CPU.

    ``predicted`` (N,) int64 holds the class predicted at the end; ``fooled_at`` (N,) int64 the stage that turned the
    image, counted from 1; 0 where it was misclassified before any attack, stages + 1 where it stands.
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
    state: State = NO_STATE,
    processes: Processes = SINGLE_PROCESS,
) -> AttackResult:
    """Attack the images of ``batches`` and say what became of each.

    Args:
        model: In eval mode, frozen, where the batches are.
        batches: A Batches of N images, the same in every process; each process attacks its own share of them.
        clean: Classes (N,) that the model predicts for the clean images. What is misclassified is attacked again only
            where the attack says so: it counts as fooled whatever an attack makes of it.
        attack: Its stages run in turn, each on what the one before left standing.
        seed: The start of an image depends on it, on the attack, the stage and the batch, and on nothing else.
        attack_model: Faster equivalent of the model that the attacks use; the model itself verifies their results.
        state: Where each finished stage of each batch is kept, and taken from when it was finished before.
        processes: Those that share the work.
    """
    predicted, fooled_at = clean.clone(), torch.zeros_like(clean)
    own = torch.zeros(len(clean), dtype=torch.bool)
    share = len(range(processes.rank, len(batches), processes.count))
    with Bar(share * len(attack.stages), attack.title) as bar:
        for k, (x, y) in enumerate(batches):
            if k % processes.count != processes.rank:
                continue
            part = slice(k * batches.batch_size, k * batches.batch_size + len(y))
            own[part] = True
            for now in _stages((attack_model or model, model), k, x, y, clean[part], attack, seed, state, len(clean)):
                predicted[part], fooled_at[part] = now
                bar.note = f"{100 * float((fooled_at[own] > len(attack.stages)).float().mean()):.2f} % stand"
                bar.advance()
    return AttackResult(*(processes.all_reduce_sum(torch.where(own, values, 0)) for values in (predicted, fooled_at)))


def _stages(networks, k: int, x, y, clean, attack: Attack, seed: int, state: State, n: int):
    """Yield, after each stage on batch ``k``, the classes predicted and the stages of the falls, (B,) each, on the CPU.

    ``n`` images are attacked in all.
    """
    labels, stands = y.cpu(), len(attack.stages) + 1
    predicted, fooled_at = clean, torch.where(clean == labels, stands, 0)
    for number, (name, perturb) in enumerate(attack.stages.items(), start=1):
        piece = (f"{attack.title}-n{n}", k, number)
        kept = state.find(*piece, len(labels))
        if kept is None:
            standing = fooled_at == stands
            tried = torch.ones_like(standing) if attack.every_image and number == 1 else standing
            noise = make_noise(x, seed, attack.title, name, k)
            found = _found(*networks, attack, perturb, x, y, noise, tried.to(x.device))
            predicted = predicted.masked_scatter(tried, found.cpu())
            fooled_at = torch.where(tried, torch.where(predicted == labels, stands, number), fooled_at)
            state.keep(*piece, predicted, fooled_at)
        else:
            predicted, fooled_at = kept
        yield predicted, fooled_at


def _found(attack_model, model, attack: Attack, perturb: Perturb, x, y, noise, tried) -> Tensor:
    """Classes that the model predicts for the attacked images among the ``tried`` ones."""
    x, y, noise = x[tried], y[tried], noise[tried]
    if not len(x):
        return y
    x_adv, logits = attack_and_verify(attack_model, model, perturb, x, y, noise)
    reach = attack.parameters.get("epsilon", 1.0)
    if not (
        x_adv.isfinite().all() and (x_adv - x).abs().max() <= reach + ROUNDING and 0 <= x_adv.min() <= x_adv.max() <= 1
    ):
        raise RuntimeError(f"{attack.title} left its ball or the box: its figure would mean nothing")
    return logits.argmax(1)


def make_noise(x: Tensor, seed: int, title: str, stage: str, batch: int) -> Tensor:
    """The draw, uniform in [-1, 1] and of the shape of x, that starts one stage of an attack on one batch.

    Drawn on the CPU: the generators of devices differ.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {title} {stage} {batch}".encode()))
    return uniform(torch.empty_like(x, device="cpu"), 1, generator).to(x.device)
