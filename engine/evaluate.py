"""Accuracy as a count over images, clean and under attack."""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Perturb
from engine.distributed import Processes
from engine.eval_state import State
from utils.log import Bar


class Score(NamedTuple):
    """Mean cross entropy and accuracy in percent over ``n`` images."""

    loss: float
    accuracy: float
    n: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    perturb: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Score:
    """Score ``model`` in eval mode, on clean images or on those that ``perturb`` makes of them.

    Sums over images, never means over batches, so that a short last batch has no more weight than its images.
    """
    model.eval()
    loss = correct = 0
    n = 0
    for x, y in batches:
        x = perturb(model, x, y, uniform(x, 1, generator)) if perturb else x
        with torch.no_grad():
            logits = model(x)
            loss = loss + F.cross_entropy(logits, y, reduction="sum").double()
            correct = correct + (logits.argmax(1) == y).sum()
        n += len(y)
    return Score(float(loss) / n, 100 * int(correct) / n, n)


class Outcome(NamedTuple):
    """What an attack made of N images, on the CPU.

    ``predicted`` (N,) int64 holds the class read at the end; ``fallen`` (N,) int64 the stage that turned the image,
    counted from 1; 0 where it was misread before any attack, stages + 1 where it stands.
    """

    predicted: Tensor
    fallen: Tensor


def read(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Classes (N,) int64 that ``model`` reads in clean images, on the CPU."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x).argmax(1).cpu() for x, _ in batches])


def strike(
    model: nn.Module,
    batches,
    clean: Tensor,
    attack: Attack,
    *,
    seed: int,
    state: State,
    processes: Processes,
    climbed: nn.Module | None = None,
) -> Outcome:
    """Attack the images of ``batches`` and say what became of each.

    Args:
        model: In eval mode, frozen, where the batches are.
        batches: A Batches of N images, the same in every process; each process attacks its own share of them.
        clean: Classes (N,) that the model reads in the clean images. What is misread is attacked again only where
            the attack says so: it counts as fooled whatever an attack makes of it.
        attack: Its stages run in turn, each on what the one before left standing.
        seed: The start of an image depends on it, on the attack, the stage and the batch, and on nothing else.
        state: Where each finished stage of each batch is kept, and taken from when it was finished before.
        processes: Those that share the work.
        climbed: What computes the same as the model, faster, for the attacks; the model itself judges what they find.
    """
    predicted, fallen = clean.clone(), torch.zeros_like(clean)
    own = torch.zeros(len(clean), dtype=torch.bool)
    mine = [(k, x, y) for k, (x, y) in enumerate(batches) if k % processes.count == processes.rank]
    with Bar(len(mine) * len(attack.stages), attack.title) as bar:
        for k, x, y in mine:
            part = slice(k * batches.batch_size, k * batches.batch_size + len(y))
            own[part] = True
            for now in _stages((climbed or model, model), k, x, y, clean[part], attack, seed, state):
                predicted[part], fallen[part] = now
                bar.note = f"{100 * float((fallen[own] > len(attack.stages)).float().mean()):.2f} % stand"
                bar.advance()
    return Outcome(*(processes.total(torch.where(own, values, 0)) for values in (predicted, fallen)))


def _stages(networks, k: int, x, y, clean, attack: Attack, seed: int, state: State):
    """Yield, after each stage on batch ``k``, the classes read and the stages of the falls, (B,) each, on the CPU."""
    labels, stands = y.cpu(), len(attack.stages) + 1
    predicted, fallen = clean, torch.where(clean == labels, stands, 0)
    for number, (name, perturb) in enumerate(attack.stages.items(), start=1):
        kept = state.find(attack.title, k, number)
        if kept is None:
            standing = fallen == stands
            tried = torch.ones_like(standing) if attack.every_image and number == 1 else standing
            noise = noise_of(x, seed, attack.title, name, k)
            found = _found(*networks, perturb, x, y, noise, tried.to(x.device))
            predicted = predicted.masked_scatter(tried, found.cpu())
            fallen = torch.where(tried, torch.where(predicted == labels, stands, number), fallen)
            state.keep(attack.title, k, number, predicted, fallen)
        else:
            predicted, fallen = kept
        yield predicted, fallen


def _found(climbed, model, perturb: Perturb, x, y, noise, open_) -> Tensor:
    """Classes that the model reads in the attacked images among the ``open_`` ones."""
    if not open_.any():
        return y[open_]
    x_adv = perturb(climbed, x[open_], y[open_], noise[open_])
    with torch.no_grad():
        return model(x_adv).argmax(1)


def noise_of(x: Tensor, seed: int, title: str, stage: str, batch: int) -> Tensor:
    """The draw, uniform in [-1, 1] and of the shape of x, that starts one stage of an attack on one batch."""
    words = f"{seed} {title} {stage} {batch}"
    return uniform(x, 1, torch.Generator(x.device).manual_seed(zlib.crc32(words.encode())))
