"""An evaluation: from its config to tables, printed and kept beside each checkpoint."""

import logging
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.libraries import AUTOATTACK_CLASSES
from attacks.suite import PROTOCOLS, Attack, Setting
from data import Split, Splits, dataset_name, fingerprint, load, subset, subset_mask, take
from data.loader import Batches
from engine.accuracy import predict
from engine.device import choose_device, use_full_precision
from engine.distributed import EVALUATION_TIMEOUT, Processes, destroy, init, local_gpu
from engine.evaluation.attack import run_attack
from engine.evaluation.figures import draw_confusions, draw_radii, draw_turned
from engine.evaluation.records import Record, make_result, results_folder, sha256, worst_case
from engine.evaluation.report import comparison, write_report
from engine.evaluation.sanity import sanity_check, warn_of_constant_prediction, warn_of_masking
from engine.evaluation.state import State
from engine.evaluation.targets import (
    EvalTarget,
    find_targets,
    infer_dataset,
    load_other_network,
    load_target,
    warn_of_epsilon,
)
from engine.fast.frozen import make_attack_model
from utils.config import EvalConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything
from utils.versions import versions

AUTOATTACK = ("pyautoattack", "autoattack")  # packages of its authors, either of which serves


def run_evaluation(config: EvalConfig) -> None:
    """Attack the checkpoints by the chosen protocol; print the accuracies and keep them beside each.

    Raises UserError for whatever the user can mend.
    """
    processes = init(EVALUATION_TIMEOUT)
    if not processes.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        _evaluate_all(config, processes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--bs {config.bs}: the GPU's memory is full; a smaller one needs less, and with --state DIR the same "
            "command keeps what is finished"
        ) from error
    finally:
        destroy()


def _evaluate_all(config: EvalConfig, processes: Processes) -> None:
    if config.dataset:
        config = replace(config, dataset=dataset_name(config.dataset))
    if config.protocol == "official":
        config = replace(config, judge="last")
    device = choose_device(config.device, local_gpu(config.gpu_id), config.threads)
    keys = select_attacks(config)
    names = find_targets(config)
    config = infer_dataset(config, list(names))
    warn_of_epsilon(names, config.eps)
    use_full_precision()
    seed_everything(config.seed)
    read = partial(load, config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    splits = processes.rank0_first(read)
    _require_classes(keys, splits)
    natural = load_other_network(config.natural_path, None, "--natural_path", config, splits, device)
    protocol = _protocol(config, splits, device)
    images = subset(splits.test, config.limit_test, config.seed)
    evaluations = []
    for path, name in names.items():
        target = EvalTarget(path, name, partial(load_target, path, name, config, splits))
        target.load()  # a bad file is told before the first attack
        attacks = {key: protocol[key] for key in keys}
        evaluations.append(Evaluation(target, attacks, images, splits.classes, config, device))
    results = {}
    for evaluation in evaluations:
        network = evaluation.target.load().to(device)
        results[evaluation.target.path] = evaluation.run(network, processes)
        if processes.is_rank0:
            evaluation.report(network, natural)
    logger.info("\n%s", comparison(results))


class Evaluation:
    """One network under all attacks.

    Raises UserError, before any attack, where figures or state cannot be kept.
    """

    def __init__(self, target: EvalTarget, attacks: dict[str, Attack], images: Split, classes, config, device):
        self.target, self.attacks, self.images, self.classes = target, attacks, images, classes
        self.config, self.device = config, device
        conditions = make_conditions(target, images, config)
        place = _below(config.out, target.path) if config.out else results_folder(target.path)
        self.record = Record(place, conditions)
        self.state = State(_state_folder(conditions, target, config), _state_conditions(conditions))
        self.predicted: dict[str, Tensor] = {}

    def run(self, network: nn.Module, processes: Processes) -> dict[str, dict]:
        """Figures by title and their worst case; each is printed and kept as it comes."""
        target, config, figures = self.target, self.config, {}
        n = len(self.images.labels)
        logger.info("%s: %s on %d test images of %s", target.path, target.name, n, config.dataset)
        self.predicted["before"] = clean = predict(network, self._batches(self.images))
        attack_model = make_attack_model(network, next(iter(self._batches(self.images)))[0])
        for key, attack in self.attacks.items():
            began = time.monotonic()
            attacked = subset_mask(self.images, config.limit_aa if key == "aa" else None, config.seed)
            images = take(self.images, attacked)
            context = {"seed": config.seed, "state": self.state, "processes": processes, "attack_model": attack_model}
            outcome = run_attack(network, self._batches(images), clean[attacked], attack, **context)
            self.predicted[key] = outcome.predicted
            seconds = time.monotonic() - began
            figure = make_result(attack, outcome, images.labels, attacked, seconds, self.classes)
            figures[attack.title] = figure
            _tell(attack.title, figure)
            if processes.is_rank0:
                self.record.keep(attack.title, figure)
        return figures | worst_case(figures)

    def report(self, network: nn.Module, natural: nn.Module | None) -> None:
        """Write eval.csv, eval.md and the pictures, and say where the figures make no sense."""
        folder, config, images = self.record.path.parent, self.config, self.images
        write_report(self.record)
        where = {"batch_size": config.bs, "seed": config.seed}
        pgd = self.attacks.get("pgd")
        constant = warn_of_constant_prediction(self.predicted["before"], self.classes)
        checked = sanity_check(network, images, config.eps, self.device, **where) if pgd and not constant else None
        warn_of_masking(self.record, config.eps, checked)
        if pgd and config.pictures:
            networks = {"/".join(self.target.path.parts[-2:]): network} | ({"natural": natural} if natural else {})
            draw_radii(networks, images, config.bs, config.seed, self.device, folder / "attacks.png")
            draw_turned(network, pgd, images, self.classes, config, self.device, folder / "examples.png")
            readings = {"clean": self.predicted["before"], pgd.title: self.predicted["pgd"]}
            draw_confusions(readings, images.labels, self.classes, folder)
        logger.info("figures: %s", folder)

    def _batches(self, images: Split) -> Batches:
        return Batches(images, self.config.bs, device=self.device)


def make_conditions(target: EvalTarget, images: Split, config: EvalConfig) -> dict:
    """Settings under which figures belong in one table."""
    kept = ("dataset", "limit_test", "protocol", "eps", "steps", "restarts", "judge", "seed", "bs")
    transferred = config.protocol == "blackbox" and config.surrogate_path
    return {
        "checkpoint": target.path.name,
        "sha256": sha256(target.path) if target.path.exists() else None,
        "model": target.name,
        **{key: getattr(config, key) for key in kept},
        "image_size": images.images.shape[-1],
        "images": fingerprint(images),
        "surrogate": sha256(config.surrogate_path) if transferred else None,
    }


def _state_folder(conditions: dict, target: EvalTarget, config: EvalConfig) -> Path | None:
    return Path(config.state) / (conditions["sha256"] or target.path.name)[:12] if config.state else None


def _state_conditions(conditions: dict) -> dict:
    """What finished pieces depend on; the name of the file is not part of it."""
    return {key: value for key, value in conditions.items() if key != "checkpoint"} | versions()


def _below(out: str, checkpoint: Path) -> Path:
    """Where in ``--out`` a checkpoint's figures go: its whole path tells checkpoints of one name apart."""
    return Path(out, *[part for part in results_folder(checkpoint).parts if part not in ("..", checkpoint.anchor)])


def _tell(title: str, figure: dict) -> None:
    shown = (figure[key] for key in ("accuracy", "n", "settings", "seconds"))
    logger.info("%-19s %6.2f %%  (n %d; %s; %.0f s)", title, *shown)
    if figure["stages"]:
        logger.info("%-19s %s", "", ", ".join(f"{name} {after:.2f}" for name, after in figure["stages"].items()))


def select_attacks(config: EvalConfig) -> list[str]:
    """Keys of the attacks that the config asks for; raises UserError where one cannot be carried out."""
    protocol = PROTOCOLS[config.protocol](Setting(config.eps, config.seed))
    words = [word.strip() for word in config.attacks.split(",") if word.strip()]
    if config.attacks and not words:
        raise UserError(f"--attacks {config.attacks}: names no attack; the protocol has {','.join(protocol)}")
    keys = list(dict.fromkeys(canonical(word, protocol, {}, "--attacks") for word in words)) or list(protocol)
    transferred = [key for key in keys if key.startswith("transfer")]
    if transferred and not config.surrogate_path:
        raise UserError(f"--surrogate_path: needed by {', '.join(transferred)}; without one: --attacks clean,square")
    libraries = {protocol[key].parameters.get("library") for key in keys}
    if "AutoAttack" in libraries and not any(map(_installed, AUTOATTACK)):
        raise UserError("--attacks: AutoAttack and Square need a package: pip install pyautoattack")
    if "advertorch" in libraries and not _installed("advertorch"):
        raise UserError("--attacks: C&W L2 needs a package: pip install advertorch")
    return keys


def _installed(package: str) -> bool:
    return bool(sys.modules.get(package) or find_spec(package))


def _require_classes(keys: list[str], splits: Splits) -> None:
    if "aa" in keys and len(splits.classes) < AUTOATTACK_CLASSES:
        raise UserError(
            f"--attacks: AutoAttack needs {AUTOATTACK_CLASSES} classes, the data set has {len(splits.classes)}; "
            "name the others, for example --attacks clean,fgsm,pgd,cw"
        )


def _protocol(config: EvalConfig, splits: Splits, device: torch.device) -> dict[str, Attack]:
    surrogate = load_other_network(
        config.surrogate_path, config.surrogate_model, "--surrogate_model", config, splits, device
    )
    setting = Setting(
        epsilon=config.eps,
        seed=config.seed,
        steps=config.steps,
        restarts=config.restarts,
        judge=config.judge,
        surrogate=surrogate,
        surrogate_name=config.surrogate_path,
    )
    return PROTOCOLS[config.protocol](setting)
