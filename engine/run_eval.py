"""An evaluation: from its config to tables, printed and kept beside each checkpoint."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from attacks.suite import PROTOCOLS, Attack, Setting
from data import Split, Splits, chosen, fingerprint, load, subset, take
from data.loader import Batches
from engine.device import choose_device, use_full_precision
from engine.distributed import Processes, gpu_of, join, leave
from engine.eval_pictures import draw_confusions, draw_radii, draw_turned
from engine.eval_report import comparison, write_report
from engine.eval_state import State
from engine.evaluate import read, strike
from engine.guard import probe, warn_of_masking
from engine.networks import make_network, network_in, network_name
from engine.records import Record, figure_of, folder_of, sha256, worst_case
from engine.run_folder import BEST_PGD10, LAST
from engine.settings import dataset_name
from engine.views import for_evaluation
from models.robustbench import PREFIX
from models.weights import read_facts
from utils.config import EvalConfig
from utils.errors import UserError
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything

AUTOATTACK_CLASSES = 4  # its targeted loss compares the logits of four
SUFFIXES = (".pth", ".pt", ".safetensors")


class Subject(NamedTuple):
    """A network to evaluate, and where it came from: a file, or a name of RobustBench's zoo."""

    path: Path
    name: str
    network: nn.Module


def run_evaluation(config: EvalConfig) -> None:
    """Attack the checkpoints by the chosen protocol; print the accuracies and keep them beside each.

    Raises UserError for whatever the user can mend.
    """
    processes = join()
    if not processes.first:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        _evaluate_all(config, processes)
    finally:
        leave()


def _evaluate_all(config: EvalConfig, processes: Processes) -> None:
    config = replace(config, dataset=dataset_name(config.dataset))
    device = choose_device(config.device, gpu_of(config.gpu_id), config.threads)
    keys = _wanted(config)
    names = {path: network_in(path, config.model) for path in _checkpoints(config)} or _of_zoo(config)
    config = _heed(config, [path for path in names if path.exists()])
    use_full_precision()
    seed_everything(config.seed)
    splits = load(config.dataset, config.data_root, image_size=config.image_size, workers=config.workers)
    _require_classes(keys, splits)
    surrogate = _frozen(config.surrogate_path, config.surrogate_model, "--surrogate_model", config, splits, device)
    natural = _frozen(config.natural_path, None, "--natural_path", config, splits, device)
    setting = Setting(
        *(config.eps, config.seed, config.steps, config.restarts, config.judge), surrogate, config.surrogate_path
    )
    protocol = PROTOCOLS[config.protocol](setting)
    images = subset(splits.test, config.limit_test, config.seed)
    evaluations = []
    for path, name in names.items():
        network = make_network(name, str(path) if path.exists() else "", config.dataset, splits)
        subject = Subject(path, name, network.eval().requires_grad_(False))
        evaluations.append(Evaluation(subject, {key: protocol[key] for key in keys}, images, config, device))
    results = {}
    for evaluation in evaluations:
        results[evaluation.subject.path] = evaluation.run(processes)
        if processes.first:
            evaluation.report(splits.classes, natural)
    logger.info("\n%s", comparison(results))


class Evaluation:
    """One network under all attacks.

    Raises UserError, before any attack, where figures or state cannot be kept.
    """

    def __init__(self, subject: Subject, attacks: dict[str, Attack], images: Split, config: EvalConfig, device):
        self.subject, self.attacks, self.images, self.config, self.device = subject, attacks, images, config, device
        conditions = _conditions(subject, images, config)
        place = _below(config.out, subject.path) if config.out else folder_of(subject.path)
        self.record = Record(place, conditions)
        state = Path(config.state) / (conditions["sha256"] or subject.path.name)[:12] if config.state else None
        self.state = State(state, conditions | {"limit_aa": config.limit_aa})
        self.predicted: dict[str, Tensor] = {}

    def run(self, processes: Processes) -> dict[str, dict]:
        """Figures by title and their worst case; each is printed and kept as it comes."""
        subject, config, figures = self.subject, self.config, {}
        logger.info(
            "%s: %s on %d test images of %s", subject.path, subject.name, len(self.images.labels), config.dataset
        )
        network = subject.network.to(self.device)
        self.predicted["before"] = clean = read(network, self._batches(self.images))
        climbed = for_evaluation(network, next(iter(self._batches(self.images)))[0])
        for key, attack in self.attacks.items():
            began = time.monotonic()
            attacked = chosen(self.images, config.limit_aa if key == "aa" else None, config.seed)
            images = take(self.images, attacked)
            context = {"seed": config.seed, "state": self.state, "processes": processes, "climbed": climbed}
            outcome = strike(network, self._batches(images), clean[attacked], attack, **context)
            self.predicted[key] = outcome.predicted
            figure = figure_of(attack, outcome, images.labels, attacked, time.monotonic() - began)
            figures[attack.title] = figure
            _tell(attack.title, figure)
            if processes.first:
                self.record.keep(attack.title, figure)
        return figures | worst_case(figures)

    def report(self, classes: tuple[str, ...], natural: nn.Module | None) -> None:
        """Write eval.csv, eval.md and the pictures, and say where the figures make no sense."""
        folder, network, config = self.record.path.parent, self.subject.network, self.config
        write_report(self.record)
        climbed = "pgd" in self.attacks
        warn_of_masking(
            self.record, config.eps, probe(network, self.images, config.eps, self.device) if climbed else None
        )
        if climbed and config.pictures:
            networks = {self.subject.name: network} | ({"natural": natural} if natural else {})
            draw_radii(networks, self.images, config.seed, self.device, folder / "attacks.png")
            draw_turned(
                network, self.attacks["pgd"], self.images, classes, config, self.device, folder / "examples.png"
            )
            readings = {"clean": self.predicted["before"], self.attacks["pgd"].title: self.predicted["pgd"]}
            draw_confusions(readings, self.images.labels, classes, folder)
        logger.info("figures: %s", folder)

    def _batches(self, images: Split) -> Batches:
        return Batches(images, self.config.bs, device=self.device)


def _below(out: str, checkpoint: Path) -> Path:
    """Where in ``--out`` a checkpoint's figures go: data set, method and run tell checkpoints of one name apart."""
    names = [part for part in checkpoint.with_suffix("").parts if part not in ("..", checkpoint.anchor)]
    return Path(out, *names[-4:])


def _tell(title: str, figure: dict) -> None:
    logger.info(
        "%-19s %6.2f %%  (n %d; %s; %.0f s)", title, *(figure[k] for k in ("accuracy", "n", "settings", "seconds"))
    )
    if figure["stages"]:
        logger.info("%-19s %s", "", ", ".join(f"{name} {after:.2f}" for name, after in figure["stages"].items()))


def _conditions(subject: Subject, images: Split, config: EvalConfig) -> dict:
    """Settings under which figures belong in one table."""
    kept = ("dataset", "limit_test", "protocol", "eps", "steps", "restarts", "judge", "seed", "bs")
    return {
        "checkpoint": subject.path.name,
        "sha256": sha256(subject.path) if subject.path.exists() else None,
        "model": subject.name,
        **{key: getattr(config, key) for key in kept},
        "image_size": images.images.shape[-1],
        "images": fingerprint(images),
        "surrogate": sha256(config.surrogate_path) if config.surrogate_path else None,
    }


def _checkpoints(config: EvalConfig) -> list[Path]:
    """The files that ``--model_path`` names, a folder's runs by their best and last checkpoint."""
    found = []
    for word in config.model_path:
        path = Path(word)
        if not path.is_dir():
            found.append(path)
            continue
        runs = [run / name for run in sorted(_runs(path)) for name in (BEST_PGD10, LAST) if (run / name).exists()]
        inside = runs or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not inside:
            raise UserError(f"--model_path {word}: no checkpoint in that folder ({', '.join(SUFFIXES)})")
        found += inside
    return list(dict.fromkeys(found))


def _runs(folder: Path) -> set[Path]:
    return {file.parent for name in (BEST_PGD10, LAST) for file in folder.rglob(name)}


def _of_zoo(config: EvalConfig) -> dict[Path, str]:
    if (config.model or "").startswith(PREFIX):
        return {Path(config.model.replace(":", "-")): network_name(config.model)}
    raise UserError("--model_path: needed; name the checkpoint, for example .../best_PGD10_acc_model.pth")


def _heed(config: EvalConfig, paths: list[Path]) -> EvalConfig:
    """Take the image size from what our own checkpoints say of themselves; say where they come from other data."""
    sizes = set()
    for path in paths:
        facts = read_facts(path)
        if facts.get("dataset", config.dataset) != config.dataset:
            logger.warning("%s was trained on %s, not on %s", path, facts["dataset"], config.dataset)
        elif config.dataset in ("Folder", "Digits"):
            sizes.add(facts.get("image_size"))
    if config.image_size is None and len(sizes) > 1:
        raise UserError(f"--image_size: needed; the checkpoints were trained at {', '.join(map(str, sizes))}")
    return config if config.image_size or not sizes else replace(config, image_size=sizes.pop())


def _wanted(config: EvalConfig) -> list[str]:
    """Keys of the attacks that the config asks for."""
    protocol = PROTOCOLS[config.protocol](Setting(config.eps, config.seed))
    words = [word.strip() for word in config.attacks.split(",") if word.strip()]
    if config.attacks and not words:
        raise UserError(f"--attacks {config.attacks}: names no attack; the protocol has {','.join(protocol)}")
    keys = list(dict.fromkeys(canonical(word, protocol, {}, "--attacks") for word in words)) or list(protocol)
    transferred = [key for key in keys if key.startswith("transfer")]
    if transferred and not config.surrogate_path:
        raise UserError(f"--surrogate_path: needed by {', '.join(transferred)}; without one: --attacks clean,square")
    return keys


def _require_classes(keys: list[str], splits: Splits) -> None:
    if "aa" in keys and len(splits.classes) < AUTOATTACK_CLASSES:
        raise UserError(
            f"--attacks: AutoAttack needs {AUTOATTACK_CLASSES} classes, the data set has {len(splits.classes)}; "
            "name the others, for example --attacks clean,fgsm,pgd,cw"
        )


def _frozen(path: str, asked: str | None, flag: str, config: EvalConfig, splits: Splits, device) -> nn.Module | None:
    """The network of another checkpoint, in eval mode on the device; None without one."""
    if not path:
        return None
    network = make_network(network_in(path, asked, flag), path, config.dataset, splits)
    return network.to(device).eval().requires_grad_(False)
