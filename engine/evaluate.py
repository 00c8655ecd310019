"""Accuracy as a count over images, clean and under attack."""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pgd import uniform
from attacks.suite import Attack, Perturb
from engine.distributed import ALONE, Processes
from engine.eval_state import NOTHING_KEPT, State
from utils.errors import UserError
from utils.progress import Bar

ROUNDING = 1e-5  # of a pixel in float32, adding and taking away epsilon, by us or by a library


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
        x = perturb(model, x, y, uniform(x, 1)) if perturb else x
        with torch.no_grad():
            logits = model(x)
            loss = loss + F.cross_entropy(logits, y, reduction="sum").double()
            correct = correct + (logits.argmax(1) == y).sum()
        n += len(y)
    return Score(float(loss) / n, 100 * int(correct) / n, n)


class Outcome(NamedTuple):
    """What an attack made of N images, on the CPU.

    ``predicted`` (N,) int64 holds the class predicted at the end; ``fallen`` (N,) int64 the stage that turned the
    image, counted from 1; 0 where it was misclassified before any attack, stages + 1 where it stands.
    """

    predicted: Tensor
    fallen: Tensor


def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Classes (N,) int64 that ``model`` predicts for clean images, on the CPU; leaves it in eval mode.

    Raises UserError where a logit is nan or inf.
    """
    model.eval()
    found = []
    for x, _ in batches:
        with torch.no_grad():
            logits = model(x)
        if not logits.isfinite().all():
            raise UserError("--model_path: the network's logits are nan or inf on clean images: its file is damaged")
        found.append(logits.argmax(1).cpu())
    return torch.cat(found)


def strike(
    model: nn.Module,
    batches,
    clean: Tensor,
    attack: Attack,
    *,
    seed: int,
    climbed: nn.Module | None = None,
    state: State = NOTHING_KEPT,
    processes: Processes = ALONE,
) -> Outcome:
    """Attack the images of ``batches`` and say what became of each.

    Args:
        model: In eval mode, frozen, where the batches are.
        batches: A Batches of N images, the same in every process; each process attacks its own share of them.
        clean: Classes (N,) that the model predicts for the clean images. What is misclassified is attacked again only
            where the attack says so: it counts as fooled whatever an attack makes of it.
        attack: Its stages run in turn, each on what the one before left standing.
        seed: The start of an image depends on it, on the attack, the stage and the batch, and on nothing else.
        climbed: What computes the same as the model, faster, for the attacks; the model itself judges what they find.
        state: Where each finished stage of each batch is kept, and taken from when it was finished before.
        processes: Those that share the work.
    """
    predicted, fallen = clean.clone(), torch.zeros_like(clean)
    own = torch.zeros(len(clean), dtype=torch.bool)
    share = len(range(processes.rank, len(batches), processes.count))
    with Bar(share * len(attack.stages), attack.title) as bar:
        for k, (x, y) in enumerate(batches):
            if k % processes.count != processes.rank:
                continue
            part = slice(k * batches.batch_size, k * batches.batch_size + len(y))
            own[part] = True
            for now in _stages((climbed or model, model), k, x, y, clean[part], attack, seed, state, len(clean)):
                predicted[part], fallen[part] = now
                bar.note = f"{100 * float((fallen[own] > len(attack.stages)).float().mean()):.2f} % stand"
                bar.advance()
    return Outcome(*(processes.total(torch.where(own, values, 0)) for values in (predicted, fallen)))


def _stages(networks, k: int, x, y, clean, attack: Attack, seed: int, state: State, n: int):
    """Yield, after each stage on batch ``k``, the classes predicted and the stages of the falls, (B,) each, on the CPU.

    ``n`` images are attacked in all.
    """
    labels, stands = y.cpu(), len(attack.stages) + 1
    predicted, fallen = clean, torch.where(clean == labels, stands, 0)
    for number, (name, perturb) in enumerate(attack.stages.items(), start=1):
        piece = (f"{attack.title}-n{n}", k, number)
        kept = state.find(*piece, len(labels))
        if kept is None:
            standing = fallen == stands
            tried = torch.ones_like(standing) if attack.every_image and number == 1 else standing
            noise = noise_of(x, seed, attack.title, name, k)
            found = _found(*networks, attack, perturb, x, y, noise, tried.to(x.device))
            predicted = predicted.masked_scatter(tried, found.cpu())
            fallen = torch.where(tried, torch.where(predicted == labels, stands, number), fallen)
            state.keep(*piece, predicted, fallen)
        else:
            predicted, fallen = kept
        yield predicted, fallen


def _found(climbed, model, attack: Attack, perturb: Perturb, x, y, noise, tried) -> Tensor:
    """Classes that the model predicts for the attacked images among the ``tried`` ones."""
    x, y, noise = x[tried], y[tried], noise[tried]
    if not len(x):
        return y
    x_adv, logits = strongest(climbed, model, perturb, x, y, noise)
    reach = attack.parameters.get("epsilon", 1.0)
    if not (
        x_adv.isfinite().all() and (x_adv - x).abs().max() <= reach + ROUNDING and 0 <= x_adv.min() <= x_adv.max() <= 1
    ):
        raise RuntimeError(f"{attack.title} left its ball or the box: its figure would mean nothing")
    return logits.argmax(1)


def strongest(climbed, model, perturb: Perturb, x: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Adversarial images (B, C, H, W) found on ``climbed``, which computes what ``model`` does to rounding, and the
    model's logits (B, classes) there.

    An attack ends for an image where its network misclassifies it. Where rounding lets ``climbed`` misclassify what
    ``model`` still classifies correctly, the attack ended too early: it is carried out again on the model itself.
    """
    x_adv = perturb(climbed, x, y, noise)
    with torch.no_grad():
        logits = model(x_adv)
        held = (logits.argmax(1) == y).nonzero()[:, 0]
        if climbed is model or not len(held):
            return x_adv, logits
        early = held[climbed(x_adv[held]).argmax(1) != y[held]]
    if len(early):
        x_adv[early] = perturb(model, x[early], y[early], noise[early])
        with torch.no_grad():
            logits[early] = model(x_adv[early])
    return x_adv, logits


def noise_of(x: Tensor, seed: int, title: str, stage: str, batch: int) -> Tensor:
    """The draw, uniform in [-1, 1] and of the shape of x, that starts one stage of an attack on one batch.

    Drawn on the CPU: the generators of devices differ.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {title} {stage} {batch}".encode()))
    return uniform(torch.empty_like(x, device="cpu"), 1, generator).to(x.device)
