"""The documents: commands parse and run, the example of a method trains, and named files and links exist.

A shell block that no test can run is preceded by a line <!-- not run: reason -->.
"""

import re
import shlex
import shutil
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from typing import NamedTuple

import pytest
from conftest import ROOT
from small_sets import image_folder, save_network

import methods
from engine.checkpoint import BEST_PGD10, LAST
from engine.training.settings import resolve
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.flags import parse

PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "results/README.md", "models/pretrained/*/README.md")
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))}
CONFIGS = {
    "main.py": TrainConfig,
    "main_tiny.py": TinyTrainConfig,
    "main_eval.py": EvalConfig,
    "main_eval_tinyimagenet.py": TinyEvalConfig,
}
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

# Placeholders of the documents -> values of the test.
PLACEHOLDERS = {
    "<model_path/best_PGD10_acc_model.pth>": "a.pth",
    "CIFAR10": "Digits",
    "quickstart/Digits/AT/small_resnet_eps16_seed42/best_PGD10_acc_model.pth": "a.pth",
    "FILE": "a.pth",
}
SMALL = {
    "main.py": "--limit_train 8 --limit_test 4 --bs 4 --num_steps 1 --epochs 1 --no_teacher_check",
    "main_eval.py": "--limit_test 4 --steps 1 --no-pictures",
}
SCRIPTS = ("main.py", "main_eval.py", "scripts/compare.py", "scripts/export.py")


class Command(NamedTuple):
    """A shell command, and the reason if it cannot be run by a test."""

    args: list[str]
    reason: str | None


def commands_of(name):
    for block in BLOCK.finditer(DOCUMENTS[name].read_text(encoding="utf-8")):
        if block["kind"] in ("bash", "sh"):
            for line in block["text"].replace("\\\n", " ").splitlines():
                # shlex does not take <model_path> for a redirection, as a shell would.
                if args := shlex.split(line, comments=True):
                    yield Command(args, block["reason"])


def is_runnable(command):
    """Whether it is a script that needs no published teacher and no full-length training."""
    args = command.args
    known = args[0] == "python" and args[1] in SCRIPTS and command.reason is None
    return known and "200" not in args and ("--teacher_model" not in args or "--teacher_path" in args)


@pytest.fixture
def example():
    """The README's example of a method: its file, and its line of the table of methods."""
    blocks = [block["text"] for block in BLOCK.finditer(DOCUMENTS["README.md"].read_text(encoding="utf-8"))]
    (source,) = (text for text in blocks if "def meankd(" in text)
    (line,) = (text for text in blocks if text.lstrip().startswith('"MeanKD":'))
    return source, line


@pytest.fixture
def meankd(example, tmp_path, monkeypatch):
    source, line = example
    path = tmp_path / "meankd.py"
    path.write_text(source)
    spec = spec_from_file_location("methods.meankd", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, entry in eval("{" + line + "}", {**vars(methods), "meankd": module}).items():
        monkeypatch.setitem(methods.METHODS, name, entry)
        monkeypatch.setitem(methods.WITH_TEACHER, name, entry)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_parses_and_is_run_or_says_why_not(name, meankd):
    for command in commands_of(name):
        script = next((arg for arg in command.args if arg in CONFIGS), None)
        assert all((ROOT / arg).exists() for arg in command.args if re.fullmatch(r"[\w/]+\.(py|sh|sbatch)", arg))
        if script:
            args = command.args[command.args.index(script) + 1 :]
            parsed = parse(CONFIGS[script], args, description="", choices={})
            if script in ("main.py", "main_tiny.py"):
                resolve(*parsed)
        elif "--list" in command.args and not command.reason:
            subprocess.run(command.args, cwd=ROOT, check=True, capture_output=True)
        else:
            assert command.reason or is_runnable(command), f"{name}: {shlex.join(command.args)}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files that the documents' commands name."""
    monkeypatch.chdir(tmp_path)
    metadata = {"model": "small_resnet", "dataset": "Digits", "method": "AT", "classes": list("0123456789")}
    save_network(tmp_path / "a.pth", image_size=16, **metadata)
    for run in ("tuned_models/Digits/DGAD/RUN", "tuned_models/..."):
        for kind in (BEST_PGD10, LAST):
            save_network(tmp_path / run / kind, seed=1, image_size=16, **metadata)
    shutil.copy(tmp_path / run / kind, "b.pth")
    image_folder(tmp_path / "DIR")
    return tmp_path


def shortened(args):
    """The command on Digits, for a few seconds."""
    script, *rest = args[1:]
    text = " ".join(rest)
    for placeholder, value in PLACEHOLDERS.items():
        text = re.sub(rf"(?<!\w){re.escape(placeholder)}(?!\w)", value, text)
    small = SMALL.get(script, "")
    if "--dataset Digits" in text and script == "main.py":
        small += " --image_size 16"
    if script == "main_eval.py":
        small += " --attacks clean,transfer_pgd" if "blackbox" in text else " --attacks clean,fgsm"
        if "a.pth" in text:
            text = text.replace("--model resnet18", "").replace("--model mobilenetV2", "")
    return f"{text} {small}"


@pytest.mark.slow
def test_commands_that_need_only_the_readers_files_run(run, folder):
    done = set()
    for command in (command for name in DOCUMENTS for command in commands_of(name)):
        line = " ".join(command.args[1:])
        if is_runnable(command) and "MeanKD" not in line and line not in done:
            done.add(line)
            run(command.args[1], shortened(command.args))
    assert len(done) > 8


def test_the_example_of_a_method_trains(run, example, meankd, folder):
    assert len([line for line in example[0].splitlines() if line]) <= 20
    (command,) = (command for command in commands_of("README.md") if "MeanKD" in command.args)
    run("main.py", shortened(command.args))
    assert (folder / "tuned_models/Digits/MeanKD").is_dir()


NOT_OURS = {"methods/meankd.py", "main_eval_tintimagenet.py"}  # written by the reader; a typo of the official page
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)]+))?\)|\]\(#([^)]+)\)")
NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|sh|sbatch))(?:[ :`])")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_and_named_files_exist(name):
    path, text = DOCUMENTS[name], DOCUMENTS[name].read_text(encoding="utf-8")
    for target, anchor, own in LINK.findall(re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))):
        if "://" not in target:
            linked = (path.parent / target) if target else path
            assert linked.exists(), f"{name}: {target}"
            assert not (anchor or own) or (anchor or own) in anchors(linked), f"{name}: #{anchor or own}"
    for named in set(NAMED.findall(text)) - NOT_OURS:
        assert any(not file.parts[-2].startswith(".") for file in ROOT.rglob(named)), f"{name}: {named}"


def anchors(path):
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
