"""Metrics of one training epoch: sums over its images, kept on the device until the epoch ends."""

import sys

import torch
from torch import Tensor

from engine.distributed import SINGLE_PROCESS, Processes
from methods.losses import Step, reliability

try:
    import resource
except ImportError:  # Windows
    resource = None

ALPHA_BINS = 20  # of the histogram of alpha over [0, 1], of equal width
ALPHA_COLUMNS = tuple(f"alpha_{number / ALPHA_BINS:.2f}" for number in range(ALPHA_BINS))  # named by lower bounds


class EpochMetrics:
    """Sums over the batches of an epoch so far.

    Args:
        device: Where the sums are kept. Reading one during the epoch would make the host wait for the device.
        processes: Ranks that share each batch.
        state: Result of :meth:`state` of an interrupted epoch, to continue it.
        teacher: Also compute :meth:`reliability`, unless the epoch began without it.
        parts: Parts in which the trainer processes a batch.
    """

    def __init__(
        self,
        device: torch.device | str,
        processes: Processes = SINGLE_PROCESS,
        state: dict | None = None,
        *,
        teacher: bool = False,
        parts: int = 1,
    ):
        self.processes, self.parts = processes, parts
        state = state or {"batches": 0, "images": 0, "loss": 0.0}
        self.teacher = teacher and (state["batches"] == 0 or "alpha" in state)
        self.batches, self.images = state["batches"], state["images"]
        self.keys = ["loss", "clean", "adv"]
        if self.teacher:
            self.keys += ["t_clean", "t_adv", "alpha"]
        self.sums = {}  # only for logits that the method returns
        for key in self.keys:
            if state.get(key) is not None:
                sums = torch.tensor(state[key], dtype=torch.float64, device=device)
                self.sums[key] = sums if processes.is_rank0 else sums * 0  # saved sums are over all ranks

    def add(self, result: Step, y: Tensor) -> None:
        """Add one training step: the ``result`` of this rank's share of a batch, and the labels of the whole batch.

        The labels are classes (B,) or probabilities (B, classes), of which the largest counts as the label.
        """
        shards, size = self.processes.shards(len(y), self.parts), len(y)
        y = torch.cat([y[shard.rows] for shard in shards])
        y = y if y.ndim == 1 else y.argmax(1)
        self.batches += 1
        self.images += size
        means = {"loss": result.loss.double(), "clean": _accuracy(result.clean, y), "adv": _accuracy(result.adv, y)}
        if self.teacher:
            means |= {"t_clean": _accuracy(result.t_clean, y), "t_adv": _accuracy(result.t_adv, y)}
            means["alpha"] = None if result.t_adv is None else _histogram(reliability(result.t_adv, y, beta=1))
        weight = sum(shard.weight for shard in shards) * size
        for key, mean in means.items():
            if mean is not None:
                self.sums[key] = mean * weight + self.sums.get(key, 0)

    def means(self) -> dict[str, float | None]:
        """Return the columns ``train_*`` of results.csv: means over all images so far, of all ranks.

        An accuracy (percent) is None if the method returns no such logits.
        """
        state = self.state()
        n = state["images"]
        accuracies = {f"train_{key}_acc": _percent(state[key], n) for key in ("clean", "adv")}
        return {"train_loss": state["loss"] / n, **accuracies}

    def reliability(self) -> dict[str, float | None] | None:
        """Return the columns of reliability.csv over the images so far, of all ranks; None without ``teacher``.

        The accuracy (percent) of the robust teacher on the clean and on the student's adversarial images, and the
        numbers of images by alpha, its probability of the label on the adversarial image. None if the method returns
        no such logits. Source: figure 1 of IAD (Zhu et al., ICLR 2022), whose loss raises alpha to a power.
        """
        if not self.teacher:
            return None
        state = self.state()
        n = state["images"]
        accuracies = {f"teacher_{key}_acc": _percent(state[f"t_{key}"], n) for key in ("clean", "adv")}
        alpha = state["alpha"] or [None] * ALPHA_BINS
        return {"n": n, **accuracies, **dict(zip(ALPHA_COLUMNS, alpha, strict=True))}

    def state(self) -> dict:
        """Return the sums over all ranks as numbers; None for logits that the method does not return."""
        sums = {key: self.sums[key] for key in self.keys if key in self.sums}
        total = self.processes.all_reduce_sum(torch.cat([value.reshape(-1).cpu() for value in sums.values()]))
        parts = total.split([value.numel() for value in sums.values()])
        state = {"batches": self.batches, "images": self.images} | dict.fromkeys(self.keys)
        for key, part in zip(sums, parts, strict=True):
            state[key] = (part if key == "loss" else part.round().long()).reshape(sums[key].shape).tolist()
        return state


def peak_memory_mib(device: torch.device) -> float | None:
    """Return this process's peak memory so far in MiB: allocated on a GPU, or resident; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def _accuracy(logits: Tensor | None, y: Tensor) -> Tensor | None:
    return None if logits is None else (logits.argmax(1) == y).double().mean()


def _histogram(alpha: Tensor) -> Tensor:
    """Return the share of the values alpha (B,), in [0, 1], in each of ALPHA_BINS bins; 1 belongs to the last bin.

    Compares instead of calling torch.histc or torch.bincount, which are not deterministic on a GPU or wait for it.
    """
    bins = (alpha * ALPHA_BINS).long().clamp(0, ALPHA_BINS - 1)
    return (bins[:, None] == torch.arange(ALPHA_BINS, device=alpha.device)).double().mean(0)


def _percent(correct: int | None, n: int) -> float | None:
    return None if correct is None else 100 * correct / n
