"""Settings that a method, or another setting, does not use."""

from dataclasses import fields

from methods import WITH_TWO_TEACHERS, WITHOUT_ATTACK, WITHOUT_TEACHER, fields_read
from utils.config import METHOD, TrainConfig

TEACHER = {"teacher_model", "teacher_path", "no_teacher_check"}
SECOND_TEACHER = {"std_teacher_model", "std_teacher_path"}
# Without epsilon, which is also the radius of the validation's PGD-10.
INNER_ATTACK = {"step_size", "num_steps", "attack_bn", "epsilon_ramp"}


def unused_fields(config: TrainConfig) -> set[str]:
    """Return the names of the fields that have no effect with the config's method."""
    unused = {spec.name for spec in fields(config) if spec.metadata["group"] == METHOD and spec.name != "method"}
    unused -= fields_read(config.method, config)
    if config.method in WITHOUT_TEACHER:
        unused |= TEACHER
    if config.method not in WITH_TWO_TEACHERS:
        unused |= SECOND_TEACHER
    if config.method in WITHOUT_ATTACK:
        unused |= INNER_ATTACK
    return unused


def ignored_fields(config: TrainConfig) -> dict[str, str]:
    """Return the names of the fields that have no effect, each with the method or the flag that ignores it."""
    ignored = dict.fromkeys(unused_fields(config), config.method)
    for field, flag, used in (
        ("momentum", f"--optim {config.optim}", config.optim == "SGD"),
        ("nesterov", f"--optim {config.optim}", config.optim == "SGD"),
        ("awp_warmup", "training without --awp", config.awp is not None),
        ("milestones", f"--lr_schedule {config.lr_schedule}", config.lr_schedule == "piecewise"),
        ("warmup_lr_epochs", "training without --warmup_lr", config.warmup_lr),
        ("extra_fraction", "training without --extra_data", config.extra_data),
        ("extra_labels", "training without --extra_data", config.extra_data),
        ("weights", "training without a checkpoint", config.model_path or config.method not in WITHOUT_TEACHER),
        ("normalize", "training without a checkpoint", config.model_path or config.method not in WITHOUT_TEACHER),
        ("alp_beta", f"--alp {config.alp}", config.alp == "on"),
    ):
        if not used:
            ignored.setdefault(field, flag)
    return ignored
