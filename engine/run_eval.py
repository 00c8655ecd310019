"""An evaluation: from its config to a table, printed and kept beside the checkpoint."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from attacks.suite import PROTOCOLS, Attack
from data import Split, load, subset
from data.loader import Batches
from engine.device import choose_device
from engine.evaluate import evaluate
from engine.networks import make_network, network_name
from engine.settings import dataset_name
from models.robustbench import PREFIX
from utils.config import EvalConfig
from utils.errors import UserError
from utils.files import write_atomically
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
    if not config.model_path and not config.model.startswith(PREFIX):
        raise UserError("--model_path: needed; name the checkpoint, for example .../best_PGD10_acc_model.pth")
    device = choose_device(config.device, config.gpu_id)
    attacks = _choose_attacks(config, device)
    seed_everything(config.seed)
    splits = load(config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    network = make_network(config.model, config.model_path, config.dataset, splits).to(device)
    network.eval().requires_grad_(False)
    if "aa" in attacks and len(splits.classes) < AUTOATTACK_CLASSES:
        raise UserError(
            f"--attacks: AutoAttack needs {AUTOATTACK_CLASSES} classes, the data set has {len(splits.classes)}; "
            "name the others, for example --attacks clean,fgsm,pgd,cw"
        )
    images = subset(splits.test, config.limit_test, config.seed)
    logger.info("%s: %s on %d test images of %s", config.model_path, config.model, len(images.labels), config.dataset)
    figures = _measure(network, attacks, images, config, device)
    row = [config.model, *(f"{figure['accuracy']:.2f}" for figure in figures.values())]
    logger.info("\n%s", text_table(["accuracy in %", *figures], [row]))


def _measure(
    network: nn.Module, attacks: dict[str, Attack], images: Split, config: EvalConfig, device: torch.device
) -> dict[str, dict]:
    """Print and keep the accuracy under each attack as it comes."""
    figures = {}
    for key, attack in attacks.items():
        began = time.monotonic()
        attacked = subset(images, config.limit_aa, config.seed) if key == "aa" else images
        batches = Batches(attacked, config.bs, device=device)
        score = evaluate(network, progress(batches, attack.title), attack.perturb)
        figures[attack.title] = {"accuracy": score.accuracy, "n": score.n, "settings": attack.settings}
        seconds = time.monotonic() - began
        logger.info(
            "%-13s %6.2f %%  (n %d; %s; %.0f s)", attack.title, score.accuracy, score.n, attack.settings, seconds
        )
        _keep(config, figures)
    return figures


def _choose_attacks(config: EvalConfig, device: torch.device) -> dict[str, Attack]:
    protocol = PROTOCOLS[config.protocol](
        config.eps,
        steps=config.steps,
        batch_size=config.bs,
        seed=config.seed,
        generator=torch.Generator(device).manual_seed(config.seed),
    )
    wanted = [name.strip() for name in config.attacks.split(",")] if config.attacks else list(protocol)
    keys = [canonical(name, protocol, {}, "--attacks") for name in wanted]
    return {key: protocol[key] for key in keys}


def _keep(config: EvalConfig, figures: dict[str, dict]) -> None:
    """Write <checkpoint>.eval.json after each attack, so that an interruption loses none."""
    path = Path(config.model_path or config.model.replace(":", "-")).with_suffix(".eval.json")
    text = json.dumps({"config": asdict(config), "figures": figures}, indent=2) + "\n"
    try:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        logger.warning("%s: not written (%s)", path, error.strerror)
