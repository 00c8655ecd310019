"""Evaluate checkpoints: from an EvalConfig to results that are printed and written next to each checkpoint."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.suite import PROTOCOLS, Attack, Setting
from data import TEST_SUBSET_SEED, Split, Splits, dataset_name, decode_files, fingerprint, load_configured, subset
from data.loader import Batches
from engine.accuracy import predict, warn_of_input_scale
from engine.device import choose_device, set_tf32
from engine.distributed import EVALUATION_TIMEOUT, Processes, destroy, init, local_gpu
from engine.evaluation.evaluate import choose_attacks, choose_precision, run_attacks
from engine.evaluation.figures import CANDIDATES, draw_confusions, draw_examples, draw_radii
from engine.evaluation.records import Record, results_folder, sha256, worst_case
from engine.evaluation.sanity import is_constant, sanity_check, warn_of_masking
from engine.evaluation.state import State
from engine.evaluation.targets import (
    EvalTarget,
    find_targets,
    infer_dataset,
    load_other_network,
    warn_of_epsilon,
    with_missing_classes,
)
from utils.config import EvalConfig
from utils.errors import Stopped, UserError
from utils.files import WriteError, write_atomically
from utils.log import logger
from utils.seed import seed_everything
from utils.tables import text_table
from utils.versions import versions

COMPARED = ("dataset", "limit_test", "protocol", "eps", "steps", "restarts", "judge", "seed", "bs", "precision")


def run_evaluation(config: EvalConfig) -> None:
    """Attack the checkpoints by the chosen protocol; print the accuracies and write them next to each checkpoint.

    Raises UserError for errors that the user can fix, and Stopped on Ctrl-C.
    """
    again = "continues from --state" if config.state else "starts again (with --state DIR it would continue)"
    processes = init(EVALUATION_TIMEOUT)
    try:
        _evaluate_all(config, processes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--bs {config.bs}: CUDA out of memory; reduce --bs (with --state DIR the same command continues from "
            "finished stages)"
        ) from error
    except WriteError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); eval.json has the finished attacks; the same "
            f"command {again}; --out DIR writes to another folder"
        ) from error
    except KeyboardInterrupt as stop:
        raise Stopped(f"interrupted: eval.json has the finished attacks; the same command {again}", 130) from stop
    finally:
        destroy()


def _evaluate_all(config: EvalConfig, processes: Processes) -> None:
    if config.dataset:
        config = replace(config, dataset=dataset_name(config.dataset))
    if config.protocol == "official":
        config = replace(config, judge="last")
    device = choose_device(config.device, local_gpu(config.gpu_id), config.threads)
    config = replace(config, precision=choose_precision(config.precision, device))
    warn_of_unused(config, select_attacks(config))  # reports invalid flags before data is read
    targets = find_targets(config)
    config = infer_dataset(config, targets)
    warn_of_epsilon(targets, config.eps)
    set_tf32(False)
    seed_everything(config.seed)
    splits, images = processes.rank0_first(_read, config, targets)
    natural = load_other_network(config.natural_path, None, "--natural_path", config, splits, device)
    path, model = config.surrogate_path if config.protocol == "blackbox" else "", config.surrogate_model
    surrogate = load_other_network(path, model, "--surrogate_model", config, splits, device)
    setting = Setting(config.eps, config.seed, config.steps, config.restarts, config.judge, surrogate, path)
    protocol = PROTOCOLS[config.protocol](setting)
    attacks = {key: protocol[key] for key in select_attacks(config, len(splits.classes))}
    for target in targets:
        target.load(config, splits)  # reports an unsuitable file before the first attack
    evaluations = [Evaluation(target, attacks, splits, images, config) for target in targets]
    results, problems = {}, []
    for each in evaluations:
        try:
            results[each.target.path] = each.run(device, processes, natural)
        except UserError as error:
            path = str(each.target.path)
            problems.append(str(error) if path in str(error) else f"{path}: {error}")
            if processes.count > 1:  # the others may not have this error
                break
    if results:
        logger.info("\n%s", comparison(results))
    if problems:
        raise UserError("; ".join(problems))


def _read(config: EvalConfig, targets: list[EvalTarget]) -> tuple[Splits, Split]:
    splits = with_missing_classes(load_configured(config), targets, config.dataset)
    return splits, *decode_files(subset(splits.test, config.limit_test, TEST_SUBSET_SEED))


class Evaluation:
    """One network under all attacks. Raises UserError, before any attack, if results or state cannot be written."""

    def __init__(
        self, target: EvalTarget, attacks: dict[str, Attack], splits: Splits, images: Split, config: EvalConfig
    ):
        self.target, self.attacks, self.splits, self.images, self.config = target, attacks, splits, images, config
        conditions, folder = make_conditions(target, images, config), results_folder(target.path)
        if config.out:  # the checkpoint's whole path, since checkpoints may have the same name
            folder = Path(os.path.abspath(folder))
            below = folder.is_relative_to(Path.cwd()) and not Path("config.json").is_file()  # not in a run's folder
            folder = Path(config.out, folder.relative_to(Path.cwd() if below else folder.anchor))
        self.record = Record(folder, conditions)
        name = conditions["sha256"][:12] if target.checkpoint else target.path.name
        # The file may be renamed, and no result depends on the batch size.
        content = {key: value for key, value in conditions.items() if key not in ("checkpoint", "bs")}
        self.state = State(Path(config.state, name), content | versions()) if config.state else None

    def run(self, device: torch.device, processes: Processes, natural: nn.Module | None) -> dict[str, dict]:
        """Return the results by title, with their worst case; each is printed and written immediately."""
        target, config, images = self.target, self.config, self.images
        network = target.load(config, self.splits).to(device)
        message = "%s: %s, %d test images of %s"
        logger.info(message, target.path, target.name, len(images.labels), config.dataset)
        batches = partial(Batches, device=device)
        predicted, results = {"clean": predict(network, batches(images, config.bs), f"--model_path {target.path}")}, {}
        options = {"classes": self.splits.classes, "batches": batches, "batch_size": config.bs, "seed": config.seed}
        options |= {"precision": config.precision, "limit_aa": config.limit_aa}
        options |= {"state": self.state, "processes": processes}
        outcomes = run_attacks(network, self.attacks, images, predicted["clean"], **options)
        for key, classes, result in outcomes:
            title = self.attacks[key].title
            predicted[key], results[title] = classes, result
            _log(title, result)
            if processes.is_rank0:
                self.record.add(title, result)
        if processes.is_rank0:
            self._write_table()
            self._warn_and_draw(network, natural, predicted, device)
            logger.info("results: %s", self.record.path.parent)
        return results | worst_case(results)

    def _write_table(self) -> None:
        """Write eval.csv; with ``--out`` also the run's config.json, which names method, teacher and seed in tables."""
        self.record.write_table()
        settings, copy = self.target.path.with_name("config.json"), self.record.path.parent.with_name("config.json")
        if self.config.out and settings.is_file() and not settings.is_symlink() and not copy.exists():
            write_atomically(copy, partial(shutil.copyfile, settings))

    def _warn_and_draw(
        self, network: nn.Module, natural: nn.Module | None, predicted: dict[str, Tensor], device: torch.device
    ) -> None:
        """Warn if the results are not meaningful, and draw the figures."""
        folder, config, images, classes = self.record.path.parent, self.config, self.images, self.splits.classes
        pgd, check = self.attacks.get("pgd"), None
        warn_of_input_scale(network, next(iter(Batches(images, config.bs, device=device)))[0], str(self.target.path))
        if not is_constant(predicted["clean"], images.labels, classes) and pgd:
            check = sanity_check(network, images, config.eps, device, batch_size=config.bs)
        warn_of_masking(self.record, config.eps, check)
        if pgd and config.pictures:
            networks = {"/".join(self.target.path.parts[-2:]): network} | ({"natural": natural} if natural else {})
            draw_radii(networks, images, config.bs, config.seed, device, folder / "attacks.png")
            candidates = Batches(subset(images, CANDIDATES, TEST_SUBSET_SEED), config.bs, device=device)
            draw_examples(network, pgd, candidates, classes, config.seed, folder / "examples.png")
            draw_confusions({"clean": predicted["clean"], pgd.title: predicted["pgd"]}, images.labels, classes, folder)


def make_conditions(target: EvalTarget, images: Split, config: EvalConfig) -> dict:
    """Settings that two results must share to be in one table."""
    transfer = config.protocol == "blackbox" and config.surrogate_path
    return {
        "checkpoint": target.path.name,
        "sha256": target.checkpoint.sha256 if target.checkpoint else None,
        "model": target.name,
        **{key: getattr(config, key) for key in COMPARED},
        **{key: getattr(config, key) for key in ("weights", "normalize") if getattr(config, key)},
        "image_size": images.images.shape[-1],
        "images": fingerprint(images),
        "surrogate": sha256(config.surrogate_path) if transfer else None,
    }


def _log(title: str, result: dict) -> None:
    values = (result[key] for key in ("accuracy", "n", "settings", "seconds"))
    logger.info("%-19s %6.2f %%  (n %d; %s; %.0f s)", title, *values)
    if result["stages"]:
        stages = ", ".join(f"{name} {accuracy:.2f} %" for name, accuracy in result["stages"].items())
        logger.info("%-19s after %s", "", stages)


def comparison(results: dict[Path, dict[str, dict]]) -> str:
    """Return one table of the checkpoints' accuracies; their attacks and numbers of images are the same."""
    first = next(iter(results.values()))
    header = ["accuracy in %", *(f"{title} (n={result['n']})" for title, result in first.items())]
    rows = [
        ["/".join(path.parts[-3:]), *(f"{each[title]['accuracy']:.2f}" for title in first)]
        for path, each in results.items()
    ]
    return text_table(header, rows)


def warn_of_unused(config: EvalConfig, keys: list[str]) -> None:
    """Log the flags that have no effect with the chosen attacks."""
    transfer, attacks = config.protocol == "blackbox", PROTOCOLS[config.protocol](Setting(config.eps, config.seed))
    used = {"limit_aa": "aa" in keys, "surrogate_path": transfer, "surrogate_model": transfer}
    used |= {"natural_path": "pgd" in keys and config.pictures, "steps": {"pgd", "transfer_pgd"} & {*keys}}
    used |= {"restarts": any("restarts" in attacks[key].parameters for key in keys)}
    given = [f"--{name}" for name in used if not used[name] and getattr(config, name) != getattr(EvalConfig, name)]
    if given:
        logger.warning("WARNING: the attacks %s ignore %s", ",".join(keys), ", ".join(given))


def select_attacks(config: EvalConfig, classes: int | None = None) -> list[str]:
    """Return the keys of the requested attacks; raises UserError if one cannot be run."""
    keys = choose_attacks(config.attacks, config.protocol, classes)
    transfer = [key for key in keys if key.startswith("transfer")]
    if transfer and not config.surrogate_path:
        without = "without a surrogate use --attacks clean,square"
        raise UserError(f"--surrogate_path: required by {', '.join(transfer)}; {without}")
    return keys
