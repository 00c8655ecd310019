"""From the first epoch to the last: train, judge, save."""

import math
import time
from collections.abc import Callable

import torch

from engine.evaluate import Perturb, Score, evaluate
from engine.run_folder import BEST_CLEAN, BEST_PGD10, LAST, RunFolder, identity
from engine.schedule import learning_rate
from engine.trainer import EpochMeans, Trainer
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import logger, progress
from utils.seed import global_state, restore_global_state


def fit(
    trainer: Trainer,
    train,
    judge,
    pgd10: Callable[[], Perturb],
    folder: RunFolder,
    generators: dict[str, torch.Generator],
    network: dict,
    state: dict | None = None,
) -> dict:
    """Train until ``folder.config.epochs`` epochs are done, and return the best figures and their epochs.

    Args:
        trainer: The loop of one epoch.
        train: Batches of the training set.
        judge: Batches of the images that choose the best checkpoint.
        pgd10: Makes the attack that judges an epoch.
        folder: Where checkpoints and results go; its config holds the schedule.
        generators: The run's own sources of chance by name, saved and restored with it.
        network: What recognises the network later (name, number of classes, ...), stored in each checkpoint.
        state: Last checkpoint of an interrupted run, to continue exactly from there.

    Raises UserError when the loss is no longer finite; nothing of that epoch is saved.
    """
    config = folder.config
    start, best = _restore(state, trainer, generators) if state else (0, {})
    if start:
        logger.info("resuming after epoch %d of %d", start, config.epochs)
    for epoch in range(start, config.epochs):
        began, lr = time.monotonic(), _rate(epoch, config)
        means = trainer.epoch(progress(train, f"epoch {epoch + 1}/{config.epochs}"), epoch, lr)
        if not math.isfinite(means.loss):
            wrong = f"the loss of epoch {epoch + 1} is {means.loss}"
            raise UserError(f"--lr_max {config.lr_max:g}: {wrong}; try a lower rate")
        trained = time.monotonic()
        clean, robust = evaluate(trainer.student, judge), evaluate(trainer.student, judge, pgd10())
        checkpoint = {"net": trainer.student.state_dict(), "epoch": epoch, **network}
        checkpoint |= {"clean_acc": clean.accuracy, "PGD10_acc": robust.accuracy}
        _keep_best(checkpoint, best, folder)
        folder.add_row(_row(epoch, lr, means, clean, robust))
        folder.save(LAST, checkpoint | _resume_state(trainer, generators, best, config))
        seconds = f"{trained - began:.0f} s training, {time.monotonic() - trained:.0f} s evaluation"
        logger.info(
            *("epoch %d/%d  lr %g  loss %.4f  clean %.2f  PGD-10 %.2f  (%s)", epoch + 1, config.epochs, lr),
            *(means.loss, clean.accuracy, robust.accuracy, seconds),
        )
    return best


def _row(epoch: int, lr: float, means: EpochMeans, clean: Score, robust: Score) -> dict:
    """One line of results.csv."""
    trained = {"train_loss": means.loss, "train_clean_acc": means.clean_acc, "train_adv_acc": means.adv_acc}
    judged = {"clean_loss": clean.loss, "clean_acc": clean.accuracy}
    judged |= {"PGD10_loss": robust.loss, "PGD10_acc": robust.accuracy}
    return {"epoch": epoch, "lr": lr, **trained, **judged}


def _rate(epoch: int, config: TrainConfig) -> float:
    return learning_rate(
        epoch,
        epochs=config.epochs,
        lr_max=config.lr_max,
        schedule=config.lr_schedule,
        milestones=config.milestones,
        warmup_epochs=config.warmup_lr_epochs if config.warmup_lr else 0,
    )


def _keep_best(checkpoint: dict, best: dict, folder: RunFolder) -> None:
    """Save the checkpoint under each name whose figure it improves (strictly, as the official code)."""
    for figure, name in (("PGD10_acc", BEST_PGD10), ("clean_acc", BEST_CLEAN)):
        if figure not in best or checkpoint[figure] > best[figure]["value"]:
            best[figure] = {"value": checkpoint[figure], "epoch": checkpoint["epoch"]}
            folder.save(name, checkpoint)


def _resume_state(trainer: Trainer, generators: dict, best: dict, config: TrainConfig) -> dict:
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "best": best,
        "rng": global_state(),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "config": identity(config),
    }


def _restore(state: dict, trainer: Trainer, generators: dict) -> tuple[int, dict]:
    """Put everything back as it was after the saved epoch; return the next epoch and the best figures so far."""
    trainer.student.load_state_dict(state["net"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    restore_global_state(state["rng"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    return state["epoch"] + 1, state["best"]
