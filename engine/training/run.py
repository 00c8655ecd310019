"""A training run: from its config to its objects, then to the last epoch."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from attacks.libraries import AUTOATTACK_CLASSES
from attacks.suite import PROTOCOLS, Setting
from data import Split, Splits, fingerprint, hold_out, load, subset
from data.loader import Batches
from engine.checkpoint import BEST_PGD10
from engine.device import choose_device
from engine.distributed import SINGLE_PROCESS, TRAINING_TIMEOUT, Processes, destroy, init, is_peer_failure, local_gpu
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.networks import checksum, find_teachers, make_network, make_teachers
from engine.training.loop import Fit
from engine.training.run_folder import RunFolder
from engine.training.schedule import default_milestones
from engine.training.settings import log_config, resolve
from engine.training.signals import Signals
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from methods import METHODS, WITHOUT_TEACHER
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import log_to_file, logger
from utils.seed import derive_seed, seed_everything

CROP_PADDING = 4  # pixels of zeros around a training image before the random crop, as in every official code


def train(config: TrainConfig, given: Mapping[str, str] = MappingProxyType({})) -> None:
    """Carry out the whole run that ``config`` describes; ``given`` has the fields that the user set, and where.

    Raises UserError, before anything is written, for whatever the user can mend, and Stopped where a signal asked.
    """
    processes = init(TRAINING_TIMEOUT)
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        with Signals() as signals:
            _train(config, given, processes, signals)
    except torch.OutOfMemoryError as error:  # outside of the steps, which know what would fit
        raise UserError(f"--bs {config.bs}: the GPU's memory is full; a smaller one needs less") from error
    except RuntimeError as error:
        if is_peer_failure(error, processes):
            raise UserError("torchrun: another process of this run has ended; --resume continues the run") from error
        raise
    destroy()  # only after success: others may be waiting for what will not come, and this would wait for them


class Where(NamedTuple):
    """On what a run is computed, in what arithmetic, in the words of its log, and by whom."""

    device: torch.device
    arithmetic: Arithmetic
    words: str
    processes: Processes


def _train(config: TrainConfig, given: Mapping[str, str], processes: Processes, signals: Signals) -> None:
    config, sources = resolve(config, given)
    _require_images_for_all(config, processes)
    device = processes.on_all_ranks(lambda: choose_device(config.device, local_gpu(config.gpu_id), config.threads))
    where = Where(device, *choose_arithmetic(config.precision, config.compile, device), processes)
    teacher = None if config.method in WITHOUT_TEACHER else config.teacher_model
    folder = RunFolder(config, teacher=teacher, writes=processes.is_rank0)
    state = processes.on_rank0(folder.last_state)
    read = partial(load, config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    if state and state["epochs"] >= config.epochs:
        logger.info("%s: all %d epochs are done", folder.path, state["epochs"])
        if folder.writes and not folder.finalized:
            folder.restore(state)
            _finalize(config, read(), folder, device)
        logger.info("evaluate: %s", command_for(config, folder.path, len(state["classes"])))
        return
    if config.lr_schedule == "piecewise" and config.milestones is None:
        usual = default_milestones(config.epochs)
        milestones = tuple(state["config"]["milestones"]) if state else usual
        if milestones != usual:
            kept, new = (" ".join(map(str, values)) for values in (milestones, usual))
            words = "WARNING: the milestones stay those of the first start, %s; a run of --epochs %d begun anew has %s"
            logger.warning(words, kept, config.epochs, new)
        folder.config = config = replace(config, milestones=milestones)
    files = processes.on_all_ranks(lambda: find_teachers(config))
    splits = processes.rank0_first(read)
    images = _choose_images(splits, config)
    seed_everything(config.seed)
    networks = processes.on_all_ranks(lambda: _make_networks(config, splits, files, device))
    fit = _make_fit(config, splits, images, networks, folder, state, where)
    del networks  # a teacher's own weights are not needed beside its view
    processes.on_rank0(lambda: folder.create(state))
    if processes.is_rank0:
        log_to_file(folder.path / "log.txt")
    log_config(config, sources, folder.path, images, device)
    _tell_of(where, config)
    fit.run(state, signals)
    if processes.is_rank0:
        _finalize(config, splits, folder, device)
        logger.info("evaluate: %s", command_for(config, folder.path, len(splits.classes)))


def _make_fit(
    config: TrainConfig,
    splits: Splits,
    images: tuple[Split, Split],
    networks: tuple,
    folder: RunFolder,
    state: dict | None,
    where: Where,
) -> Fit:
    """All that a run needs, put where ``state`` left off if there is one."""
    device, arithmetic, _, processes = where
    student, teachers = networks
    metadata = _metadata(config, splits, images, teachers, arithmetic)
    trainer = _make_trainer(config, student, teachers, where)
    if state:
        processes.on_all_ranks(lambda: folder.require_same(state, metadata))
        folder.restore(state)
        trainer.restore(state)
        del state["net"], state["optimizer"]  # as large as the networks
    batches = partial(Batches, batch_size=config.bs, device=device)
    shuffled = batches(images[0], shuffle=True, crop=CROP_PADDING, flip=splits.flip, generator=torch.Generator())
    judge = _validator(student, batches(images[1]), config, processes)
    return Fit(trainer, shuffled, judge, folder, metadata, processes)


def command_for(config: TrainConfig, folder: Path, classes: int) -> str:
    """The command that evaluates what a training has left in ``folder``, from the present working directory."""
    script = Path(__file__).resolve().parents[2] / "main_eval.py"
    words = ["python", script.name if script.parent == Path.cwd() else str(script), "--model_path", str(folder)]
    for name in ("data_root", "device", "gpu_id"):
        if getattr(config, name) != getattr(TrainConfig, name):
            words += [f"--{name}", str(getattr(config, name))]
    if config.epsilon != TrainConfig.epsilon:
        words += ["--eps", f"{str(config.epsilon).removesuffix('.0')}/255"]
    if classes < AUTOATTACK_CLASSES:
        words += ["--attacks", ",".join(key for key in PROTOCOLS["paper"](Setting(0.0, 0)) if key != "aa")]
    return shlex.join(words)


def _tell_of(where: Where, config: TrainConfig) -> None:
    logger.info("%s", where.words)
    if where.processes.count > 1:
        norm = "over the whole batch" if config.sync_bn else "over each process's part"
        logger.info("%d processes share each batch of %d; BatchNorm %s", where.processes.count, config.bs, norm)


def _require_images_for_all(config: TrainConfig, processes: Processes) -> None:
    if config.bs < processes.count:
        raise UserError(f"--bs {config.bs}: is shared by {processes.count} processes; give each an image or more")
    if processes.count > 1 and config.device.startswith("cuda:"):
        raise UserError(f"--device {config.device}: each process of a torchrun takes a GPU of its own; --device cuda")


def _choose_images(splits: Splits, config: TrainConfig) -> tuple[Split, Split]:
    """Images to train on, and those that choose the best checkpoint."""
    if config.val_size:
        kept, judge = hold_out(splits.train, config.val_size, config.seed)
    else:
        kept, judge = splits.train, subset(splits.test, config.limit_test, config.seed)
    return subset(kept, config.limit_train, config.seed), judge


def _make_networks(config: TrainConfig, splits: Splits, teacher_files: list, device: torch.device) -> tuple:
    """The student, and its teachers."""
    student = make_network(config.model, config.model_path, config.dataset, splits).to(device)
    return student, make_teachers(config, teacher_files, splits, device)


def _make_trainer(config: TrainConfig, student: nn.Module, teachers: list[nn.Module], where: Where) -> Trainer:
    return Trainer(
        student,
        teachers,
        METHODS[config.method](config),
        _optimizer(student, config),
        epsilon=config.epsilon / 255,
        step_size=config.step_size / 255,
        steps=config.num_steps,
        attack_bn=config.attack_bn,
        generator=torch.Generator(where.device),
        arithmetic=where.arithmetic,
        processes=where.processes,
        sync_bn=config.sync_bn,
    )


def _metadata(config: TrainConfig, splits: Splits, images: tuple, teachers: list, arithmetic: Arithmetic) -> dict:
    """What each checkpoint says of itself: the network for whoever opens it, data and teachers for resuming."""
    names = {"model": config.model, "dataset": config.dataset, "method": config.method}
    shape = {"classes": list(splits.classes), "image_size": splits.image_size}
    sums = {"images": [fingerprint(part) for part in images], "teachers": [checksum(teacher) for teacher in teachers]}
    return {**names, **shape, **sums, "arithmetic": str(arithmetic.dtype or "float32")}


def _optimizer(student, config: TrainConfig) -> torch.optim.Optimizer:
    # Weight decay on every parameter, BatchNorm and biases too, as in every official code.
    settings = {"lr": config.lr_max, "weight_decay": config.weight_decay, "fused": True}
    if config.optim == "Adam":
        return torch.optim.Adam(student.parameters(), **settings)
    return torch.optim.SGD(student.parameters(), momentum=config.momentum, **settings)


def _validator(
    network: nn.Module, batches: Batches, config: TrainConfig, processes: Processes = SINGLE_PROCESS
) -> Validator:
    return Validator(network, batches, config.epsilon / 255, derive_seed(config.seed, "judge"), processes)


def _finalize(config: TrainConfig, splits: Splits, folder: RunFolder, device: torch.device) -> None:
    """Name the best epochs, say what validation's choice reaches on the test set, and draw the curves last of all."""
    for figure, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        row = folder.best(figure)
        logger.info("best %s accuracy: %.2f %%, epoch %d", title, row[figure], row["epoch"] + 1)
    if config.val_size:
        best = folder.path / BEST_PGD10
        network = make_network(config.model, str(best), config.dataset, splits).to(device)
        test = Batches(subset(splits.test, config.limit_test, config.seed), config.bs, device=device)
        clean, robust = _validator(network, test, config)()
        logger.info("%s on the test images: clean %.2f %%, PGD-10 %.2f %%", best.name, clean.accuracy, robust.accuracy)
    folder.draw()
