"""Measure on one GPU within a time limit: python scripts/reproduce/gpu.py --minutes 9 --out DIR --data_root IMAGES

Runs the GPU tests, the step benchmark, a robust ResNet-18 teacher, and one student after another, each with its
evaluation, and starts nothing that cannot end in time. DIR gets results.json, rewritten after every piece, and the
teacher's weights in two files. Pieces that DIR, --work or --done already hold are skipped.

    gpu.py --table results/gpu                                      print the results as Markdown
    gpu.py --join DIR --to models/pretrained/resnet18_cifar10       join and check the teacher's weights, write its card
"""

import argparse
import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this file is run from its folder

from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST
from engine.evaluation.records import read_evaluations, results_folder
from models.hub import CONFIG, WEIGHTS, load_folder, save_folder
from models.weights import load_network, read_metadata
from utils.cli import ROOT, run_command
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import parser_for
from utils.log import logger
from utils.tables import markdown_table, read_csv
from utils.versions import versions

RESULTS, PARTS = "results.json", ("teacher.1", "teacher.2")
PROBE, TEACHER, EVALUATION, SECOND = "probe", "teacher", "teacher evaluation", "second teacher"
BENCHMARK = ("scripts/benchmark.py", "step")
TIMED = ("tests", "step", PROBE)
ATTACKS = ("Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack")
LEAST_AUTOATTACK = 40.0  # percent, of a teacher that is published
TEST_SECONDS, STEP_SECONDS = 90, 120  # at most, of the GPU tests and of the first round of benchmarks
MARGIN = 1.15  # of every estimate
# In order of worth: method -> seconds of an epoch in units of AT's (by arithmetic), the epoch at which introspection
# begins as a share of all epochs (papers: 60 and 40 of 200), and the method's settings on CIFAR-10.
STUDENTS = {
    "DGAD": (2.1, 0, "--ALP_beta 5"),
    "RSLAD": (1.2, 0, ""),
    "AT": (1.0, 0, ""),
    "IAD-I": (1.3, 0.3, ""),
    "AdaAD": (2.1, 0, "--kl_weight 0.1"),
    "TRADES": (1.3, 0, ""),
    "ARD": (1.2, 0, ""),
    "AdaIAD": (2.2, 0.3, ""),
    "MART": (1.2, 0, ""),
    "IAD-II": (1.4, 0.2, ""),
    "AKD2": (1.2, 0, ""),
    "DGAD-IAD": (2.2, 0.3, "--ALP_beta 5"),
}
WITHOUT_TEACHER, WITH_SECOND = ("AT", "TRADES", "MART"), ("IAD-II", "AKD2")


class Scale(NamedTuple):
    """Sizes of everything; ``steps`` are method, teacher, batch size and --compile of each benchmark."""

    model: str
    training: str
    evaluation: str
    images: int  # for training
    probe_images: int  # of the short training that measures an epoch
    epochs: int  # at most
    teacher_seconds: float  # at most
    second_epochs: int
    students: Sequence[str]
    tests: str
    steps: Sequence[tuple[str, str, int, str]]


PAIRS = [
    ("AT", "resnet18"),
    *((method, name) for name in ("wideresnet34_10", "resnet18") for method in ("DGAD", "RSLAD")),
]
SCALES = {
    "full": Scale(
        model="resnet18",
        training="--val_size 1000 --bs 128 --eval_every 5 --eval_bs 1000",
        evaluation="--limit_test 1000 --bs 500 --precision auto --attacks clean,fgsm,pgd,cw,aa",
        images=49_000,
        probe_images=9_000,
        epochs=30,
        teacher_seconds=200,
        second_epochs=10,
        students=list(STUDENTS),
        tests="-m gpu",
        steps=[(*pair, bs, mode) for bs in (128, 512) for pair in PAIRS for mode in ("graphs", "on", "off")],
    ),
    "smoke": Scale(  # shows on a CPU that every piece runs
        model="small_resnet",
        training="--image_size 16 --val_size 32 --bs 32 --num_steps 2 --eval_every 5 --no_teacher_check",
        evaluation="--image_size 16 --limit_test 20 --attacks clean,fgsm,pgd,cw",
        images=96,
        probe_images=64,
        epochs=1,
        teacher_seconds=60,
        second_epochs=1,
        students=["DGAD", "IAD-II"],
        tests="tests/test_schedule.py",
        steps=[("AT", "small_resnet", 4, "off")],
    ),
}


def gpu(arguments: Sequence[str]) -> None:
    """Measure, print a table or join weights. Raises UserError before anything is measured for a bad request."""
    parser = parser_for(__doc__)
    parser.add_argument("--minutes", type=float, metavar="M", help="time limit, of everything")
    parser.add_argument("--out", metavar="DIR", help="folder of the results: 3 files of at most 16 MiB")
    parser.add_argument("--data_root", default=".images/cifar10_jpeg", metavar="DIR", help="image folder of CIFAR-10")
    parser.add_argument("--data_name", default="CIFAR-10 (JPEG copy)", metavar="NAME", help="what to call the images")
    parser.add_argument("--scale", choices=SCALES, default="full", help="smoke runs on a CPU [default: full]")
    parser.add_argument("--done", default="results/gpu", metavar="DIR", help="earlier results [default: results/gpu]")
    parser.add_argument("--work", metavar="DIR", help="folder of checkpoints; default: runs/gpu-SCALE")
    parser.add_argument("--table", metavar="DIR", help="print the results in DIR as Markdown and end")
    parser.add_argument("--join", metavar="DIR", help="join the teacher's weights in DIR and end")
    parser.add_argument("--to", metavar="DIR", help="folder of the joined weights")
    options = parser.parse_args(arguments)
    if options.table:
        logger.info("%s", table(Path(options.table)))
    elif options.join:
        join(Path(options.join), Path(options.to or "models/pretrained/resnet18_cifar10"))
    else:
        _require_sound(options)
        measure_all(Session(options))


def _require_sound(options: argparse.Namespace) -> None:
    if not 0 < (options.minutes or 0) < 1e4:
        raise UserError(f"--minutes {options.minutes}: must be a number above 0")
    if not options.out:
        raise UserError("--out: needed; name the folder of the results")
    if options.scale == "full":
        for part in ("train", "test"):
            if not any(Path(options.data_root, part).glob("*/*.*")):
                raise UserError(
                    f"--data_root {options.data_root}: no images in {part}/CLASS/; unpack the archive first"
                )
        if not torch.cuda.is_available():
            raise UserError("--scale full: needs a CUDA device; --scale smoke runs on a CPU")


class Session:
    """One call: the results so far, the time that is left, and the commands that produce the results.

    Raises UserError if --out or --work holds results of another device.
    """

    def __init__(self, options: argparse.Namespace):
        self.scale, self.end = SCALES[options.scale], time.monotonic() + 60 * options.minutes - 5
        self.out, self.work = Path(options.out), Path(options.work or f"runs/gpu-{options.scale}")
        self.earlier, self.data = Path(options.done), ["--dataset", "Digits"]
        if options.scale == "full":
            self.data = ["--dataset", "Folder", "--data_root", options.data_root]
        self.machine = _machine() | {"data": options.data_name if options.scale == "full" else "Digits"}
        self.pieces: dict[str, dict] = {}
        for folder in (self.out, self.work):
            earlier = _read(folder / RESULTS)
            card = earlier["machine"].get("device", self.machine["device"])
            if card != self.machine["device"]:
                raise UserError(
                    f"{folder}: has results of {card}, this is {self.machine['device']}; name another folder"
                )
            self.pieces |= earlier["pieces"]
            folder.mkdir(parents=True, exist_ok=True)
        self.done = {key: piece for key, piece in self.pieces.items() if "error" not in piece}
        for path in sorted(self.earlier.rglob("*.json")):
            earlier = _read(path)
            other = earlier["machine"].get("device") != self.machine["device"]
            for key, piece in earlier["pieces"].items():  # times count for one card only; weights are not kept
                if not ("error" in piece or key == SECOND or (other and key.startswith(TIMED))):
                    self.done.setdefault(key, piece)

    def left(self) -> float:
        """Seconds until the results must be written."""
        return self.end - time.monotonic()

    def attempt(self, key: str, seconds: float, measure: Callable[[], dict]) -> None:
        """Measure one piece if it is not done and fits into the time; write the results at once."""
        if key in self.done:
            return
        if MARGIN * seconds > self.left():
            logger.info("%s: left out, needs about %.0f s of %.0f s", key, seconds, self.left())
            return
        began = time.monotonic()
        try:
            piece = self.done[key] = measure()
        except UserError as error:
            piece = {"error": str(error)}
        self.pieces[key] = piece | {"seconds": round(time.monotonic() - began, 1)}
        logger.info("%s: %.0f s %s", key, self.pieces[key]["seconds"], piece.get("error", ""))
        for folder in (self.work, self.out):
            write_text(folder / RESULTS, json.dumps({"machine": self.machine, "pieces": self.pieces}, indent=1) + "\n")
        for part in PARTS:
            if (self.work / part).exists():
                shutil.copy(self.work / part, self.out / part)

    def command(self, words: Sequence[str], *, limit: float | None = None, run: str = "", epochs: int = 0) -> dict:
        """Run a command of the project; raises UserError if it fails or does not end in time.

        With ``run``, the suffix of a training's folder, the result has the seconds of an epoch, and the training ends
        as soon as its ``epochs`` do not fit into the time.
        """
        words, rows, began = [str(word) for word in words], [], time.monotonic()
        limit = min(limit or self.left(), self.left())
        log = self.work / "log.txt"
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.1)
            elapsed = time.monotonic() - began
            if run and len(_rows(self.work, run)) > len(rows):
                rows.append(elapsed)
            ahead = (epochs - len(rows)) * _per_epoch(rows)
            if elapsed + ahead > limit:
                process.kill()
                process.wait()
                raise UserError(f"stopped after {elapsed:.0f} s: does not end in time ({len(rows)} epochs)")
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise UserError(f"status {process.returncode}: {lines[-1]}")
        timed = {"first_epoch_seconds": rows[0], "epoch_seconds": _per_epoch(rows)} if len(rows) > 1 else {}
        return {"command": shlex.join(["python", *words]), "log": log.read_text(errors="replace")[-2000:], **timed}

    def train(self, method: str, run: str, epochs: int, seed: int, flags: Sequence[str] = ()) -> dict:
        """Train in the folder with suffix ``run``; the result has the rows of results.csv."""
        words = ["main.py", *self.data, *self.scale.training.split(), "--limit_train", self.scale.images]
        words += ["--model", self.scale.model, "--method", method, "--epochs", epochs, "--lr_schedule", "cosine"]
        words += ["--seed", seed, "--root_path", self.work, "--desc_str", run, "--resume", *flags]
        ended = self.command(words, run=run, epochs=epochs)
        return ended | {"method": method, "epochs": epochs, "seed": seed, "rows": _rows(self.work, run)}

    def evaluate(self, checkpoints: dict[str, Path]) -> dict:
        """Evaluate checkpoints by name; the result has the accuracies of each."""
        words = [
            "main_eval.py",
            *self.data,
            *self.scale.evaluation.split(),
            "--model",
            self.scale.model,
            "--no-pictures",
        ]
        ended = self.command([*words, "--model_path", *checkpoints.values()])
        records = {name: read_evaluations(results_folder(path) / "eval.json") for name, path in checkpoints.items()}
        return ended | {"results": {name: record[-1]["figures"] for name, record in records.items()}}

    def folder(self, run: str) -> Path:
        """The folder of a training; one that does not exist if there is none."""
        return next(self.work.glob(f"*/*/*_{run}"), self.work / run)


def measure_all(session: Session) -> None:
    """All pieces in order of worth."""
    scale = session.scale
    tests = ["-m", "pytest", "-q", *scale.tests.split()]
    session.attempt("tests", 20, lambda: session.command(tests, limit=TEST_SECONDS))
    measure_steps(session, until=time.monotonic() + STEP_SECONDS)
    session.attempt(PROBE, 60, lambda: probe(session))
    if PROBE not in session.done:
        return
    first, epoch = (session.done[PROBE][key] for key in ("first_epoch_seconds", "epoch_seconds"))
    if not find_weights(session):
        session.done.pop(TEACHER, None)
    epochs = min(scale.epochs, max(1, int((scale.teacher_seconds - first) / (MARGIN * epoch))))
    epochs = session.done.get(TEACHER, {}).get("epochs", epochs)
    session.attempt(TEACHER, first + epochs * epoch, lambda: train_teacher(session, epochs))
    if not (weights := find_weights(session)):
        return
    last = session.folder(TEACHER) / LAST
    checkpoints = {"best": weights} | ({"last": last} if last.exists() else {})
    session.attempt(EVALUATION, 90, lambda: session.evaluate(checkpoints))
    evaluation = session.pieces.get(EVALUATION, {}).get("seconds", 90)
    for method in scale.students:
        if method in WITH_SECOND:
            session.attempt(SECOND, first, lambda: session.train("Natural", "second", scale.second_epochs, 42))
        cost = first + epochs * epoch * STUDENTS[method][0] + evaluation
        session.attempt(method, cost, lambda method=method: train_student(session, method, epochs, weights))
    measure_steps(session, until=session.end)


def measure_steps(session: Session, until: float) -> None:
    """Benchmark training steps until a time of the clock."""
    for method, teacher, bs, mode in session.scale.steps:
        key = f"step {method}, teacher {teacher}, batch {bs}, compile {mode}"
        taken = [piece["seconds"] for name, piece in session.pieces.items() if name.startswith("step")]
        words = ["--method", method, "--model", session.scale.model, "--teacher_model", teacher, "--bs", bs]
        if time.monotonic() < until:
            step = partial(benchmark, session, [*words, "--compile", mode])
            session.attempt(key, max(taken, default=40), step)


def benchmark(session: Session, flags: Sequence) -> dict:
    """Time one training step against the plain reference."""
    path = session.work / "step.json"
    path.unlink(missing_ok=True)
    return session.command([*BENCHMARK, *flags, "--json", path]) | {"benchmark": read_json(path)}


def probe(session: Session) -> dict:
    """Train AT for three epochs on a few images; the result has the seconds of an epoch of all images."""
    scale = session.scale
    measured = session.train("AT", PROBE, 3, 0, ["--limit_train", scale.probe_images, "--eval_every", 100])
    return measured | {"epoch_seconds": measured["epoch_seconds"] * scale.images / scale.probe_images}


def train_teacher(session: Session, epochs: int) -> dict:
    """Train by AT; keep the best checkpoint with convolutions and matrices in bfloat16, in two files."""
    trained, folder = session.train("AT", TEACHER, epochs, 42), session.work / TEACHER
    best = session.folder(TEACHER) / BEST_PGD10
    size = read_metadata(best).get("image_size", 32)
    save_folder(load_network(session.scale.model, 10, best, size), folder, session.scale.model, 10, size)
    weights = {key: value.bfloat16() if value.ndim > 1 else value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    content = (folder / WEIGHTS).read_bytes()
    for number, part in enumerate(PARTS):
        half = len(content) // 2
        (session.work / part).write_bytes(content[number * half :] if number else content[:half])
    config = read_json(folder / CONFIG)
    return trained | {"sha256": hashlib.sha256(content).hexdigest(), "config": config}


def train_student(session: Session, method: str, epochs: int, weights: Path) -> dict:
    """Train one student with the teacher's schedule and evaluate its best and its last checkpoint."""
    _, begin, flags = STUDENTS[method]
    words = flags.split() + (["--IAD_begin", round(begin * epochs)] if begin else [])
    if method not in WITHOUT_TEACHER:
        words += ["--teacher_model", session.scale.model, "--teacher_path", weights]
    if method in WITH_SECOND:
        words += [
            "--std_teacher_model",
            session.scale.model,
            "--std_teacher_path",
            session.folder("second") / BEST_CLEAN,
        ]
    trained, folder = session.train(method, method, epochs, 1, words), session.folder(method)
    evaluated = session.evaluate({"best": folder / BEST_PGD10, "last": folder / LAST})
    return trained | {"results": evaluated["results"], "evaluation_command": evaluated["command"]}


def find_weights(session: Session) -> Path | None:
    """The teacher's weights: of this session, joined from the files of an earlier one, or the published ones."""
    path = session.work / TEACHER / WEIGHTS
    published = ROOT / "models" / "pretrained" / "resnet18_cifar10" / WEIGHTS
    if not path.exists() and (parts := sorted(session.earlier.rglob("teacher.[12]"))):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    if path.exists():
        return path.absolute()
    return published if session.scale is SCALES["full"] and published.exists() else None


def join(source: Path, target: Path) -> None:
    """Join the teacher's weights and write them with configuration and card. Raises UserError for a bad teacher."""
    kept = _read(source / RESULTS)
    try:
        teacher, results = kept["pieces"][TEACHER], kept["pieces"][EVALUATION]["results"]["best"]
        content = b"".join((source / part).read_bytes() for part in PARTS)
        robust = results.get("AutoAttack", {"accuracy": 0.0})["accuracy"]
    except (KeyError, OSError) as error:
        raise UserError(f"{source}: holds no evaluated teacher ({error})") from error
    if hashlib.sha256(content).hexdigest() != teacher["sha256"]:
        raise UserError(f"{source}: the parts of the teacher are damaged or of another call")
    if robust < LEAST_AUTOATTACK:
        raise UserError(f"{source}: AutoAttack accuracy {robust:.2f} % is below {LEAST_AUTOATTACK:g} %; not written")
    target.mkdir(parents=True, exist_ok=True)
    (target / WEIGHTS).write_bytes(content)
    write_text(target / CONFIG, json.dumps(teacher["config"], indent=2) + "\n")
    load_folder(target)  # strictly: a missing weight is an error here
    lines = [[attack, f"{one['accuracy']:.2f}", one["n"]] for attack, one in results.items()]
    write_text(
        target / "README.md",
        f"# {target.name}: a robust teacher\n\n`{teacher['config']['model']}` trained by AT (PGD-10, L-infinity, "
        f"epsilon 8/255) for {teacher['epochs']} epochs, cosine schedule, seed {teacher['seed']}.\n\n"
        f"{markdown_table(['attack (epsilon 8/255)', 'accuracy in %', 'test images'], lines)}\n\n"
        f"Data: {kept['machine']['data']}; 1,000 training images held out to choose the epoch. Hardware: "
        f"{kept['machine']['device']}, PyTorch {kept['machine']['torch']}. Convolutions and matrices are stored in "
        "bfloat16, and were evaluated so. Images (B, 3, H, W) in [0, 1], not normalized; logits (B, 10) in CIFAR-10's "
        f"order.\n\nThe command:\n\n<!-- not run: needs a GPU -->\n```bash\n{teacher['command']}\n```\n",
    )
    logger.info("%s: AutoAttack %.2f %%", target, robust)


def table(folder: Path) -> str:
    """Accuracies and speed of all results below a folder as Markdown. Raises UserError if there are none."""
    accuracies, speeds = [], []
    for path in sorted(folder.rglob("*.json")):
        kept = _read(path)
        for key, piece in kept["pieces"].items():
            for checkpoint, results in piece.get("results", {}).items():
                cells = [f"{results[attack]['accuracy']:.2f}" if attack in results else "-" for attack in ATTACKS]
                name = "AT (the teacher)" if key == EVALUATION else key
                accuracies.append([name, checkpoint, *cells, kept["machine"]["data"], kept["machine"]["device"]])
            if measured := piece.get("benchmark"):
                rate = measured["images_per_second"]
                peak = measured.get("peak_mib", {}).get("ours", "-")
                speeds.append([key.removeprefix("step "), f"{rate['ours']:.0f}", f"{measured['ratio']:.2f}", peak])
                speeds[-1].append(kept["machine"]["device"])
    if not accuracies + speeds:
        raise UserError(f"{folder}: holds no results of gpu.py")
    parts = [markdown_table(["method", "checkpoint", *ATTACKS, "data", "hardware"], accuracies)] if accuracies else []
    header = ["step", "images/s", "ratio to the reference", "peak memory (MiB)", "hardware"]
    return "\n\n".join(parts + ([markdown_table(header, speeds)] if speeds else []))


def _machine() -> dict[str, Any]:
    """Hardware and versions."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if cuda else f"CPU, {platform.machine()}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None
    return {"device": device, "memory_gib": memory and round(memory, 1), "cuda": torch.version.cuda, **versions()}


def _read(path: Path) -> dict[str, dict]:
    """The results in a file; empty without one. Raises UserError for a damaged file."""
    try:
        content = read_json(path) if path.exists() else {}
        return {key: dict(content.get(key, {})) for key in ("machine", "pieces")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: no results of gpu.py ({error})") from error


def _rows(work: Path, run: str) -> list[dict[str, str]]:
    path = next(work.glob(f"*/*/*_{run}/results.csv"), None)
    return read_csv(path) if path else []


def _per_epoch(ends: Sequence[float]) -> float:
    """Seconds of an epoch after the first, which includes the start; 0 as long as there is none."""
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


if __name__ == "__main__":
    run_command(lambda: gpu(sys.argv[1:]))
