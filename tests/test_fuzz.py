"""Random command lines: each one runs, or ends with one error line that names the flag or file and writes nothing.

They are generated from the fields of the configs, so new flags are included. FUZZ_TIMES=N tries N times as many.
"""

import math
import os
import re
import shlex
import shutil
import tempfile
import typing
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Literal

import pytest
import torch
from commands import SMALL, run_in_process
from run_files import contents
from small_sets import extra_file, image_folder, save_network, tiny_imagenet_files
from torchvision.datasets import CIFAR10, CIFAR100

import attacks.libraries
import attacks.suite
import engine.evaluation.figures
from methods import ALIASES, METHODS
from utils.config import EvalConfig, TrainConfig
from utils.fields import spelling

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

# Fast command lines; the flags under test are appended, and the last value of a flag counts.
TRAIN = f"{SMALL} --limit_train 32 --limit_test 20 --epochs 1"
EVALUATE = "--model_path net.pth --limit_test 12 --bs 12 --attacks clean,fgsm --no-pictures"
TEACHERS = "--no_teacher_check --teacher_model small_resnet --std_teacher_model small_resnet"
# Script -> its config, a fast command line, the flags of a distillation.
SCRIPTS = {
    "main.py": (TrainConfig, TRAIN, f"{TEACHERS} --teacher_path net.pth --std_teacher_path net.pth"),
    "main_eval.py": (EvalConfig, EVALUATE, ""),
}

NUMBERS = ["0", "1", "2", "3", "8", "0.5", "0.001", "-1", "16", "40", "8/255", "1e300", "1000000000"]
# Larger values are valid, but run for minutes or fill the memory.
LARGEST = {
    **{"epochs": 2, "num_steps": 3, "steps": 3, "restarts": 2},
    **{"image_size": 40, "limit_train": 64, "limit_test": 40, "val_size": 64},
}
FILES = [
    *("net.pth", "ünï cödé/net é.pth", "./net.pth", "tiny.pth", "seven.pth", "other.pth", "garbage.pth", "$a$b$.pth"),
    *("nowhere.pth", "file.txt", "folder", "images", "tiny", "old runs", "file.txt/below", "page.safetensors"),
]
NAMES = ["small_resnet", "SMALL_RESNET", "small-resnet", "resnet18", "presnet18", "Gowal2020Uncovering"]
# Field -> values, valid or nearly; other string fields take any of FILES.
VALUES = {
    "dataset": ["Digits", "digits", "Folder", "Tiny_Image", "CIFAR10", "cifar-100", "Digit"],
    "data_root": ["images", "tiny", "folder", "file.txt", "ünï cödé", "nowhere"],
    "model": ["small_resnet", "SMALL_RESNET", "robustbench:Some2026Network", "robustbench:../net", "small_resne"],
    **dict.fromkeys(("teacher_model", "std_teacher_model", "surrogate_model"), NAMES),
    "method": [*METHODS, *ALIASES, "dgad", "DGAT"],
    "device": ["cpu", "auto", "CPU", "cpu:0", "cuda:99", "cuda:-1", "cuda:300", "mps", "meta", "cpu:7", "xla:0"],
    "root_path": ["runs", "a b/ç", "old runs", "file.txt", "file.txt/below", "net.pth", "~", "./", "folder/"],
    "desc_str": ["a", "ä b", "a/b", "..", "../..", "x" * 300, "ü" * 120, "%s{}", "$x$", ":", "-"],
    "extra_data": ["extra.npz", "ünï cödé/extra é.npz", "file.txt", "folder", "net.pth"],
    "attacks": ["clean", "pgd", "clean,fgsm,cw", " cw , clean", "FGSM", "aa", ",", "clean;fgsm", "transfer_pgd"],
    "state": ["state", "a b/state", "file.txt", "file.txt/below", "kept"],
    "out": ["figures", "a b/figures", "file.txt", "file.txt/below", "../figures", "kept"],
}
STRANGE = [
    *("", " ", "nan", "-nan", "inf", "-inf", "1e999", "-1e999", "0", "-0", "-1", "0.5", "1e-320", "1e308", "8/255"),
    *("1/0", "1/2/3", "/", "0x10", "1_000", "1e3", "+5", " 7 ", "٣", "１２", "²", "10" * 30, "9" * 5000, "-9"),
    *("-", "---", "None", "True", "false", "[]", "{}", "%s", "%d%n", "{x}", "$HOME", "a\nb", "a\tb", "\x1b[2J"),
    *("\udcff", "ﷺ", "😀" * 40, "a" * 5000, "folder/../" * 500, "/dev/null/x", "/proc/self/mem", "*", "?", "a=b"),
    *("~no-such-user/x", "=", "-r", "--epochs=1", "--config", "--version"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with valid and invalid networks and data, of which each command line gets a copy."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("ünï cödé", "folder", "kept"):
        (folder / name).mkdir()
    metadata = {"model": "small_resnet", "dataset": "Digits", "classes": list("0123456789"), "image_size": 16}
    for name in ("net.pth", "ünï cödé/net é.pth", "$a$b$.pth"):
        save_network(folder / name, **metadata)
    save_network(folder / "seven.pth", num_classes=7, size=32)
    save_network(folder / "tiny.pth", num_classes=4, size=32, dataset="Tiny_Image")
    save_network(folder / "other.pth", **metadata | {"dataset": "CIFAR100", "model": "resnet18"})
    (folder / "garbage.pth").write_bytes(bytes(range(256)) * 9)
    (folder / "page.safetensors").write_text("<html>")
    (folder / "file.txt").write_text("a file\n")
    extra_file(folder / "extra.npz")
    extra_file(folder / "ünï cödé" / "extra é.npz")
    image_folder(folder / "images", ["$0$", "$1$", "$2$", "$3$"], size=(20, 24))
    tiny_imagenet_files(folder / "tiny", classes=4)
    for run in ("Natural/small_resnet_seed42", "AT/small_resnet_eps8_seed42"):
        (folder / "old runs" / "Digits" / run).mkdir(parents=True)
        shutil.copy(folder / "other.pth", folder / "old runs" / "Digits" / run / "last_epoch_model.pth")
    return folder


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Replace what is slow and not under test."""
    monkeypatch.setattr(torch, "compile", lambda body, **_: body)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # would persist; 4096 threads take minutes
    monkeypatch.setattr(engine.evaluation.figures, "RADII", (0, 8))
    identity = lambda model, x, y, noise=None: x  # noqa: E731
    monkeypatch.setattr(attacks.libraries, "_stage", lambda *_: identity)
    monkeypatch.setattr(attacks.libraries, "carlini_wagner_l2", lambda *_: identity)
    monkeypatch.setattr(attacks.suite, "carlini_wagner_l2", identity)
    for dataset in (CIFAR10, CIFAR100):
        monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/nothing-listens-here.tar.gz")


# Generate command lines.


def candidates(spec, hint) -> list[list[str]]:
    """Uses of a flag: with each value that it might take, misspelled, without a value, and with a strange value."""
    name, kinds = spelling(spec), [hint, *typing.get_args(hint)]
    if bool in kinds:
        return [[name], [name], [name], [f"--no-{name[2:]}"], [name, "yes"], [f"{name}=1"]]
    if int in kinds or float in kinds:
        args = [arg for arg in NUMBERS if "/" in arg or not float(arg) > LARGEST.get(spec.name, math.inf)]
    else:
        literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
        args = [*typing.get_args(literals[0])] if literals else VALUES.get(spec.name, FILES)
    return [*([name, arg] for arg in args), [f"{name}={args[0]}"], [name], [name.upper(), args[0]]]


def command_line(script: str, random: Random, tested=None) -> list[str]:
    """A fast command line with the flag ``tested`` and up to three others, mostly with their defaults."""
    config_class, start, teachers = SCRIPTS[script]
    hints, specs = typing.get_type_hints(config_class), fields(config_class)
    args = start.split()
    if teachers and random.random() < 0.5:
        args += [*teachers.split(), "--method", random.choice([*METHODS])]
    tested = tested or random.choice(specs)
    flags = [random.choice(candidates(tested, hints[tested.name]))]
    if random.random() < 0.3:
        flags[0] = [spelling(tested), random.choice(STRANGE)]
    for spec in random.sample(specs, random.randint(0, 3)):
        if spec.default not in (None, "", ()) and spec.name not in (*LARGEST, "model", "dataset", "data_root"):
            default = [spelling(spec), *([] if hints[spec.name] is bool else [str(spec.default)])]
            flags.append(random.choice([default] * 3 + [candidates(spec, hints[spec.name])[0]]))
    random.shuffle(flags)
    return args + [arg for flag in flags for arg in flag]


# Run them.


def names_flag_or_file(line: str, args: list[str]) -> bool:
    pieces = [piece for arg in args for piece in arg.split("=") if piece.strip()]
    shown = [form for piece in pieces for form in (" ".join(piece.split()), ascii(piece)[1:-1])]
    return bool(re.search(r"--?[A-Za-z]", line)) or any(form in line for form in shown)


@pytest.fixture
def check(world, monkeypatch, capsys):
    """Run a command line in a copy of the world and check its end; return "ran", "showed" or the error."""

    def run_and_check(script: str, args: list[str]) -> str:
        with tempfile.TemporaryDirectory() as root, monkeypatch.context() as patch:
            root = Path(root)
            # Networks are only ever replaced as a whole: a link is enough.
            link = lambda source, to: (os.link if source.endswith(".pth") else shutil.copy2)(source, to)  # noqa: E731
            shutil.copytree(world, root / "here", copy_function=link)
            before = contents(root)
            patch.chdir(root / "here")
            print(script, args)  # shown if it fails
            status, out, err = run_in_process(patch, capsys, script, shlex.join(args))
            after = contents(root)
            assert status in (0, 2) and "Traceback" not in err + out, err
            assert not any(".partial" in name for name in after)
            if status == 0:
                assert err == ""
                return "ran" if "training images" in out or "accuracy in %" in out else "showed"
            assert err.startswith("error: ") and err.count("\n") == 1
            assert names_flag_or_file(err, [*args, *(path.name for path in world.rglob("*"))]), err
            if "run folder" not in out and " test images of " not in out:
                changed = [name for name, data in after.items() if data is not None and data != before.get(name)]
                assert not changed and before.keys() <= after.keys(), changed  # a download creates its folder
            return err

    return run_and_check


def random_command_lines(script: str, count: int, tested=None) -> list[list[str]]:
    seeds = [f"{script} {tested and tested.name} {number}" for number in range(count)]
    return [command_line(script, Random(seed), tested) for seed in seeds]


@pytest.mark.parametrize("script", SCRIPTS)
def test_some_random_command_lines_run_or_are_refused(script, check, fast_runs):
    ends = [check(script, args) for args in random_command_lines(script, 12)]
    assert 3 <= ends.count("ran") < 12


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_command_lines_with_every_flag_run_or_are_refused(script, check, fast_runs):
    specs = fields(SCRIPTS[script][0])
    lines = [line for spec in specs for line in random_command_lines(script, 5 * TIMES, spec)]
    ends = [check(script, args) for args in lines]
    assert ends.count("ran") >= 0.2 * len(ends)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *((f"main.py {flag} {'x' * 5000}", "too long") for flag in ("--root_path", "--dataset Folder --data_root")),
        *((f"{flag} {'x' * 5000}", "too long") for flag in ("main_eval.py --out", "main_eval.py --state")),
        ("main_eval.py --model_path $a$b$.pth --attacks pgd --pictures", "ran"),  # no formula of Matplotlib
    ],
    ids=lambda value: value[:20],
)
def test_long_paths_are_refused_and_dollars_are_characters(command, message, check):
    script, *args = command.split()
    assert message in check(script, [*SCRIPTS[script][1].split(), *args])
