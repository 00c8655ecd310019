"""Sums over the images of one training epoch, on the device until the epoch ends."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.distributed import ALONE, Part, Processes
from methods.losses import Step


class EpochMeans(NamedTuple):
    """Means over one training epoch; an accuracy, in percent, is None where the method computes no such logits."""

    loss: float
    clean_acc: float | None
    adv_acc: float | None


class Tally:
    """What an epoch's means need of the batches so far; its state continues an epoch that was interrupted.

    Args:
        device: Where the sums are kept: reading them any earlier than needed would make the host wait for the device.
        processes: Those that share each batch.
        state: Of an earlier tally of the same epoch, see :meth:`state`.
    """

    def __init__(self, device: torch.device | str, processes: Processes = ALONE, state: dict | None = None):
        self.device, self.processes = device, processes
        state = state or {"batches": 0, "images": 0, "loss": 0.0, "clean": None, "adv": None}
        self.batches, self.images = state["batches"], state["images"]
        self.sums = {key: self._number(state[key]) for key in ("loss", "clean", "adv")}
        self.broken = torch.zeros((), dtype=torch.int64, device=device)  # the first batch, from 1, of a bad loss
        self._read, self._copied = None, None

    def add(self, outcome: Step, y: Tensor, part: Part) -> None:
        """Count in one step on this process's ``part`` of a batch, with labels y (B,)."""
        self.batches += 1
        self.images += part.whole
        weight = part.share * part.whole
        counts = {"clean": _correct(outcome.clean, y), "adv": _correct(outcome.adv, y)}
        for key, mean in {"loss": outcome.loss.double(), **counts}.items():
            if mean is not None:
                before = self.sums[key]
                self.sums[key] = mean * weight if before is None else before + mean * weight
        first = (self.broken == 0) & ~outcome.loss.isfinite()
        self.broken = torch.where(first, self.batches, self.broken)

    def first_broken(self) -> int:
        """The first batch, from 1, whose loss in this process was nan or inf, as far as is known without waiting for
        the device; 0 for none.
        """
        if self.broken.device.type == "cpu":
            return int(self.broken)
        known = 0
        if self._copied is None:
            self._read, self._copied = torch.zeros((), dtype=torch.int64).pin_memory(), torch.cuda.Event()
        elif not self._copied.query():
            return 0
        else:
            known = int(self._read)
        self._read.copy_(self.broken, non_blocking=True)
        self._copied.record()
        return known

    def means(self) -> EpochMeans:
        """Means over all images so far, of all processes."""
        state = self.state()
        n = state["images"]
        clean, adv = (None if state[key] is None else 100 * state[key] / n for key in ("clean", "adv"))
        return EpochMeans(state["loss"] / n, clean, adv)

    def state(self) -> dict:
        """The sums over all processes, as plain numbers."""
        keys = [key for key, value in self.sums.items() if value is not None]
        own = torch.stack([self.sums[key].cpu() for key in keys])
        total = dict(zip(keys, self.processes.total(own).tolist(), strict=True))
        counts = {key: round(total[key]) if key in total else None for key in ("clean", "adv")}
        return {"batches": self.batches, "images": self.images, "loss": total["loss"], **counts}

    def _number(self, value: float | None) -> Tensor | None:
        if value is None:
            return None
        own = value if self.processes.first else 0.0  # a saved sum is of all processes: one of them goes on with it
        return torch.tensor(own, dtype=torch.float64, device=self.device)


def _correct(logits: Tensor | None, y: Tensor) -> Tensor | None:
    return None if logits is None else (logits.argmax(1) == y).double().mean()
