"""One training run, epoch by epoch: learning rate, batches, steps, validation, saving, stopping."""

import math
import time
from collections.abc import Iterator

from torch import Tensor

from data.loader import Batches
from engine.checkpoint import BEST, LAST
from engine.training.metrics import EpochMetrics, peak_memory_mib
from engine.training.run_folder import RunFolder
from engine.training.schedule import epsilon_scale, learning_rate
from engine.training.signals import Signals, stopped
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from utils.errors import UserError
from utils.log import logger
from utils.progress import progress_bar
from utils.seed import derive_seed, seed_everything


class TrainingLoop:
    """Trains, validates and saves, from the first epoch or a resume state to the last epoch.

    All ranks call the same functions in the same order.

    Args:
        trainer: Performs the training steps.
        batches: Training images; their generator draws order and augmentation.
        validator: Computes the accuracies that choose the best checkpoints.
        folder: Writes checkpoints and results. Its config holds schedule and seed.
        metadata: What every checkpoint stores besides the weights.
    """

    def __init__(self, trainer: Trainer, batches: Batches, validator: Validator, folder: RunFolder, metadata: dict):
        self.trainer, self.batches, self.validator, self.folder = trainer, batches, validator, folder
        self.metadata, self.config = metadata, folder.config

    def run(self, state: dict | None, signals: Signals) -> None:
        """Train until ``config.epochs`` epochs are done; a resume ``state`` holds the finished epochs and batches.

        Signals are deferred to the end of a training step or a validation batch. Raises UserError if a loss or a
        weight is nan or inf, without saving it, or if a file cannot be written; Stopped, after saving, on a signal.
        """
        self.signals, self.last_save = signals, time.monotonic()
        finished, metrics = 0, self._new_metrics()
        if state:
            finished, metrics = state["epochs"], self._new_metrics(state["metrics"])
            batches = f" and {metrics.batches} of {len(self.batches)} batches" if metrics.batches else ""
            logger.info("resuming after epoch %d of %d%s", finished, self.config.epochs, batches)
        signals.deferred = True
        for epoch in range(finished, self.config.epochs):
            self._run_epoch(epoch, metrics)
            metrics = self._new_metrics()
        signals.deferred = False

    def _run_epoch(self, epoch: int, metrics: EpochMetrics) -> None:
        """Train, validate and save one epoch (from 0); ``metrics`` has the batches that an earlier process trained."""
        start, images_before = time.monotonic(), metrics.images
        self._train(epoch, metrics)
        means = metrics.means()  # waits for the device
        trained = time.monotonic()
        row = {"epoch": epoch + 1, "lr": learning_rate(epoch, self.config, done=1), **means}
        if (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.config.epochs:
            clean, robust = self.validator(lambda: self._save_or_stop(epoch, metrics))
            row |= {"clean_acc": clean.accuracy, "PGD10_acc": robust.accuracy}
            row |= {"clean_loss": clean.loss, "PGD10_loss": robust.loss}
        self._require_finite(epoch, *(value for key, value in row.items() if key.endswith("_loss")))
        row["images_per_s"] = (metrics.images - images_before) / (trained - start) or None
        row["peak_memory_mib"] = peak_memory_mib(self.batches.device)
        self._save_epoch(epoch, row, metrics)
        self._log_epoch(row, trained - start, time.monotonic() - trained)

    def _train(self, epoch: int, metrics: EpochMetrics) -> None:
        """Perform the remaining training steps of an epoch."""
        self.trainer.epsilon_scale = epsilon_scale(epoch, self.config)
        for x, y in self._training_batches(epoch, metrics.batches):
            lr = learning_rate(epoch, self.config, done=(metrics.batches + 1) / len(self.batches))
            for group in self.trainer.optimizer.param_groups:
                group["lr"] = lr
            metrics.add(self.trainer.step(x, y, epoch), y)
            self._save_or_stop(epoch, metrics)
        self.trainer.after_epoch(epoch, self._training_images(epoch, metrics))

    def _save_epoch(self, epoch: int, row: dict, metrics: EpochMetrics) -> None:
        """Write results and checkpoints; the resume state is last, so that an interruption repeats the epoch."""
        results = self.folder.results
        self.folder.add_row(row, metrics.reliability())
        # Official keys; there "epoch" counts from 0. The accuracies are None in epochs without validation.
        accuracies = {key: row.get(key) for key in ("clean_acc", "PGD10_acc")}
        checkpoint = {**self.trainer.weights(), "epoch": epoch, **self.metadata, **accuracies}
        # Strictly better than all earlier epochs, as in the official code.
        improved = [name for name, column in BEST.items() if results.best(column) is results.rows[-1]]
        self.folder.save(LAST, checkpoint, *improved)
        self._save_state(epoch + 1, self._new_metrics())

    def _log_epoch(self, row: dict, seconds: float, validation_seconds: float) -> None:
        clean, robust = (f"{row[key]:.2f}" if key in row else "-" for key in ("clean_acc", "PGD10_acc"))
        result = f"lr {row['lr']:g}  loss {row['train_loss']:.4f}  clean {clean}  PGD-10 {robust}"
        cost = f"{seconds:.0f} s, {row['images_per_s'] or 0:.0f} images/s; validation {validation_seconds:.0f} s"
        if row["peak_memory_mib"]:
            cost += f"; peak memory {row['peak_memory_mib']:.0f} MiB"
        logger.info("epoch %d/%d  %s  (%s)", row["epoch"], self.config.epochs, result, cost)

    def _training_batches(self, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch after the first ``done``; seed all generators by the number of each batch."""
        seed, title = self.config.seed, f"epoch {epoch + 1}/{self.config.epochs}"
        self.batches.generator.manual_seed(derive_seed(seed, "order", epoch))
        batches = progress_bar(len(self.batches), title, done, self.batches.skip(done))
        for number, batch in enumerate(batches, start=done):
            seed_everything(derive_seed(seed, "global", epoch, number))
            self.trainer.generator.manual_seed(derive_seed(seed, "noise", epoch, number))
            yield batch

    def _training_images(self, epoch: int, metrics: EpochMetrics) -> Iterator[Tensor]:
        """Yield the images of one pass over the training set, with an order and augmentation of their own seed."""
        self.batches.generator.manual_seed(derive_seed(self.config.seed, "statistics", epoch))
        for x, _ in progress_bar(len(self.batches), "BatchNorm", batches=self.batches):
            yield x
            self._save_or_stop(epoch, metrics)

    def _save_or_stop(self, epoch: int, metrics: EpochMetrics) -> None:
        """Save a state if it is due; save and stop after a signal. All ranks agree."""
        due = time.monotonic() - self.last_save >= 60 * self.config.save_minutes
        signal, due = self.trainer.processes.all_reduce_max([self.signals.received, due])
        if signal or due:
            self._save_state(epoch, metrics)
        if signal:
            raise stopped(signal, f"saved in {self.folder.path}; --resume continues")

    def _save_state(self, epochs: int, metrics: EpochMetrics) -> None:
        """Save what resuming needs after ``epochs`` epochs and the batches of ``metrics``."""
        sums = metrics.state()
        self._require_finite(epochs, sums["loss"])
        self.folder.save_state({**self.trainer.state(), **self.metadata, "epochs": epochs, "metrics": sums})
        self.last_save = time.monotonic()

    def _new_metrics(self, state: dict | None = None) -> EpochMetrics:
        options = {"teacher": self.config.log_reliability, "parts": self.trainer.parts}
        return EpochMetrics(self.batches.device, self.trainer.processes, state, **options)

    def _require_finite(self, epoch: int, *losses: float) -> None:
        groups = self.trainer.optimizer.param_groups  # also a second network that the method trains
        weights = all(value.isfinite().all() for group in groups for value in group["params"])
        if not (weights and all(map(math.isfinite, losses))):
            lr = groups[0]["lr"]
            problem = f"a loss or a weight is nan or inf in epoch {epoch + 1} at learning rate {lr:g}"
            hint = f"{self.folder.last_good()}; try a lower rate, or --warmup_lr"
            raise UserError(f"--lr_max {self.config.lr_max:g}: {problem}; {hint}")
