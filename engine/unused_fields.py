"""Settings that a method does not use."""

from dataclasses import fields

from methods import WITH_TWO_TEACHERS, WITHOUT_ATTACK, WITHOUT_TEACHER, fields_read
from utils.config import METHOD, TrainConfig

TEACHER = {"teacher_model", "teacher_path", "no_teacher_check"}
SECOND_TEACHER = {"std_teacher_model", "std_teacher_path"}
EXTRA_DATA = {"extra_fraction", "extra_labels"}
INNER_ATTACK = {"step_size", "num_steps", "attack_bn"}  # epsilon is also the radius of the validation's PGD-10


def unused_fields(config: TrainConfig) -> set[str]:
    """Return the names of the fields that have no effect with the config's method and without extra data."""
    unused = {spec.name for spec in fields(config) if spec.metadata["group"] == METHOD and spec.name != "method"}
    unused -= fields_read(config.method, config)
    unused |= TEACHER if config.method in WITHOUT_TEACHER else set()
    unused |= set() if config.extra_data else EXTRA_DATA
    unused |= SECOND_TEACHER if config.method not in WITH_TWO_TEACHERS else set()
    return unused | (INNER_ATTACK if config.method in WITHOUT_ATTACK else set())
