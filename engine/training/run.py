"""A training run: resolves its settings, builds its objects, trains, and logs its results."""

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from attacks.libraries import AUTOATTACK_CLASSES
from attacks.suite import PROTOCOLS, Setting
from data import Splits, decode_files, load_configured
from data.augment import AUGMENTATIONS
from engine.checkpoint import best_checkpoint
from engine.device import choose_device
from engine.distributed import SINGLE_PROCESS, TRAINING_TIMEOUT, Processes, destroy, init, is_peer_failure, local_gpu
from engine.fast.precision import choose_arithmetic
from engine.networks import find_teachers, make_network, make_teachers
from engine.training.build import Compute, Data, make_loop, make_validator, read_data, test_images
from engine.training.results import CURVES
from engine.training.run_folder import RunFolder
from engine.training.schedule import default_milestones
from engine.training.settings import log_config, resolve
from engine.training.signals import Signals
from methods import METHODS, SINGLE_PROCESS_ONLY
from models.normalized import normalize_input
from models.weights import DEEPMIND_LAYOUTS, Checkpoint
from utils.config import TrainConfig
from utils.errors import UserError, first_line
from utils.log import log_to_file, logger
from utils.seed import seed_everything


def train(config: TrainConfig, given: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Train as ``config`` says and return the run's folder; ``given`` maps fields that the user set to their source.

    Raises UserError for invalid input, in most cases before anything is written, and Stopped on a signal.
    """
    processes = init(TRAINING_TIMEOUT)
    try:
        with Signals() as signals:
            folder = _train(config, given, processes, signals)
    except torch.OutOfMemoryError as error:
        eval_bs = f" or --eval_bs {config.eval_bs}" if config.eval_bs else ""
        raise UserError(f"CUDA out of memory; reduce --bs {config.bs}{eval_bs}") from error
    except RuntimeError as error:
        if is_peer_failure(error, processes):
            raise UserError("torchrun: another process of this run has ended; --resume continues the run") from error
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            problem = f"torch.compile fails ({first_line(error)})"
            raise UserError(f"--compile {config.compile}: {problem}; use --compile off") from error
        raise
    destroy()  # only after success: it would wait for ranks that have failed
    return folder


def _train(config: TrainConfig, given: Mapping[str, str], processes: Processes, signals: Signals) -> Path:
    config, sources, compute, folder = processes.on_all_ranks(_prepare, config, given, processes)
    state = processes.on_rank0(folder.last_state)
    threads = config.threads or processes.on_rank0(folder.threads) or torch.get_num_threads()
    torch.set_num_threads(threads)
    if state and state["epochs"] >= config.epochs:
        logger.info("%s: all %d epochs are done", folder.path, state["epochs"])
        if folder.writes and not (folder.path / CURVES).exists():
            folder.results.restore(state)
            _finalize(config, load_configured(config), folder, compute)
        logger.info("evaluate: %s", command_for(config, folder.path, len(state["classes"])))
        return folder.path
    config = folder.config = replace(config, threads=threads, milestones=_milestones(config, state))
    teacher_files = processes.rank0_first(find_teachers, config)
    initial = None
    if config.model_path and not state:  # a state contains the weights; the file may no longer exist
        initial = processes.on_all_ranks(Checkpoint, config.model_path, config.weights, config.normalize)
    data = processes.rank0_first(read_data, config)
    seed_everything(config.seed)
    student = processes.on_all_ranks(make_student, config, data.splits, initial, state).to(compute.device)
    teachers = processes.on_all_ranks(make_teachers, config, teacher_files, data.splits, compute.device)
    loop = make_loop(folder, data, student, teachers, compute)
    del teacher_files, initial, teachers  # the trainer keeps folded copies
    if state:
        processes.on_all_ranks(folder.require_same_data, state, loop.metadata)
        folder.results.restore(state)
        loop.trainer.restore(state)
        state = {key: state[key] for key in ("epochs", "metrics")}  # frees the memory of the weights
    with ExitStack() as stack:
        stack.callback(folder.close)
        processes.on_rank0(folder.create, state, data.skipped)
        if processes.is_rank0:
            stack.enter_context(log_to_file(folder.path / "log.txt"))
        log_config(config, sources, folder.path, (data.training, data.validation), compute.device)
        _log_computation(config, data, compute)
        loop.run(state, signals)
        if processes.is_rank0:
            _finalize(config, data.splits, folder, compute)
            logger.info("evaluate: %s", command_for(config, folder.path, len(data.splits.classes)))
    return folder.path


def _prepare(
    config: TrainConfig, given: Mapping[str, str], processes: Processes
) -> tuple[TrainConfig, dict[str, str], Compute, RunFolder]:
    """Return the settings of the run with their sources, how it computes, and its folder, which is not created yet."""
    config, sources = resolve(config, given)
    _check_processes(config, processes)
    device = choose_device(config.device, local_gpu(config.gpu_id))
    arithmetic, description = choose_arithmetic(config.precision, config.compile, device)
    return config, sources, Compute(device, arithmetic, description, processes), RunFolder(config, processes.is_rank0)


def make_student(config: TrainConfig, splits: Splits, initial: Checkpoint | None, state: dict | None) -> nn.Module:
    """Build the student, for a resume ``state`` with the layout and normalization that the file it began with had."""
    weights = state["net"] if state else {}
    name = DEEPMIND_LAYOUTS.get(config.model, config.model) if "init_conv.weight" in weights else config.model
    student = make_network(name, initial, config.dataset, splits)
    if "mean" in weights and "mean" not in student.state_dict():
        student = normalize_input(student, weights["mean"], weights["std"])
    return student


def command_for(config: TrainConfig, folder: Path, classes: int) -> str:
    """Return the command that evaluates the run in ``folder`` from the current working directory."""
    script = Path(__file__).resolve().parents[2] / "main_eval.py"
    args = ["python", script.name if script.parent == Path.cwd() else str(script), "--model_path", str(folder)]
    for name in ("data_root", "cache_dir", "skip_damaged", "max_pixels", "device", "gpu_id"):
        value = getattr(config, name)
        if value != getattr(TrainConfig, name):
            args += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if config.epsilon != TrainConfig.epsilon:
        args += ["--eps", f"{str(config.epsilon).removesuffix('.0')}/255"]
    if classes < AUTOATTACK_CLASSES:
        args += ["--attacks", ",".join(key for key in PROTOCOLS["paper"](Setting(0.0, 0)) if key != "aa")]
    return shlex.join(args)


def _check_processes(config: TrainConfig, processes: Processes) -> None:
    count = processes.count
    least = count * config.accumulate
    if config.bs < least:
        factor = " times --accumulate" if config.accumulate > 1 else ""
        raise UserError(f"--bs {config.bs}: must be at least the number of processes{factor}, {least}")
    method = METHODS[config.method](config)
    if count > 1 and (config.method in SINGLE_PROCESS_ONLY or hasattr(method, "parameters")):
        raise UserError(f"--method {config.method}: supports a single process only; start it without torchrun")
    if count > 1 and config.device.startswith("cuda:"):
        raise UserError(f"--device {config.device}: under torchrun each process uses its own GPU; use --device cuda")


def _milestones(config: TrainConfig, state: dict | None) -> tuple[int, ...] | None:
    """Return the milestones; a resumed run keeps the defaults of its first start, even if --epochs has changed."""
    if config.lr_schedule != "piecewise" or config.milestones is not None:
        return config.milestones
    defaults = default_milestones(config.epochs)
    milestones = tuple(state["config"]["milestones"]) if state else defaults
    if milestones != defaults:
        old, new = (" ".join(map(str, values)) for values in (milestones, defaults))
        message = "WARNING: the run keeps its milestones %s; a new run with --epochs %d would use %s"
        logger.warning(message, old, config.epochs, new)
    return milestones


def _log_computation(config: TrainConfig, data: Data, compute: Compute) -> None:
    """Log what is done to training images, and how the networks are computed."""
    mirrored = "mirrored with probability 1/2 (--no-flip: never)"
    if not data.splits.flip:
        mirrored = "not mirrored (mirroring may change the class)"
    elif not config.flip:
        mirrored = "not mirrored (--no-flip)"
    logger.info("training images are %s; %s", AUGMENTATIONS[config.augment][1], mirrored)
    if data.extra:
        logger.info("%s", data.extra.describe(len(data.training.labels), config.bs))
    logger.info("%s", compute.description)
    if compute.processes.count > 1:
        whole = "a whole part" if config.accumulate > 1 else "the whole batch"
        norm = f"normalizes over {whole}" if config.sync_bn else "normalizes over each process's share"
        logger.info("%d processes share each batch of %d; BatchNorm %s", compute.processes.count, config.bs, norm)


def _finalize(config: TrainConfig, splits: Splits, folder: RunFolder, compute: Compute) -> None:
    """Log the best epochs and, with ``--val_size``, the best checkpoint's test accuracy; then draw the curves."""
    for column, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        if row := folder.results.best(column):
            logger.info("best %s accuracy: %.2f %%, epoch %d", title, row[column], row["epoch"])
    best = folder.path / best_checkpoint(config.method)
    if config.val_size and best.exists():
        network = make_network(config.model, best, config.dataset, splits).to(compute.device)
        rank0_only = compute._replace(processes=SINGLE_PROCESS)
        (images,) = decode_files(test_images(splits, config))
        clean, robust = make_validator(network, images, config, rank0_only)()
        logger.info("%s on the test images: clean %.2f %%, PGD-10 %.2f %%", best.name, clean.accuracy, robust.accuracy)
    folder.draw()
