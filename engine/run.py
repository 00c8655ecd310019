"""A training run: from its config to its objects, then to the last epoch."""

from functools import partial

import torch

from attacks.suite import pgd10
from data import Split, Splits, hold_out, load, subset
from data.loader import Batches
from engine.device import choose_device
from engine.evaluate import evaluate
from engine.fit import fit
from engine.networks import make_network, make_teachers
from engine.run_folder import BEST_PGD10, RunFolder
from engine.settings import announce, resolve
from engine.trainer import Trainer
from methods import METHODS, WITHOUT_TEACHER
from utils.config import TrainConfig
from utils.log import log_to_file, logger
from utils.seed import seed_everything

CROP_PADDING = 4  # pixels of zeros around a training image before the random crop, as in every official code


def train(config: TrainConfig, given: frozenset[str] = frozenset()) -> None:
    """Carry out the whole run that ``config`` describes; ``given`` names the fields that the user chose.

    Raises UserError, before anything is written, for whatever the user can mend.
    """
    config, sources = resolve(config, given)
    device = choose_device(config.device, config.gpu_id)
    folder = RunFolder(config, teacher=None if config.method in WITHOUT_TEACHER else config.teacher_model)
    state = folder.last_state()

    seed_everything(config.seed)
    generators = {"order": _generator("cpu", config, 1), "noise": _generator(device, config, 2)}
    splits = load(config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    train_split, judge_split = _choose_images(splits, config)
    student = make_network(config.model, config.model_path, config.dataset, splits).to(device)
    trainer = Trainer(
        student,
        make_teachers(config, splits, device),
        METHODS[config.method](config),
        _optimizer(student, config),
        epsilon=config.epsilon / 255,
        step_size=config.step_size / 255,
        steps=config.num_steps,
        attack_bn=config.attack_bn,
        generator=generators["noise"],
    )
    batches = partial(Batches, batch_size=config.bs, device=device)
    shuffled = batches(train_split, shuffle=True, crop=CROP_PADDING, flip=splits.flip, generator=generators["order"])

    folder.create(resumed_at=state["epoch"] + 1 if state else 0)
    log_to_file(folder.path / "log.txt")
    judged_on = f"{len(judge_split.labels)} {'validation' if config.val_size else 'test'} images"
    logger.info("%s of %s on %s, run folder %s", config.method, config.model, config.dataset, folder.path)
    announce(config, sources)
    logger.info("%d training images; the best checkpoint is chosen on %s", len(train_split.labels), judged_on)
    logger.info("device %s, %d threads, PyTorch %s", device, torch.get_num_threads(), torch.__version__)
    identity = {"model": config.model, "dataset": config.dataset, "method": config.method}
    identity |= {"num_classes": len(splits.classes), "image_size": splits.image_size}
    judge, attack = batches(judge_split), partial(_judge, config, device)
    best = fit(trainer, shuffled, judge, attack, folder, generators, identity, state)
    folder.draw()
    for figure, title in (("PGD10_acc", "PGD-10"), ("clean_acc", "clean")):
        value, epoch = best[figure]["value"], best[figure]["epoch"] + 1
        logger.info("best %s accuracy on %s: %.2f %%, epoch %d", title, judged_on, value, epoch)
    if config.val_size:
        _report_on_test(config, splits, folder, device)


def _choose_images(splits: Splits, config: TrainConfig) -> tuple[Split, Split]:
    """Images to train on, and those that choose the best checkpoint."""
    if config.val_size:
        kept, judge = hold_out(splits.train, config.val_size, config.seed)
    else:
        kept, judge = splits.train, subset(splits.test, config.limit_test, config.seed)
    return subset(kept, config.limit_train, config.seed), judge


def _optimizer(student, config: TrainConfig) -> torch.optim.Optimizer:
    # Weight decay on every parameter, BatchNorm and biases too, as in every official code.
    if config.optim == "Adam":
        return torch.optim.Adam(student.parameters(), lr=config.lr_max, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        student.parameters(), lr=config.lr_max, momentum=config.momentum, weight_decay=config.weight_decay
    )


def _judge(config: TrainConfig, device: torch.device):
    """The PGD-10 of an epoch; every epoch meets the same starts, so that epochs differ by their network alone."""
    return pgd10(config.epsilon / 255, _generator(device, config, 3)).perturb


def _generator(device, config: TrainConfig, stream: int) -> torch.Generator:
    """One of the run's sources of chance; no two streams coincide, of one seed or of neighbouring ones."""
    return torch.Generator(device).manual_seed(1000 * config.seed + stream)


def _report_on_test(config: TrainConfig, splits: Splits, folder: RunFolder, device: torch.device) -> None:
    """Say what the checkpoint that the validation images chose reaches on the test set."""
    best = folder.path / BEST_PGD10
    network = make_network(config.model, str(best), config.dataset, splits).to(device)
    test = Batches(subset(splits.test, config.limit_test, config.seed), config.bs, device=device)
    clean, robust = evaluate(network, test), evaluate(network, test, _judge(config, device))
    logger.info("%s on the test images: clean %.2f %%, PGD-10 %.2f %%", best.name, clean.accuracy, robust.accuracy)
