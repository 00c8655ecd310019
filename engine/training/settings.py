"""The settings of a run: canonical names, the recipe's values, warnings, and how they are logged."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch

from data import Split, dataset_name
from engine.networks import network_name
from engine.training.schedule import WARMUP_START, default_milestones
from engine.unused_fields import ignored_fields
from methods import ALIASES as METHOD_ALIASES
from methods import METHODS, WITH_SOFT_LABELS, WITHOUT_ATTACK, WITHOUT_TEACHER, fields_read
from methods.recipes import STRONG, recipe
from models.teachers import teacher_name
from utils.config import METHOD, TrainConfig
from utils.errors import UserError
from utils.fields import shown, spelling
from utils.load import free_cores
from utils.log import logger
from utils.names import canonical


def resolve(config: TrainConfig, given: Mapping[str, str]) -> tuple[TrainConfig, dict[str, str]]:
    """Return the config with canonical names and its recipe's values, and the source of each value.

    ``given`` maps the fields that the user set to "flag" or "config file"; a recipe never changes those. The second
    result maps each field to "flag", "config file", "recipe" or "default".
    """
    dataset = dataset_name(config.dataset)
    config = replace(
        config,
        dataset=dataset,
        model=network_name(config.model, dataset),
        method=canonical(config.method, METHODS, METHOD_ALIASES, "--method"),
        teacher_model=teacher_name(config.teacher_model),
        std_teacher_model=teacher_name(config.std_teacher_model, "--std_teacher_model"),
    )
    sources = {spec.name: given.get(spec.name, "default") for spec in fields(config)}
    if sources["epochs"] == "flag" and sources["milestones"] == "config file" and config.milestones:
        message = "WARNING: --epochs %d: the milestones of --config, %s, are not used; --milestones sets them"
        logger.warning(message, config.epochs, " ".join(map(str, config.milestones)))
        config, sources["milestones"] = replace(config, milestones=None), "default"
    filled = _values_of_recipe(config, sources)
    config = replace(config, **filled)
    _check(config)
    return config, sources | dict.fromkeys(filled, "recipe")


def _values_of_recipe(config: TrainConfig, sources: Mapping[str, str]) -> dict:
    """Return the values of ``--recipe`` for the fields that the user did not set."""
    if config.recipe == "fair":
        return {}
    published = STRONG if config.recipe == "strong" else recipe(config.method, config.dataset, config.model)
    if not published:
        message = "WARNING: --recipe paper: no published training of %s in methods/recipes.py; the defaults are used"
        logger.warning(message, config.method)
    # A --recipe on the command line overrides a --config file, which has values for all flags.
    overriding = {"flag"} if sources["recipe"] == "flag" else {"flag", "config file"}
    fixed = {name for name, source in sources.items() if source in overriding}
    if "epochs" in fixed:
        fixed.add("milestones")  # published ones belong to the published epochs
        if "epsilon_ramp" in published:  # published ones last the whole training
            published = published | {"epsilon_ramp": config.epochs}
    if not fixed.isdisjoint({"ema", "swa_start"}):
        fixed |= {"ema", "swa_start"}  # one average at most
    absent = recipe(config.method, "CIFAR10", config.model).keys() - published.keys() - fixed
    if absent and config.recipe == "paper":
        flags = ", ".join(spelling(spec) for spec in fields(config) if spec.name in absent)
        message = "WARNING: --recipe paper: no published value of %s for %s; the default is used"
        logger.warning(message, flags, config.dataset)
    return {name: value for name, value in published.items() if name not in fixed}


def _check(config: TrainConfig) -> None:
    """Raise UserError for settings that cannot be combined."""
    if "std_weight" in fields_read(config.method, config) and config.robust_weight + config.std_weight > 1:
        total = f"--robust_weight {config.robust_weight:g} + --std_weight {config.std_weight:g}"
        raise UserError(f"{total}: the sum must be at most 1; the cross entropy has the rest of the weight")
    if config.log_reliability and config.method in WITHOUT_TEACHER:
        raise UserError(f"--log_reliability: {config.method} has no teacher; remove the flag")
    if config.augment == "cutmix" and config.method not in WITH_SOFT_LABELS:
        known = ", ".join(method for method in METHODS if method in WITH_SOFT_LABELS)
        raise UserError(f"--augment cutmix: not supported with {config.method}; use it with {known}")
    if config.extra_data and config.extra_labels == "teacher" and config.method in WITHOUT_TEACHER:
        raise UserError(f"--extra_labels teacher: {config.method} has no teacher; remove the flag")
    count = int(config.bs * config.extra_fraction)
    if config.extra_data and not 1 <= count < config.bs:
        message = f"{count} of {config.bs} images per batch; at least one extra and one training image are required"
        raise UserError(f"--extra_fraction {config.extra_fraction:g}: {message}")
    if config.igdm is not None and "igdm" not in fields_read(config.method, config):
        others = ", ".join(method for method in METHODS if "igdm" in fields_read(method, config))
        raise UserError(f"--igdm: {config.method} does not support this term; remove the flag, or use it with {others}")
    if config.ema and config.swa_start:
        raise UserError("--swa_start: cannot be combined with --ema; remove one of them")
    if config.nesterov and config.optim == "SGD" and not config.momentum:
        raise UserError("--nesterov: requires --momentum above 0")
    if config.accumulate > config.bs:
        raise UserError(f"--accumulate {config.accumulate}: must be at most --bs {config.bs}")


def config_warnings(config: TrainConfig) -> list[str]:
    """Return one line for each setting that has no effect or not its usual effect."""
    warnings = []
    begin = getattr(METHODS[config.method](config), "keywords", {}).get("begin", 0)
    if begin >= config.epochs:
        warnings.append(
            f"{config.method} starts introspection after epoch {begin}, so --epochs {config.epochs} has none; "
            "--IAD_begin sets the epoch"
        )
    for name in ("awp_warmup", "swa_start", "epsilon_ramp"):
        if (getattr(config, name) or 0) > config.epochs and name not in ignored_fields(config):
            warnings.append(f"--{name} {getattr(config, name)}: is not reached in --epochs {config.epochs}")
    given = config.milestones not in (None, default_milestones(config.epochs))
    if config.lr_schedule == "piecewise" and given and config.milestones[-1] >= config.epochs:
        milestones = " ".join(map(str, config.milestones))
        warnings.append(f"--milestones {milestones}: the last one is not reached in --epochs {config.epochs}")
    distance = config.step_size * config.num_steps
    if config.method not in WITHOUT_ATTACK and distance < config.epsilon:
        warnings.append(
            f"--num_steps {config.num_steps} with --step_size {config.step_size:g} reach {distance:g}, not --epsilon "
            f"{config.epsilon:g}; the papers use a step size of epsilon / 4"
        )
    if config.warmup_lr and config.warmup_lr_epochs >= config.epochs:
        warmup = f"--warmup_lr_epochs {config.warmup_lr_epochs}"
        warnings.append(f"{warmup}: --lr_max is not reached in --epochs {config.epochs}")
    if config.warmup_lr and config.lr_max < WARMUP_START:
        warnings.append(f"--warmup_lr starts at {WARMUP_START:g}, above --lr_max {config.lr_max:g}")
    return warnings


def log_config(
    config: TrainConfig, sources: dict[str, str], folder: Path, images: tuple[Split, Split], device: torch.device
) -> None:
    """Log the run, all settings grouped by source, warnings, and the flags that its method ignores."""
    logger.info("training %s on %s with %s; run folder %s", config.model, config.dataset, config.method, folder)
    _log_sources(config, sources)
    for warning in config_warnings(config):
        logger.warning("WARNING: %s", warning)
    if config.lr_schedule == "piecewise":
        drops = ", ".join(str(milestone) for milestone in config.milestones if milestone < config.epochs)
        change = f"divided by 10 after epochs: {drops}" if drops else "constant"
        logger.info("learning rate %g, %s", config.lr_max, change)
    kind = "validation" if config.val_size else "test"
    training, validation = (len(part.labels) for part in images)
    if config.limit_train and config.limit_train > training:
        logger.warning("WARNING: --limit_train %d: there are only %d training images", config.limit_train, training)
    logger.info("%d training images; the best checkpoint is chosen on %d %s images", training, validation, kind)
    logger.info("device %s, CPU threads: %d, PyTorch %s", device, config.threads, torch.__version__)
    if device.type == "cpu" and (free := free_cores()) < config.threads:
        message = "WARNING: other processes use some cores; --threads %d would be faster than %d threads"
        logger.warning(message, free, config.threads)


def _log_sources(config: TrainConfig, sources: dict[str, str]) -> None:
    """Log the settings by source, the parameters of the method, and a warning for flags that have no effect."""
    ignored = ignored_fields(config)
    for source in ("flag", "config file", "recipe", "default"):
        values = {}
        for spec in fields(config):
            value = getattr(config, spec.name)
            # Parameters of the method are logged below; no flag turns off a switch that is off by default.
            hidden = source in ("config file", "default") and (spec.metadata["group"] == METHOD or spec.name in ignored)
            off = value in (None, "") or (value is False and spec.default is False)
            if sources[spec.name] == source and not hidden and not off:
                values[spelling(spec)] = value
        _log_settings(source, values)
    # All parameters of the method, including those whose default depends on it.
    keywords = getattr(METHODS[config.method](config), "keywords", {})
    _log_settings("method", {name: value for name, value in keywords.items() if value is not None})
    given = [spec for spec in fields(config) if spec.name in ignored and sources[spec.name] == "flag"]
    for reason in dict.fromkeys(ignored[spec.name] for spec in given):
        flags = ", ".join(spelling(spec) for spec in given if ignored[spec.name] == reason)
        logger.warning("WARNING: %s ignores %s", reason, flags)


def _log_settings(source: str, values: dict) -> None:
    if values:
        logger.info("set by %s: %s", source, "  ".join(_as_flag(name, value) for name, value in values.items()))


def _as_flag(name: str, value) -> str:
    """Return a setting as the command line spells it; parameters of a method have names without dashes."""
    if isinstance(value, bool) and name.startswith("--"):
        return name if value else f"--no-{name[2:]}"
    return f"{name} {shown(value).removesuffix('.0')}"
