"""The names that flags accept, for their help."""

import textwrap

from data import DATASETS
from methods import METHODS
from models import MODELS


def _one_of(table) -> str:
    return textwrap.fill("one of: " + ", ".join(table), width=90)


# Field of a config -> text appended to its help.
CHOICES = {
    "dataset": _one_of(DATASETS),
    "model": _one_of(MODELS),
    "teacher_model": "any --model, or a published one: python -m models.teachers lists them",
    "method": _one_of(METHODS),
}
