"""A training run: from its config to its objects, then to the last epoch."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from data import Split, Splits, fingerprint, hold_out, load, subset
from data.loader import Batches
from engine.device import choose_device
from engine.fit import fit
from engine.judge import Judge
from engine.networks import checksum, find_teachers, make_network, make_teachers
from engine.precision import Arithmetic, choose_arithmetic
from engine.run_folder import BEST_PGD10, RunFolder
from engine.schedule import milestones_of
from engine.settings import announce, resolve
from engine.trainer import Trainer
from methods import METHODS, WITHOUT_TEACHER
from utils.config import TrainConfig
from utils.log import log_to_file, logger
from utils.seed import epoch_seed, seed_everything

CROP_PADDING = 4  # pixels of zeros around a training image before the random crop, as in every official code
GLOBAL, ORDER, NOISE, JUDGE = range(4)  # a run's streams of chance


def train(config: TrainConfig, given: frozenset[str] = frozenset()) -> None:
    """Carry out the whole run that ``config`` describes; ``given`` names the fields that the user chose.

    Raises UserError, before anything is written, for whatever the user can mend.
    """
    config, sources = resolve(config, given)
    device = choose_device(config.device, config.gpu_id, config.threads)
    arithmetic, words = choose_arithmetic(config.precision, config.compile, device)
    folder = RunFolder(config, teacher=None if config.method in WITHOUT_TEACHER else config.teacher_model)
    state = folder.last_state()
    if state and state["epoch"] + 1 >= config.epochs:
        return logger.info("%s: all %d epochs are done", folder.path, state["epoch"] + 1)
    if config.lr_schedule == "piecewise" and config.milestones is None:
        milestones = tuple(state["config"]["milestones"]) if state else milestones_of(config.epochs)
        folder.config = config = replace(config, milestones=milestones)
    files = find_teachers(config)
    splits = load(config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    trained_on, judged_on = _choose_images(splits, config)

    seed_everything(config.seed)
    trainer = _make_trainer(config, splits, files, device, arithmetic)
    batches = partial(Batches, batch_size=config.bs, device=device)
    order = torch.Generator()
    shuffled = batches(trained_on, shuffle=True, crop=CROP_PADDING, flip=splits.flip, generator=order)
    facts = _facts(config, splits, [fingerprint(trained_on), fingerprint(judged_on)], trainer)
    if state:
        folder.restore(state, facts)
        trainer.restore(state)
    folder.create()
    log_to_file(folder.path / "log.txt")
    announce(config, sources, folder.path, len(trained_on.labels), len(judged_on.labels), device)
    logger.info("%s", words)

    def reseed(epoch: int) -> None:
        seed_everything(epoch_seed(config.seed, epoch, GLOBAL))
        order.manual_seed(epoch_seed(config.seed, epoch, ORDER))
        trainer.generator.manual_seed(epoch_seed(config.seed, epoch, NOISE))

    judge = _judge(trainer.student, batches(judged_on), config)
    fit(trainer, shuffled, judge, folder, reseed, facts, start=state["epoch"] + 1 if state else 0)
    _conclude(config, splits, folder, device)


def _choose_images(splits: Splits, config: TrainConfig) -> tuple[Split, Split]:
    """Images to train on, and those that choose the best checkpoint."""
    if config.val_size:
        kept, judge = hold_out(splits.train, config.val_size, config.seed)
    else:
        kept, judge = splits.train, subset(splits.test, config.limit_test, config.seed)
    return subset(kept, config.limit_train, config.seed), judge


def _make_trainer(
    config: TrainConfig, splits: Splits, teacher_files: list, device: torch.device, arithmetic: Arithmetic
) -> Trainer:
    student = make_network(config.model, config.model_path, config.dataset, splits).to(device)
    return Trainer(
        student,
        make_teachers(config, teacher_files, splits, device),
        METHODS[config.method](config),
        _optimizer(student, config),
        epsilon=config.epsilon / 255,
        step_size=config.step_size / 255,
        steps=config.num_steps,
        attack_bn=config.attack_bn,
        generator=torch.Generator(device),
        arithmetic=arithmetic,
    )


def _facts(config: TrainConfig, splits: Splits, images: list[int], trainer: Trainer) -> dict:
    """What each checkpoint says of itself: the network for whoever opens it, data and teachers for resuming."""
    names = {"model": config.model, "dataset": config.dataset, "method": config.method}
    shape = {"classes": list(splits.classes), "image_size": splits.image_size}
    return {**names, **shape, "images": images, "teachers": [checksum(t) for t in trainer.teachers]}


def _optimizer(student, config: TrainConfig) -> torch.optim.Optimizer:
    # Weight decay on every parameter, BatchNorm and biases too, as in every official code.
    settings = {"lr": config.lr_max, "weight_decay": config.weight_decay, "fused": True}
    if config.optim == "Adam":
        return torch.optim.Adam(student.parameters(), **settings)
    return torch.optim.SGD(student.parameters(), momentum=config.momentum, **settings)


def _judge(network: nn.Module, batches: Batches, config: TrainConfig) -> Judge:
    return Judge(network, batches, config.epsilon / 255, epoch_seed(config.seed, 0, JUDGE))


def _conclude(config: TrainConfig, splits: Splits, folder: RunFolder, device: torch.device) -> None:
    """Draw the curves and name the best epochs; say what validation's choice reaches on the test set."""
    folder.draw()
    for figure, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        row = folder.best(figure)
        logger.info("best %s accuracy: %.2f %%, epoch %d", title, row[figure], row["epoch"] + 1)
    if config.val_size:
        best = folder.path / BEST_PGD10
        network = make_network(config.model, str(best), config.dataset, splits).to(device)
        test = Batches(subset(splits.test, config.limit_test, config.seed), config.bs, device=device)
        clean, robust = _judge(network, test, config)()
        logger.info("%s on the test images: clean %.2f %%, PGD-10 %.2f %%", best.name, clean.accuracy, robust.accuracy)
