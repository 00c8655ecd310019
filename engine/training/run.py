"""A training run: builds its objects from the config, trains, and logs its results."""

import logging
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.libraries import AUTOATTACK_CLASSES
from attacks.suite import PROTOCOLS, Setting
from data import TEST_SUBSET_SEED, Split, Splits, decode_files, fingerprint, hold_out, load_configured, subset
from data.augment import AUGMENTATIONS, MIRROR
from data.extra import ExtraData, open_extra
from data.loader import Batches
from engine.checkpoint import best_checkpoint
from engine.device import choose_device
from engine.distributed import SINGLE_PROCESS, TRAINING_TIMEOUT, Processes, destroy, init, is_peer_failure, local_gpu
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.networks import checksum, find_teachers, make_network, make_teachers
from engine.training.averaging import Ema, Swa
from engine.training.loop import TrainingLoop
from engine.training.run_folder import CURVES, RunFolder
from engine.training.schedule import default_milestones
from engine.training.settings import log_config, resolve
from engine.training.signals import Signals
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS, SINGLE_PROCESS_ONLY, WITHOUT_TEACHER
from models.weights import Checkpoint
from utils.config import TrainConfig
from utils.errors import UserError
from utils.log import log_to_file, logger
from utils.seed import derive_seed, seed_everything


def train(config: TrainConfig, given: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Train as ``config`` says and return the run's folder; ``given`` maps fields that the user set to their source.

    Raises UserError for invalid input, in most cases before anything is written, and Stopped on a signal.
    """
    processes = init(TRAINING_TIMEOUT)
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        with Signals() as signals:
            folder = _train(config, given, processes, signals)
    except torch.OutOfMemoryError as error:
        eval_bs = f" or --eval_bs {config.eval_bs}" * bool(config.eval_bs)
        raise UserError(f"CUDA out of memory; reduce --bs {config.bs}{eval_bs}") from error
    except RuntimeError as error:
        if is_peer_failure(error, processes):
            raise UserError("torchrun: another process of this run has ended; --resume continues the run") from error
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = str(error).partition("\n")[0]
            raise UserError(f"--compile {config.compile}: torch.compile fails ({reason}); use --compile off") from error
        raise
    destroy()  # only after success: it would wait for ranks that have failed
    return folder


class Compute(NamedTuple):
    """Device, arithmetic with a ``description`` for the log, and ranks of a run."""

    device: torch.device
    arithmetic: Arithmetic
    description: str
    processes: Processes


def _train(config: TrainConfig, given: Mapping[str, str], processes: Processes, signals: Signals) -> Path:
    config, sources = processes.on_all_ranks(resolve, config, given)
    processes.on_all_ranks(_check_processes, config, processes)
    device = processes.on_all_ranks(choose_device, config.device, local_gpu(config.gpu_id), config.threads)
    compute = Compute(device, *choose_arithmetic(config.precision, config.compile, device), processes)
    teacher = None if config.method in WITHOUT_TEACHER else config.teacher_model
    folder = RunFolder(config, teacher=teacher, writes=processes.is_rank0)
    state = processes.on_rank0(folder.last_state)
    threads = config.threads or processes.on_rank0(folder.threads) or torch.get_num_threads()
    torch.set_num_threads(threads)
    folder.config = config = replace(config, threads=threads)
    if state and state["epochs"] >= config.epochs:
        logger.info("%s: all %d epochs are done", folder.path, state["epochs"])
        if folder.writes and not (folder.path / CURVES).exists():
            folder.restore(state)
            _finalize(config, load_configured(config), folder, compute)
        logger.info("evaluate: %s", command_for(config, folder.path, len(state["classes"])))
        return folder.path
    folder.config = config = _with_milestones(config, state)
    found = processes.rank0_first(find_teachers, config)
    # A resume state contains the weights; the file that initialized them may no longer exist.
    starts = config.model_path and not state
    start = Checkpoint(config.model_path, config.weights, config.normalize) if starts else ""
    splits, images = processes.rank0_first(_read, config, folder)
    extra = processes.on_all_ranks(open_extra, config, splits.image_size, len(splits.classes))
    seed_everything(config.seed)
    student = processes.on_all_ranks(make_network, config.model, start, config.dataset, splits).to(device)
    teachers = processes.on_all_ranks(make_teachers, config, found, splits, device)
    loop = _make_loop(folder, splits, images, extra, student, teachers, state, compute)
    del teachers  # the trainer keeps folded copies
    with ExitStack() as stack:
        stack.callback(folder.close)
        processes.on_rank0(folder.create, state)
        if processes.is_rank0:
            stack.enter_context(log_to_file(folder.path / "log.txt"))
        log_config(config, sources, folder.path, images, device)
        _log_images(config, splits, len(images[0].labels), extra)
        logger.info("%s", compute.description)
        if processes.count > 1:
            norm = "normalizes over the whole batch" if config.sync_bn else "normalizes over each process's share"
            logger.info("%d processes share each batch of %d; BatchNorm %s", processes.count, config.bs, norm)
        loop.run(state, signals)
        if processes.is_rank0:
            _finalize(config, splits, folder, compute)
            logger.info("evaluate: %s", command_for(config, folder.path, len(splits.classes)))
    return folder.path


def command_for(config: TrainConfig, folder: Path, classes: int) -> str:
    """Return the command that evaluates the run in ``folder`` from the current working directory."""
    script = Path(__file__).resolve().parents[2] / "main_eval.py"
    args = ["python", script.name if script.parent == Path.cwd() else str(script), "--model_path", str(folder)]
    for name in ("data_root", "cache_dir", "skip_damaged", "max_pixels", "device", "gpu_id"):
        if (value := getattr(config, name)) != getattr(TrainConfig, name):
            args += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if config.epsilon != TrainConfig.epsilon:
        args += ["--eps", f"{str(config.epsilon).removesuffix('.0')}/255"]
    if classes < AUTOATTACK_CLASSES:
        args += ["--attacks", ",".join(key for key in PROTOCOLS["paper"](Setting(0.0, 0)) if key != "aa")]
    return shlex.join(args)


def _check_processes(config: TrainConfig, processes: Processes) -> None:
    count = processes.count
    if config.bs < count:
        raise UserError(f"--bs {config.bs}: must be at least the number of processes, {count}")
    if count > 1 and config.method in SINGLE_PROCESS_ONLY:
        raise UserError(f"--method {config.method}: supports a single process only; start it without torchrun")
    if count > 1 and config.device.startswith("cuda:"):
        raise UserError(f"--device {config.device}: under torchrun each process uses its own GPU; use --device cuda")


def _with_milestones(config: TrainConfig, state: dict | None) -> TrainConfig:
    """Fill in default milestones; a resumed run keeps those of its first start, even if --epochs has changed."""
    if config.lr_schedule != "piecewise" or config.milestones is not None:
        return config
    defaults = default_milestones(config.epochs)
    milestones = tuple(state["config"]["milestones"]) if state else defaults
    if milestones != defaults:
        old, new = (" ".join(map(str, values)) for values in (milestones, defaults))
        message = "WARNING: the run keeps its milestones %s; a new run with --epochs %d would use %s"
        logger.warning(message, old, config.epochs, new)
    return replace(config, milestones=milestones)


def _read(config: TrainConfig, folder: RunFolder) -> tuple[Splits, list[Split]]:
    """Return the dataset, and the decoded images for training and for choosing the best checkpoint."""
    splits = load_configured(config)
    training, validation = splits.train, _test_images(splits, config)
    if config.val_size:
        # The same for every --seed, so that a teacher trained with --val_size was not trained on them either.
        training, validation = hold_out(splits.train, config.val_size, TEST_SUBSET_SEED)
    chosen = subset(training, config.limit_train, config.seed), validation
    images = decode_files(*chosen)
    folder.skipped_images = sum(len(part.labels) for part in chosen) - sum(len(part.labels) for part in images)
    return splits, images


def _test_images(splits: Splits, config: TrainConfig) -> Split:
    """Return ``--limit_test`` test images, the same for every ``--seed``, so that seeds are comparable."""
    return subset(splits.test, config.limit_test, TEST_SUBSET_SEED)


def _make_loop(
    folder: RunFolder,
    splits: Splits,
    images: list[Split],
    extra: ExtraData | None,
    student: nn.Module,
    teachers: list[nn.Module],
    state: dict | None,
    compute: Compute,
) -> TrainingLoop:
    """Create the objects of a run and restore them from ``state`` if there is one."""
    config, (training, validation) = folder.config, images
    # What each checkpoint stores besides weights: names to load it by, checksums that a resumed run must match.
    metadata = {key: getattr(config, key) for key in ("model", "dataset", "method")}
    metadata |= {"classes": list(splits.classes), "image_size": splits.image_size}
    metadata["images"] = [fingerprint(part) for part in images] + (extra.checksums if extra else [])
    metadata["teachers"] = [checksum(teacher) for teacher in teachers]
    metadata["arithmetic"] = str(compute.arithmetic.dtype or "float32")
    transforms, _ = AUGMENTATIONS[config.augment]
    batches = Batches(
        training,
        config.bs,
        device=compute.device,
        shuffle=True,
        transforms=[each for each in transforms if each is not MIRROR or (config.flip and splits.flip)],
        mix_classes=len(splits.classes) if config.augment == "cutmix" else 0,
        extra=extra,
        generator=torch.Generator(),
    )
    average = Ema(student, config.ema) if config.ema else None
    if config.swa_start:
        average = Swa(student, config.swa_start - 1, compute.arithmetic)
    trainer = Trainer(
        student,
        teachers,
        METHODS[config.method](config),
        _make_optimizer(student, config),
        epsilon=config.epsilon / 255,
        step_size=config.step_size / 255,
        steps=config.num_steps,
        attack_bn=config.attack_bn,
        generator=torch.Generator(compute.device),
        arithmetic=compute.arithmetic,
        processes=compute.processes,
        sync_bn=config.sync_bn,
        clip_grad=config.clip_grad,
        parts=config.accumulate,
        average=average,
        perturbation=WeightPerturbation(student, config.awp, config.awp_warmup - 1) if config.awp else None,
        make_network=lambda: make_network(config.model, "", config.dataset, splits).to(compute.device),
        steps_per_epoch=len(batches),
    )
    if state:
        compute.processes.on_all_ranks(folder.require_same_data, state, metadata)
        folder.restore(state)
        trainer.restore(state)
        for key in ("net", "net_raw", "optimizer", "method_state"):  # frees memory
            state.pop(key, None)
    if extra and config.extra_labels == "teacher":
        predict = torch.no_grad()(lambda x: trainer.teachers[0](x.float() / 255).argmax(1))
        batches.extra = extra._replace(predict=predict)
    validator = _make_validator(trainer.network, validation, config, compute)
    return TrainingLoop(trainer, batches, validator, folder, metadata, compute.processes)


def _log_images(config: TrainConfig, splits: Splits, n: int, extra: ExtraData | None) -> None:
    reason = "--no-flip" if splits.flip else "mirroring may change the class"
    mirrors = config.flip and splits.flip
    mirrored = "mirrored with probability 1/2 (--no-flip: never)" if mirrors else f"not mirrored ({reason})"
    logger.info("training images are %s; %s", AUGMENTATIONS[config.augment][1], mirrored)
    if extra:
        logger.info("%s", extra.describe(n, config.bs))


def _make_optimizer(student: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # Weight decay applies to all parameters, BatchNorm and biases included, as in every official code.
    parameters = student.parameters()
    if config.no_bn_decay:
        norms = [p for module in student.modules() if isinstance(module, _BatchNorm) for p in module.parameters()]
        ids = set(map(id, norms))
        others = [parameter for parameter in parameters if id(parameter) not in ids]
        parameters = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    settings = {"lr": config.lr_max, "weight_decay": config.weight_decay, "fused": True}
    if config.optim == "Adam":
        return torch.optim.Adam(parameters, **settings)
    return torch.optim.SGD(parameters, momentum=config.momentum, nesterov=config.nesterov, **settings)


def _make_validator(network: nn.Module, images: Split, config: TrainConfig, compute: Compute) -> Validator:
    batches = Batches(images, config.eval_bs or config.bs, device=compute.device)
    seed = derive_seed(config.seed, "judge")  # another name would change all results
    return Validator(network, batches, config.epsilon / 255, seed, compute.processes, compute.arithmetic)


def _finalize(config: TrainConfig, splits: Splits, folder: RunFolder, compute: Compute) -> None:
    """Log the best epochs and, with ``--val_size``, the best checkpoint's test accuracy; then draw the curves."""
    for column, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        if row := folder.best(column):
            logger.info("best %s accuracy: %.2f %%, epoch %d", title, row[column], row["epoch"])
    best = folder.path / best_checkpoint(config.method)
    if config.val_size and best.exists():
        network = make_network(config.model, str(best), config.dataset, splits).to(compute.device)
        rank0_only = compute._replace(processes=SINGLE_PROCESS)
        (images,) = decode_files(_test_images(splits, config))
        clean, robust = _make_validator(network, images, config, rank0_only)()
        logger.info("%s on the test images: clean %.2f %%, PGD-10 %.2f %%", best.name, clean.accuracy, robust.accuracy)
    folder.draw()
