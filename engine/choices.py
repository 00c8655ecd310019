"""The names that flags take, as help text."""

import textwrap

from data import DATASETS
from methods import METHODS
from models import MODELS


def _listed(table) -> str:
    return textwrap.fill("one of: " + ", ".join(table), width=90)


# Field of a config -> what its help adds.
CHOICES = {
    "dataset": _listed(DATASETS),
    "model": _listed(MODELS),
    "teacher_model": "any --model, or a published one: python -m models.teachers lists them",
    "method": _listed(METHODS),
}
