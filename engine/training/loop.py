"""From the first epoch to the last: train, judge, save; and stop in good order whenever asked."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from data.loader import Batches
from engine.accuracy import Score
from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST
from engine.distributed import Processes
from engine.training.metrics import EpochMeans, EpochMetrics, Reliability
from engine.training.out_of_memory import advice
from engine.training.run_folder import RunFolder
from engine.training.schedule import learning_rate
from engine.training.signals import Signals, stopped
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger
from utils.progress import progress
from utils.seed import derive_seed, seed_everything


class Fit:
    """Carries a run from one epoch to the next.

    Args:
        trainer: The loop of one epoch.
        batches: The training set, shuffled by a generator of its own.
        judge: What chooses the best checkpoint.
        folder: Where checkpoints and results go; its config holds the schedule.
        metadata: What tells the network and its data later, stored in each checkpoint.
        processes: Those that share the work; all call the same functions in the same order.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches,
        judge: Validator,
        folder: RunFolder,
        metadata: dict,
        processes: Processes,
    ):
        self.trainer, self.batches, self.validator, self.folder, self.metadata = (
            trainer,
            batches,
            judge,
            folder,
            metadata,
        )
        self.processes, self.config = processes, folder.config
        self.saved = time.monotonic()

    def run(self, begun: dict | None, signals: Signals) -> None:
        """Train until ``config.epochs`` epochs are done; ``begun`` has those done before, and the metrics of the next.

        ``signals`` wait for the end of a step, or of a batch that is judged. Raises UserError when a loss or a weight
        is no longer finite, of which nothing is saved, or where the disk or the memory does not suffice; Stopped, after
        saving, when a signal asked for it.
        """
        start, metrics = begun["epochs"] if begun else 0, self._new_metrics(begun and begun["metrics"])
        if begun:
            within = f" and {metrics.batches} of {len(self.batches)} batches" * bool(metrics.batches)
            logger.info("resuming after epoch %d of %d%s", start, self.config.epochs, within)
        self.signals = signals
        signals.defer()
        for epoch in range(start, self.config.epochs):
            self._epoch(epoch, metrics)
            metrics = self._new_metrics()
        signals.defer(False)

    def _new_metrics(self, state: dict | None = None) -> EpochMetrics:
        return EpochMetrics(self.batches.device, self.processes, state, teacher=self.config.log_reliability)

    def _epoch(self, epoch: int, metrics: EpochMetrics) -> None:
        began, seen, lr = time.monotonic(), metrics.images, _rate(epoch, self.config)
        try:
            for _ in self.trainer.epoch(self._from(epoch, metrics.batches), epoch, lr, metrics):
                self._between_steps(epoch, metrics)
            full = False
        except torch.OutOfMemoryError:
            full = True
        if full:  # outside of the handler, whose traceback holds what filled the memory
            self._say_what_fits(epoch)
        means, trust, trained = metrics.means(), metrics.reliability(), time.monotonic()
        clean, robust = self.validator(lambda: self._stop_if_asked(epoch, metrics))
        self._require_finite(epoch, means.loss, clean.loss, robust.loss)
        self._keep(epoch, _row(epoch, lr, means, clean, robust), trust)
        rate = (metrics.images - seen) / (trained - began)
        seconds = f"{trained - began:.0f} s, {rate:.0f} images/s; evaluation {time.monotonic() - trained:.0f} s"
        logger.info(
            *("epoch %d/%d  lr %g  loss %.4f  clean %.2f  PGD-10 %.2f  (%s)", epoch + 1, self.config.epochs, lr),
            *(means.loss, clean.accuracy, robust.accuracy, seconds),
        )

    def _from(self, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches behind the first ``done``, all chance seeded anew for each."""
        seed, total = self.config.seed, len(self.batches)
        self.batches.generator.manual_seed(derive_seed(seed, "order", epoch))
        batches = progress(self.batches.skip(done), f"epoch {epoch + 1}/{self.config.epochs}", total, done)
        for number, batch in enumerate(batches, start=done):
            seed_everything(derive_seed(seed, "global", epoch, number))
            self.trainer.generator.manual_seed(derive_seed(seed, "noise", epoch, number))
            yield batch

    def _between_steps(self, epoch: int, metrics: EpochMetrics) -> None:
        due = time.monotonic() - self.saved >= 60 * self.config.save_minutes
        asked, due, broken = self.processes.all_reduce_max([self.signals.received, due, metrics.first_nonfinite()])
        if broken:
            self._fail(epoch, f"the loss of step {broken} of epoch {epoch + 1} is nan or inf")
        if asked or due:
            self._save_state(epoch, metrics)
        if asked:
            raise self._stopped(asked)

    def _say_what_fits(self, epoch: int) -> None:
        words = advice(self.trainer, self.batches, epoch, self.processes)
        if not self.processes.is_rank0:
            logger.error("%s", words)  # the first process may not know of it
        raise UserError(words)

    def _stop_if_asked(self, epoch: int, metrics: EpochMetrics) -> None:
        (asked,) = self.processes.all_reduce_max([self.signals.received])
        if asked:
            self._save_state(epoch, metrics)
            raise self._stopped(asked)

    def _stopped(self, asked: int) -> Exception:
        return stopped(asked, f"saved in {self.folder.path}; --resume continues")

    def _save_state(self, epochs: int, metrics: EpochMetrics) -> None:
        """Save all that resuming after ``epochs`` epochs and the batches of ``metrics`` needs."""
        sums = metrics.state()
        self._require_finite(epochs, sums["loss"])
        content = {"net": self.trainer.student.state_dict(), "optimizer": self.trainer.optimizer.state_dict()}
        self.folder.save_state({**content, **self.metadata, "epochs": epochs, "metrics": sums})
        self.saved = time.monotonic()

    def _keep(self, epoch: int, row: dict, trust: Reliability | None) -> None:
        """Save what a finished epoch leaves; the state comes last, so that an interruption before it repeats all."""
        checkpoint = {"net": self.trainer.student.state_dict(), "epoch": epoch, **self.metadata}
        checkpoint |= {key: row[key] for key in ("clean_acc", "PGD10_acc")}
        self.folder.add_row(row)
        if trust:
            self.folder.add_reliability({"epoch": epoch, **trust._asdict()})
        for name in (*_improved(self.folder), LAST):
            self.folder.save(name, checkpoint)
        self._save_state(epoch + 1, self._new_metrics())

    def _require_finite(self, epoch: int, *losses: float) -> None:
        weights = all(value.isfinite().all() for value in self.trainer.student.parameters())
        if not (weights and all(map(math.isfinite, losses))):
            self._fail(epoch, f"epoch {epoch + 1} has made a loss or a weight nan or inf")

    def _fail(self, epoch: int, wrong: str) -> None:
        words = f"{wrong} at learning rate {_rate(epoch, self.config):g}; {self.folder.last_good()}"
        raise UserError(f"--lr_max {self.config.lr_max:g}: {words}; try a lower rate, or --warmup_lr")


def _rate(epoch: int, config: TrainConfig) -> float:
    return learning_rate(
        epoch,
        epochs=config.epochs,
        lr_max=config.lr_max,
        schedule=config.lr_schedule,
        milestones=config.milestones,
        warmup_epochs=config.warmup_lr_epochs if config.warmup_lr else 0,
    )


def _row(epoch: int, lr: float, means: EpochMeans, clean: Score, robust: Score) -> dict:
    """One line of results.csv."""
    trained = {"train_loss": means.loss, "train_clean_acc": means.clean_acc, "train_adv_acc": means.adv_acc}
    judged = {"clean_loss": clean.loss, "clean_acc": clean.accuracy}
    judged |= {"PGD10_loss": robust.loss, "PGD10_acc": robust.accuracy}
    return {"epoch": epoch, "lr": lr, **trained, **judged}


def _improved(folder: RunFolder) -> list[str]:
    """Checkpoints whose figure the newest epoch improves (strictly, as the official code)."""
    newest = folder.rows[-1]["epoch"]
    figures = {BEST_PGD10: "PGD10_acc", BEST_CLEAN: "clean_acc"}
    return [name for name, figure in figures.items() if folder.best(figure)["epoch"] == newest]
