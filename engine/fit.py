"""From the first epoch to the last: train, judge, save."""

import math
import time
from collections.abc import Callable

from engine.evaluate import Score
from engine.judge import Judge
from engine.run_folder import BEST_CLEAN, BEST_PGD10, LAST, RunFolder
from engine.schedule import learning_rate
from engine.trainer import EpochMeans, Trainer
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger, progress


def fit(
    trainer: Trainer, train, judge: Judge, folder: RunFolder, reseed: Callable[[int], None], facts: dict, start: int
) -> None:
    """Train from epoch ``start`` until ``folder.config.epochs`` epochs are done.

    Args:
        trainer: The loop of one epoch.
        train: Batches of the training set.
        judge: What chooses the best checkpoint.
        folder: Where checkpoints and results go; its config holds the schedule.
        reseed: Called with each epoch's number before it: seeds every source of chance.
        facts: What tells the network and its data later, stored in each checkpoint.
        start: First epoch; above 0 when ``folder`` was restored.

    Raises UserError when a loss is no longer finite; nothing of that epoch is saved.
    """
    config = folder.config
    if start:
        logger.info("resuming after epoch %d of %d", start, config.epochs)
    for epoch in range(start, config.epochs):
        began, lr = time.monotonic(), _rate(epoch, config)
        reseed(epoch)
        means = trainer.epoch(progress(train, f"epoch {epoch + 1}/{config.epochs}"), epoch, lr)
        trained = time.monotonic()
        clean, robust = judge()
        _require_finite(epoch, config, means.loss, clean.loss, robust.loss)
        checkpoint = {"net": trainer.student.state_dict(), "epoch": epoch, **facts}
        checkpoint |= {"clean_acc": clean.accuracy, "PGD10_acc": robust.accuracy}
        folder.add_row(_row(epoch, lr, means, clean, robust))
        for name in _improved(folder):
            folder.save(name, checkpoint)
        folder.save(LAST, checkpoint | {"optimizer": trainer.optimizer.state_dict()} | folder.state())
        seconds = f"{trained - began:.0f} s training, {time.monotonic() - trained:.0f} s evaluation"
        logger.info(
            *("epoch %d/%d  lr %g  loss %.4f  clean %.2f  PGD-10 %.2f  (%s)", epoch + 1, config.epochs, lr),
            *(means.loss, clean.accuracy, robust.accuracy, seconds),
        )


def _rate(epoch: int, config: TrainConfig) -> float:
    return learning_rate(
        epoch,
        epochs=config.epochs,
        lr_max=config.lr_max,
        schedule=config.lr_schedule,
        milestones=config.milestones,
        warmup_epochs=config.warmup_lr_epochs if config.warmup_lr else 0,
    )


def _require_finite(epoch: int, config: TrainConfig, *losses: float) -> None:
    if not all(map(math.isfinite, losses)):
        wrong = f"epoch {epoch + 1} ended with a loss of nan or inf"
        raise UserError(f"--lr_max {config.lr_max:g}: {wrong}; try a lower rate, or --warmup_lr")


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
