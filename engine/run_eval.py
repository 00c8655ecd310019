"""An evaluation: from its config to a table, printed and kept beside the checkpoint."""

import time
from dataclasses import replace

import torch
from torch import nn

from attacks.suite import PROTOCOLS, Attack
from data import Split, load, subset
from data.loader import Batches
from engine.device import choose_device, use_full_precision
from engine.evaluate import evaluate
from engine.networks import make_network, network_name
from engine.records import Record
from engine.settings import dataset_name
from models.robustbench import PREFIX
from models.weights import read_facts
from utils.config import EvalConfig
from utils.errors import UserError
from utils.log import logger, progress
from utils.names import canonical
from utils.report import text_table
from utils.seed import seed_everything

AUTOATTACK_CLASSES = 4  # its targeted loss compares the logits of four


def run_evaluation(config: EvalConfig) -> None:
    """Attack the checkpoint by the chosen protocol; print the accuracies and keep them beside it.

    Raises UserError for whatever the user can mend.
    """
    config = replace(config, dataset=dataset_name(config.dataset), model=network_name(config.model))
    device = choose_device(config.device, config.gpu_id)
    attacks = _choose_attacks(config, device)
    config = _heed_checkpoint(config)
    use_full_precision()
    seed_everything(config.seed)
    splits = load(config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    if "aa" in attacks and len(splits.classes) < AUTOATTACK_CLASSES:
        raise UserError(
            f"--attacks: AutoAttack needs {AUTOATTACK_CLASSES} classes, the data set has {len(splits.classes)}; "
            "name the others, for example --attacks clean,fgsm,pgd,cw"
        )
    network = make_network(config.model, config.model_path, config.dataset, splits).to(device)
    images = subset(splits.test, config.limit_test, config.seed)
    logger.info("%s: %s on %d test images of %s", config.model_path, config.model, len(images.labels), config.dataset)
    figures = _measure(network.eval().requires_grad_(False), attacks, images, config, device)
    header = ["accuracy in %", *(f"{title} (n={figure['n']})" for title, figure in figures.items())]
    row = [config.model, *(f"{figure['accuracy']:.2f}" for figure in figures.values())]
    logger.info("\n%s", text_table(header, [row]))


def _choose_attacks(config: EvalConfig, device: torch.device) -> dict[str, Attack]:
    """The wanted attacks of the protocol; each draws its starts from a generator of its own."""
    protocol = PROTOCOLS[config.protocol](
        config.eps, steps=config.steps, batch_size=config.bs, seed=config.seed, device=device
    )
    wanted = [name.strip() for name in config.attacks.split(",")] if config.attacks else list(protocol)
    keys = [canonical(name, protocol, {}, "--attacks") for name in wanted]
    return {key: protocol[key] for key in keys}


def _heed_checkpoint(config: EvalConfig) -> EvalConfig:
    """Compare the config with what our own checkpoints say of themselves, and take the image size from there.

    Raises UserError for a network that is another one; other data are allowed, and said.
    """
    if not config.model_path:
        if config.model.startswith(PREFIX):
            return config
        raise UserError("--model_path: needed; name the checkpoint, for example .../best_PGD10_acc_model.pth")
    facts = read_facts(config.model_path)
    if facts.get("model", config.model) != config.model:
        raise UserError(
            f"--model {config.model}: {config.model_path} holds a {facts['model']}; --model {facts['model']}"
        )
    if facts.get("dataset", config.dataset) != config.dataset:
        logger.warning("%s was trained on %s, not on %s", config.model_path, facts["dataset"], config.dataset)
    elif config.image_size is None and config.dataset in ("Folder", "Digits"):
        return replace(config, image_size=facts.get("image_size"))
    return config


def _measure(
    network: nn.Module, attacks: dict[str, Attack], images: Split, config: EvalConfig, device: torch.device
) -> dict[str, dict]:
    """Print and keep the accuracy under each attack as it comes."""
    record, figures = Record(config), {}
    for key, attack in attacks.items():
        began = time.monotonic()
        attacked = subset(images, config.limit_aa, config.seed) if key == "aa" else images
        batches = Batches(attacked, config.bs, device=device)
        score = evaluate(network, progress(batches, attack.title), attack.perturb)
        seconds = time.monotonic() - began
        line = "%-13s %6.2f %%  (n %d; %s; %.0f s)"
        logger.info(line, attack.title, score.accuracy, score.n, attack.settings, seconds)
        figures[attack.title] = {"accuracy": score.accuracy, "n": score.n, "settings": attack.settings}
        record.keep(attack.title, figures[attack.title])
    return figures
