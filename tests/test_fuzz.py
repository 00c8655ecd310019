"""Any command line ends well: it runs, or one line names the flag or file that is wrong and nothing is half-written.

The command lines are made from the fields of the configs, so a new flag is tried without being listed here.
FUZZ_TIMES=N tries N times as many.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
import re
import runpy
import shutil
import sys
import tempfile
import traceback
import types
import typing
import warnings
from collections import Counter
from dataclasses import fields
from inspect import getclosurevars
from pathlib import Path
from typing import Literal

import pytest
import torch
from commands import SMALL, run_apart
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from matplotlib.figure import Figure
from PIL import Image
from small_sets import tiny_imagenet_files
from torchvision.datasets import CIFAR10, CIFAR100

import attacks.libraries
import attacks.suite
import engine.evaluation.figures
from methods import ALIASES, METHODS
from models import build
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.flags import increasing, spelling

set_hypothesis_home_dir(tempfile.gettempdir())  # what hypothesis notes of its own accord stays out of the tree
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

# A command line that runs in a fraction of a second; what is tried is added to it, the last word on a flag counts.
QUICK = f"{SMALL} --limit_train 32 --limit_test 20 --epochs 1"
QUICK_TINY = "--data_root tiny --model small_resnet --bs 8 --num_steps 2 --limit_test 4 --epochs 1"
JUDGED = "--model_path net.pth --limit_test 12 --bs 12 --attacks clean,fgsm --no-pictures"
JUDGED_TINY = "--model_path tiny.pth --data_root tiny --limit_test 4 --bs 4 --attacks clean,fgsm --no-pictures"
TAUGHT = "--no_teacher_check --teacher_model small_resnet --std_teacher_model small_resnet"
TAUGHT_BY = f"{TAUGHT} --teacher_path net.pth --std_teacher_path net.pth"
TAUGHT_TINY = f"{TAUGHT} --teacher_path tiny.pth --std_teacher_path tiny.pth"
# Script -> its config, the words it starts from, those of a distillation, command lines for each flag.
SCRIPTS = {
    "main.py": (TrainConfig, QUICK, TAUGHT_BY, 4),
    "main_tiny.py": (TinyTrainConfig, QUICK_TINY, TAUGHT_TINY, 2),
    "main_eval.py": (EvalConfig, JUDGED, "", 5),
    "main_eval_tinyimagenet.py": (TinyEvalConfig, JUDGED_TINY, "", 3),
}
LEAST_SHARE = 0.2  # of the command lines that run to their end; the others are refused

# Largest values that are tried: what is larger is right, and runs for minutes or fills the memory.
COSTLY = {
    "epochs": 2,
    "num_steps": 3,
    "steps": 3,
    "restarts": 2,
    "image_size": 40,
    "limit_train": 64,
    "limit_test": 40,
    "val_size": 64,
}
FILES = [
    *("net.pth", "ünï cödé/net é.pth", "./net.pth", "tiny.pth", "seven.pth", "other.pth", "garbage.pth", "$a$b$.pth"),
    *("nowhere.pth", "file.txt", "folder", "images", "tiny", "old runs", "file.txt/below", "page.safetensors"),
]
NAMES = ["small_resnet", "SMALL_RESNET", "small-resnet", "resnet18", "presnet18", "Gowal2020Uncovering"]
ATTACKS = ["clean", "pgd", "clean,fgsm,cw", " pgd_trades , clean", "FGSM", "aa", ",", "clean;fgsm", "transfer_pgd"]
# Values that a flag of words takes, or nearly; one that is not here takes any of FILES. Large networks would be slow.
WORDS = {
    "dataset": ["Digits", "digits", "Folder", "Tiny_Image", "CIFAR10", "cifar-100", "Digit"],
    "data_root": ["images", "tiny", "folder", "file.txt", "ünï cödé", "nowhere"],
    "model": ["small_resnet", "SMALL_RESNET", "robustbench:Some2026Network", "robustbench:../net", "small_resne"],
    "teacher_model": NAMES,
    "std_teacher_model": NAMES,
    "surrogate_model": NAMES,
    "method": [*METHODS, *ALIASES, "dgad", "DGAT"],
    "device": ["cpu", "auto", "CPU", "cpu:0", "cuda:99", "cuda:-1", "cuda:300", "mps", "meta", "cpu:7", "xla:0"],
    "root_path": ["runs", "a b/ç", "old runs", "file.txt", "file.txt/below", "net.pth", "~", "./", "folder/"],
    "desc_str": ["a", "ä b", "a/b", "..", "../..", "x" * 300, "ü" * 120, "%s{}", "$x$", ":", "-"],
    "attacks": ATTACKS,
    "state": ["state", "a b/state", "file.txt", "file.txt/below", "kept"],
    "out": ["figures", "a b/figures", "file.txt", "file.txt/below", "../figures", "kept"],
}
# What the words above that suit the digits are on Tiny-ImageNet.
SWAPPED = {"net.pth": "tiny.pth", "images": "tiny", "Digits": "Tiny_Image", "resnet18": "small_resnet"}
# Words that are no value of any flag, or a strange one.
STRANGE = [
    *("", " ", "nan", "-nan", "inf", "-inf", "1e999", "-1e999", "0", "-0", "-1", "0.5", "1e-320", "1e308", "8/255"),
    *("1/0", "1/2/3", "/", "0x10", "1_000", "1e3", "+5", " 7 ", "٣", "１２", "²", "10" * 30, "9" * 5000, "-9", "--"),
    *("-", "---", "None", "True", "false", "[]", "{}", "%s", "%d%n", "{x}", "$HOME", "a\nb", "a\tb", "\x1b[2J"),
    *("\udcff", "ﷺ", "😀" * 40, "a" * 5000, "folder/../" * 500, "/dev/null/x", "/proc/self/mem", "*", "?", "a=b"),
    *("~no-such-user/x", "=", "-r", "--epochs=1"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with small networks and data, right and wrong ones, which each command line gets a copy of."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("ünï cödé", "folder", "images", "kept"):
        (folder / name).mkdir()
    _end("main.py", f"{SMALL} --method Natural --limit_train 1400 --epochs 3 --root_path first".split(), folder)
    (best,) = folder.rglob("best_clean_acc_model.pth")
    trained = torch.load(best, weights_only=True)
    assert trained["clean_acc"] > 30  # a teacher is asked for twice chance
    for name in ("net.pth", "ünï cödé/net é.pth", "$a$b$.pth"):
        torch.save(trained, folder / name)
    shutil.rmtree(folder / "first")
    torch.save({"net": build("small_resnet", 7).state_dict()}, folder / "seven.pth")
    torch.save({"net": build("small_resnet", 4).state_dict(), "dataset": "Tiny_Image"}, folder / "tiny.pth")
    torch.save(trained | {"dataset": "CIFAR100", "model": "resnet18"}, folder / "other.pth")
    (folder / "garbage.pth").write_bytes(bytes(range(256)) * 9)
    (folder / "page.safetensors").write_text("<html>")
    (folder / "file.txt").write_text("a file\n")
    for part in ("train", "test"):
        for k in range(4):
            (folder / "images" / part / f"${k}$").mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (20, 24), (60 * k, 90 * n, 0)).save(folder / "images" / part / f"${k}$" / f"{n}.png")
    tiny_imagenet_files(folder / "tiny", classes=4)
    _end("main.py", [*QUICK.split(), "--root_path", "old runs"], folder)
    strange = folder / "old runs" / "Digits" / "Natural" / "small_resnet_seed42"
    strange.mkdir(parents=True)
    shutil.copy(folder / "other.pth", strange / "last_epoch_model.pth")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Stubs for what is slow, and not what is tried here."""
    monkeypatch.setattr(torch, "compile", lambda body, **_: body)  # a minute of C++ a network
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # would stay, and 4096 on two cores take minutes
    monkeypatch.setattr(engine.evaluation.figures, "RADII", (0, 8))  # eleven attacks a picture
    for name in ("_stage", "carlini_wagner_l2"):  # other libraries' thousands of steps
        monkeypatch.setattr(attacks.libraries, name, _stand_still)
    monkeypatch.setattr(attacks.suite, "carlini_wagner_l2", _images)
    for dataset in (CIFAR10, CIFAR100):
        monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/nothing-listens-here.tar.gz")


def _images(model, x, y, noise=None):
    return x


def _stand_still(*_):
    return _images


# Command lines.


def numbers(spec) -> list[str]:
    """Numbers at, inside and outside the bounds that a field's check knows, and some that suit anywhere."""
    check = spec.metadata["check"]
    bounds = getclosurevars(check).nonlocals.values() if check else []
    near = [bound + step for bound in bounds for step in (-1, 0, 1, 0.5, -1e-9)]
    some = (0, 1, 2, 3, 0.1, 2.5, 10**9, 2**63, 1e300, 1e-320, -5)
    return [str(number) if isinstance(number, int) else f"{number:.12g}" for number in (*near, *some)]


def passes(spec, word: str) -> bool:
    """Whether a number is one that the field takes."""
    check, number = spec.metadata["check"], float(word)
    return not check or not check((number,) if check is increasing else number)


def cheap(spec, word: str) -> bool:
    """Whether the command line that holds the word may be carried out here."""
    try:
        return not float(word) > COSTLY.get(spec.name, math.inf)
    except ValueError:
        return True


def parts_of(hint) -> tuple[type, bool]:
    """The type of one word of a field, and whether it takes several."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    several = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if several else hint), several


def right_words(spec, kind) -> list[str]:
    """Words that a field probably takes."""
    if typing.get_origin(kind) is Literal:
        return [form for word in typing.get_args(kind) for form in (word, word.lower(), word.upper())]
    if kind in (int, float):
        found = [word for word in numbers(spec) if cheap(spec, word) and passes(spec, word)]
        return [word for word in found if kind is float or re.fullmatch(r"-?\d+", word)]
    return WORDS.get(spec.name, FILES)


@st.composite
def flag_words(draw, spec, hint, right: bool):
    """A flag with a value, or with what is none."""
    kind, several = parts_of(hint)
    name = spelling(spec)
    if kind is bool:
        forms = [[name], [f"--no-{name[2:]}"]] if spec.default else [[name]]
        return draw(st.sampled_from(forms if right else [[name, "yes"], [f"{name}=1"], [f"--no-{name[2:]}"]]))
    words = right_words(spec, kind)
    if not right:
        near = words if kind is str else numbers(spec)
        words = [word for word in draw(st.sampled_from([near, [*STRANGE, *FILES]])) if cheap(spec, word)]
    count = draw(st.integers(1, 3)) if several else 1
    values = [draw(st.sampled_from(words)) for _ in range(count)]
    if right and kind is int and several:
        values = sorted(set(values), key=float)
    if right:
        return [name, *values]
    misspelt = [[name[:-1], *values], [name.upper(), *values]]
    too_many = [[name, *values, name, *values], [name, *values, draw(st.sampled_from(STRANGE))]]
    return draw(st.sampled_from([*[[name, *values]] * 6, [f"{name}={values[0]}"], [name], *misspelt, *too_many]))


@st.composite
def command_lines(draw, config_class, start: str, taught: str, tried):
    """The words of a quick run, the flag that is tried, and others, most of them right, in any order."""
    hints, specs = typing.get_type_hints(config_class), fields(config_class)
    words = start.split()
    if taught and draw(st.booleans()):
        words += [*taught.split(), "--method", draw(st.sampled_from([*METHODS]))]
    closed = [spec for spec in specs if parts_of(hints[spec.name])[0] is not str]  # most of their words are right
    others = [(draw(st.sampled_from(closed)), True) for _ in range(draw(st.integers(0, 3)))]
    others += [(draw(st.sampled_from(specs)), False)] * draw(st.sampled_from([0, 0, 0, 0, 1]))
    for spec, right in draw(st.permutations([*others, (tried, draw(st.sampled_from([True, False])))])):
        words += draw(flag_words(spec, hints[spec.name], right))
    return [SWAPPED.get(word, word) for word in words] if " tiny " in start and draw(st.booleans()) else words


# What becomes of them.


def _end(script: str, words: list[str], folder: Path):
    """Carry a command line out in a folder: status, standard output, standard error, warnings."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal's or a file's
    err, here, argv, log = io.StringIO(), Path.cwd(), sys.argv, logging.getLogger()
    status, handlers = 0, log.handlers[:]
    os.chdir(folder)
    sys.argv = [script, *words]
    try:
        outputs = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with outputs[0], outputs[1], warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", ResourceWarning)  # Python shows none of these either
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    except Exception:
        status = traceback.format_exc()
    finally:
        os.chdir(here)
        sys.argv = argv
        for handler in set(log.handlers) - set(handlers):
            handler.close()
        log.handlers[:] = handlers
    out.seek(0)
    return status, out.read(), err.getvalue(), [str(warning.message) for warning in told]


def contents(folder: Path) -> dict[str, tuple]:
    """Size and time of every file under a folder; decoded images are kept beside good data whatever comes after."""
    places = [place for place in folder.rglob("*") if not place.name.startswith(".decoded")]
    stats = {str(place.relative_to(folder)): place.stat() for place in places if not place.is_dir()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def whole(path: Path) -> bool:
    """Whether a file that a run leaves can be read to its end."""
    if path.suffix == ".pth":
        torch.load(path, weights_only=True)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return len({len(row) for row in csv.reader(file)}) == 1
    return not path.name.startswith(".partial")


def names_one(line: str, words: list[str]) -> bool:
    """Whether an error line names a flag, or a file by one of the words; strange characters are shown otherwise."""
    pieces = [piece for word in words for piece in word.split("=") if piece.strip()]
    shown = [form for piece in pieces for form in (" ".join(piece.split()), ascii(piece)[1:-1])]
    return bool(re.search(r"--?[A-Za-z]", line)) or any(form in line for form in shown)


def _link(source: str, target: str) -> None:
    """Networks need no copy: they are only ever replaced whole."""
    (os.link if source.endswith(".pth") else shutil.copy2)(source, target)


def ends_well(script: str, words: list[str], world: Path) -> str:
    """Carry a command line out in a copy of the world and see that it ends as it should; how it ended."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "here"
        shutil.copytree(world, folder, copy_function=_link)
        before = contents(Path(place))
        status, out, err, told = _end(script, words, folder)
        after = contents(Path(place))
        assert status in (0, 2), f"{words}\n{status}"
        assert "Traceback" not in err + out, f"{words}\n{err}"
        new = [Path(place) / name for name in after if after[name] != before.get(name)]
        assert all(map(whole, new)), f"{words}\n{new}"
        if status == 0:
            assert err == "", f"{words}\n{err}"
            return "ran" if "training images" in out or "accuracy in %" in out else "showed"
        assert err.startswith("error: ") and err.count("\n") == 1 and not told, f"{words}\n{err}{told}"
        assert names_one(err, [*words, *(path.name for path in world.rglob("*"))]), f"{words}\n{err}"
        if "run folder" not in out and " test images of " not in out:
            assert before == after, f"{words}\n{new}"
        return "refused"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_line_ends_well(script, world, monkeypatch):
    # Drawing takes as long as all the rest; pictures of strange names are drawn in earnest below.
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Image.new("RGB", (1, 1)).save(path))
    config_class, start, taught, examples = SCRIPTS[script]
    ended = Counter()
    for tried in fields(config_class):

        @settings(
            max_examples=examples * TIMES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(words=command_lines(config_class, start, taught, tried))
        def holds(words):
            ended[ends_well(script, words, world)] += 1

        holds()
    print(f"{script}: {dict(ended)}")
    assert ended["ran"] >= LEAST_SHARE * sum(ended.values())


# What once ended in a traceback, or in none of these words.
FOUND = [
    ("main.py", ["--desc_str", "\udcff"], "not UTF-8"),
    ("main.py", ["--root_path", "x" * 5000], "too long"),
    ("main.py", ["--dataset", "Folder", "--data_root", "x" * 5000], "too long"),
    ("main.py", ["--data_root", "~no-such-user/x"], "--data_root ~no-such-user/x: there is no such user"),
    ("main.py", ["--method", "ARD", "--temp", "1e300"], "--temp 1e+300: must be"),
    ("main_eval.py", ["--data_root=--"], "--data_root: -- is no value"),
    ("main_eval.py", ["--model_path=--"], "--model_path: -- is no value"),
    ("main_eval.py", ["--out", "x" * 5000], "too long"),
    ("main_eval.py", ["--state", "x" * 5000], "too long"),
    ("main_eval.py", ["--model_path", "$a$b$.pth", "--attacks", "pgd", "--pictures"], None),
]


@pytest.mark.parametrize(("script", "words", "said"), FOUND, ids=lambda value: str(value)[:20])
def test_what_once_ended_in_a_traceback(script, words, said, world, tmp_path):
    words = [*SCRIPTS[script][1].split(), *words]
    assert ends_well(script, words, world) == ("refused" if said else "ran")
    if said:
        shutil.copytree(world, tmp_path / "here")
        assert said in _end(script, words, tmp_path / "here")[2]


def test_a_name_that_the_terminal_has_no_characters_for_is_shown_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = run_apart("main.py", f"{QUICK} --method Natural --desc_str ünï", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert r"seed42_\xfcn\xef" in ended.out
