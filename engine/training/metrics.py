"""Sums over the images of one training epoch, on the device until the epoch ends."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.distributed import SINGLE_PROCESS, Processes, Shard
from methods.iad import reliability
from methods.losses import Step

EMPTY = {"batches": 0, "images": 0, "loss": 0.0, "clean": None, "adv": None}
EMPTY_TEACHER = {"watched": 0, "t_clean": None, "t_adv": None, "alpha": None}
ALPHA_BINS = 20  # of the histogram of alpha over [0, 1], of equal width


class EpochMeans(NamedTuple):
    """Means over one training epoch; an accuracy, in percent, is None where the method computes no such logits."""

    loss: float
    clean_acc: float | None
    adv_acc: float | None


class Reliability(NamedTuple):
    """How far the teacher could be trusted in an epoch, counted over ``n`` images.

    In percent, how often it was right on the clean and on the student's adversarial images; ``alpha`` counts images by
    its probability of the label on the adversarial image, in ALPHA_BINS parts of [0, 1]. What the method computes no
    logits for is None. (Figure 1 of IAD, Zhu et al., ICLR 2022; alpha there has an exponent in the loss.)
    """

    n: int
    clean_acc: float | None
    adv_acc: float | None
    alpha: list[int] | None


class EpochMetrics:
    """What an epoch's means need of the batches so far; its state continues an epoch that was interrupted.

    Args:
        device: Where the sums are kept: reading them any earlier than needed would make the host wait for the device.
        processes: Those that share each batch.
        state: Of an earlier metrics of the same epoch, see :meth:`state`.
        teacher: Count too how far the teacher could be trusted, see :meth:`reliability`.
    """

    def __init__(
        self,
        device: torch.device | str,
        processes: Processes = SINGLE_PROCESS,
        state: dict | None = None,
        *,
        teacher: bool = False,
    ):
        self.device, self.processes, self.teacher = device, processes, teacher
        state = {**EMPTY, **(EMPTY_TEACHER if teacher else {}), **(state or {})}
        self.batches, self.images, self.watched = state["batches"], state["images"], state.get("watched", 0)
        keys = ("loss", "clean", "adv", *(("t_clean", "t_adv", "alpha") if teacher else ()))
        self.sums = {key: self._numbers(state[key]) for key in keys}
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)  # the first batch, from 1, of a bad loss
        self._read, self._copied = None, None

    def add(self, outcome: Step, y: Tensor, shard: Shard) -> None:
        """Count in one step on this process's ``shard`` of a batch, with labels y (B,)."""
        self.batches += 1
        self.images += shard.batch_size
        weight = shard.weight * shard.batch_size
        means = {"loss": outcome.loss.double(), "clean": _correct(outcome.clean, y), "adv": _correct(outcome.adv, y)}
        if self.teacher:
            self.watched += shard.batch_size
            means |= {"t_clean": _correct(outcome.t_clean, y), "t_adv": _correct(outcome.t_adv, y)}
            means["alpha"] = None if outcome.t_adv is None else _shares(reliability(outcome.t_adv, y, beta=1))
        for key, mean in means.items():
            if mean is not None:
                before = self.sums[key]
                self.sums[key] = mean * weight if before is None else before + mean * weight
        first = (self.nonfinite == 0) & ~outcome.loss.isfinite()
        self.nonfinite = torch.where(first, self.batches, self.nonfinite)

    def first_nonfinite(self) -> int:
        """The first batch, from 1, whose loss in this process was nan or inf, as far as is known without waiting for
        the device; 0 for none.
        """
        if self.nonfinite.device.type == "cpu":
            return int(self.nonfinite)
        known = 0
        if self._copied is None:
            self._read, self._copied = torch.zeros((), dtype=torch.int64).pin_memory(), torch.cuda.Event()
        elif not self._copied.query():
            return 0
        else:
            known = int(self._read)
        self._read.copy_(self.nonfinite, non_blocking=True)
        self._copied.record()
        return known

    def means(self) -> EpochMeans:
        """Means over all images so far, of all processes."""
        state = self.state()
        n = state["images"]
        clean, adv = (None if state[key] is None else 100 * state[key] / n for key in ("clean", "adv"))
        return EpochMeans(state["loss"] / n, clean, adv)

    def reliability(self) -> Reliability | None:
        """How far the teacher could be trusted over the images so far, of all processes; None where not counted."""
        if not self.teacher:
            return None
        state = self.state()
        n = state["watched"]
        clean, adv = (None if state[key] is None else 100 * state[key] / n for key in ("t_clean", "t_adv"))
        return Reliability(n, clean, adv, state["alpha"])

    def state(self) -> dict:
        """The sums over all processes, as plain numbers."""
        sums = {key: value for key, value in self.sums.items() if value is not None}
        total = self.processes.all_reduce_sum(torch.cat([value.reshape(-1).cpu() for value in sums.values()]))
        parts = total.split([value.numel() for value in sums.values()])
        found = {key: part.reshape(sums[key].shape).tolist() for key, part in zip(sums, parts, strict=True)}
        loss = found.pop("loss")
        counts = {key: _rounded(found.get(key)) for key in self.sums if key != "loss"}
        watched = {"watched": self.watched} if self.teacher else {}
        return {"batches": self.batches, "images": self.images, "loss": loss, **counts, **watched}

    def _numbers(self, value: float | list[int] | None) -> Tensor | None:
        if value is None:
            return None
        sums = torch.tensor(value, dtype=torch.float64, device=self.device)
        return sums if self.processes.is_rank0 else sums * 0  # a saved sum is of all processes: one goes on with it


def _correct(logits: Tensor | None, y: Tensor) -> Tensor | None:
    return None if logits is None else (logits.argmax(1) == y).double().mean()


def _shares(alpha: Tensor) -> Tensor:
    """The share (ALPHA_BINS,) of values in [0, 1], (B,), that falls into each part; 1 falls into the last one.

    Compared, not scattered: that is deterministic and asks nothing back from the device.
    """
    number = (alpha * ALPHA_BINS).long().clamp(0, ALPHA_BINS - 1)
    return (number[:, None] == torch.arange(ALPHA_BINS, device=alpha.device)).double().mean(0)


def _rounded(counts: float | list[float] | None) -> int | list[int] | None:
    if counts is None:
        return None
    return [round(count) for count in counts] if isinstance(counts, list) else round(counts)
