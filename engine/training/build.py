"""The objects of a training run, from its config: data, batches, optimizer, trainer, validator."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data import TEST_SUBSET_SEED, Split, Splits, decode_files, fingerprint, hold_out, load_configured, subset
from data.augment import AUGMENTATIONS, MIRROR
from data.extra import ExtraData, open_extra
from data.loader import Batches
from engine.distributed import Processes
from engine.fast.precision import Arithmetic
from engine.networks import checksum, make_network
from engine.training.averaging import Ema, Swa
from engine.training.loop import TrainingLoop
from engine.training.run_folder import RunFolder
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS
from utils.config import TrainConfig
from utils.seed import derive_seed


class Compute(NamedTuple):
    """Device, arithmetic with a ``description`` for the log, and ranks of a run."""

    device: torch.device
    arithmetic: Arithmetic
    description: str
    processes: Processes


class Data(NamedTuple):
    """The dataset; its decoded images for training and for validation; extra data; number of damaged images."""

    splits: Splits
    training: Split
    validation: Split
    extra: ExtraData | None
    skipped: int


def read_data(config: TrainConfig) -> Data:
    """Read the images of a run. Raises UserError if they are missing or damaged."""
    splits = load_configured(config)
    training, validation = splits.train, test_images(splits, config)
    if config.val_size:
        # The same for every --seed, so that a teacher trained with --val_size was not trained on them either.
        training, validation = hold_out(splits.train, config.val_size, TEST_SUBSET_SEED)
    chosen = subset(training, config.limit_train, config.seed), validation
    images = decode_files(*chosen)
    skipped = sum(len(part.labels) for part in chosen) - sum(len(part.labels) for part in images)
    return Data(splits, *images, open_extra(config, splits.image_size, len(splits.classes)), skipped)


def test_images(splits: Splits, config: TrainConfig) -> Split:
    """Return ``--limit_test`` test images, the same for every ``--seed``, so that seeds are comparable."""
    return subset(splits.test, config.limit_test, TEST_SUBSET_SEED)


def make_loop(
    folder: RunFolder, data: Data, student: nn.Module, teachers: list[nn.Module], compute: Compute
) -> TrainingLoop:
    """The training of ``student`` from its first epoch."""
    config = folder.config
    transforms, _ = AUGMENTATIONS[config.augment]
    batches = Batches(
        data.training,
        config.bs,
        device=compute.device,
        shuffle=True,
        transforms=[each for each in transforms if each is not MIRROR or (config.flip and data.splits.flip)],
        mix_classes=len(data.splits.classes) if config.augment == "cutmix" else 0,
        extra=data.extra,
        generator=torch.Generator(),
    )
    trainer = _make_trainer(config, data, student, teachers, compute, len(batches))
    if data.extra and config.extra_labels == "teacher":
        predict = torch.no_grad()(lambda x: trainer.teachers[0](x.float() / 255).argmax(1))
        batches.extra = data.extra._replace(predict=predict)
    validator = make_validator(trainer.eval_network, data.validation, config, compute)
    # What each checkpoint stores besides weights: names to load it by, checksums that a resumed run must match.
    metadata = {key: getattr(config, key) for key in ("model", "dataset", "method")}
    metadata |= {"classes": list(data.splits.classes), "image_size": data.splits.image_size}
    metadata["images"] = [fingerprint(data.training), fingerprint(data.validation)]
    metadata["images"] += data.extra.checksums if data.extra else []
    metadata["teachers"] = [checksum(teacher) for teacher in teachers]
    metadata["arithmetic"] = str(compute.arithmetic.dtype or "float32")
    return TrainingLoop(trainer, batches, validator, folder, metadata)


def make_validator(network: nn.Module, images: Split, config: TrainConfig, compute: Compute) -> Validator:
    """The validation of ``network`` on ``images``."""
    batches = Batches(images, config.eval_bs or config.bs, device=compute.device)
    seed = derive_seed(config.seed, "judge")  # another name would change all results
    return Validator(network, batches, config.epsilon / 255, seed, compute.processes, compute.arithmetic)


def _make_trainer(
    config: TrainConfig, data: Data, student: nn.Module, teachers: list[nn.Module], compute: Compute, batch_count: int
) -> Trainer:
    average = Ema(student, config.ema) if config.ema else None
    if config.swa_start:
        average = Swa(student, config.swa_start - 1, compute.arithmetic)
    return Trainer(
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
        make_network=lambda: make_network(config.model, None, config.dataset, data.splits).to(compute.device),
        steps_per_epoch=batch_count,
    )


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
