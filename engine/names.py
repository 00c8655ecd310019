"""The names that flags take, as help text."""

from data import DATASETS
from methods import METHODS
from models import MODELS


def _listed(table) -> str:
    return "one of: " + ", ".join(table)


# Field of a config -> what its help adds.
CHOICES = {
    "dataset": _listed(DATASETS),
    "model": _listed(MODELS),
    "teacher_model": _listed(MODELS),
    "method": _listed(METHODS),
}
