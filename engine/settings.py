"""What the command line means: our names for its names, and a recipe for what it leaves open."""

from dataclasses import fields, replace

from data import ALIASES as DATASET_ALIASES
from data import DATASETS
from engine.networks import network_name
from methods import ALIASES as METHOD_ALIASES
from methods import METHODS
from methods.recipes import recipe
from utils.config import TrainConfig
from utils.flags import spelling
from utils.log import logger
from utils.names import canonical


def dataset_name(name: str) -> str:
    """Our name of a data set; raises UserError with the nearest names."""
    return canonical(name, DATASETS, DATASET_ALIASES, "--dataset")


def resolve(config: TrainConfig, given: frozenset[str]) -> tuple[TrainConfig, dict[str, str]]:
    """Return the config with our names and its recipe filled in, and where each value comes from.

    ``given`` names the fields that the command line set; a recipe never changes those. The second result maps each
    field to "flag", "recipe" or "default".
    """
    config = replace(
        config,
        dataset=dataset_name(config.dataset),
        model=network_name(config.model),
        method=canonical(config.method, METHODS, METHOD_ALIASES, "--method"),
    )
    filled = {}
    if config.recipe == "paper":
        published = recipe(config.method, config.dataset, config.model)
        filled = {key: value for key, value in published.items() if key not in given}
    sources = {spec.name: "flag" if spec.name in given else "default" for spec in fields(config)}
    return replace(config, **filled), sources | dict.fromkeys(filled, "recipe")


def announce(config: TrainConfig, sources: dict[str, str]) -> None:
    """Log every setting, by where its value comes from; what was left open is left out."""
    for source in ("flag", "recipe", "default"):
        values = [
            f"{spelling(spec)} {value:g}" if isinstance(value, float) else f"{spelling(spec)} {value}"
            for spec in fields(config)
            if sources[spec.name] == source and (value := getattr(config, spec.name)) not in (None, "")
        ]
        if values:
            logger.info("set by %s: %s", source, "  ".join(values))
