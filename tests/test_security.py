"""Files from elsewhere: their code is not executed, no path leaves its folder, no content ends in a traceback."""

import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import SMALL, run_in_process
from conftest import ROOT, user_error
from PIL import Image
from small_sets import MARKER, Bomb, cifar_files, tiny_imagenet_files
from torchvision.datasets import CIFAR10

import data
from engine.checkpoint import BEST_CLEAN
from engine.evaluation.records import results_path
from models import build
from models.weights import Checkpoint

RUN = Path("runs/Digits/Natural/small_resnet_seed42")
TRAIN = f"{SMALL} --method Natural --epochs 1 --root_path runs"
BEST = RUN / "best_PGD10_acc_model.pth"
RESULTS = results_path(BEST)
EVALUATE = f"--model_path {BEST} --limit_test 10 --attacks clean,fgsm --no-pictures"


def plant(path):
    """Write a file with a Bomb; in the format of torch.save if the suffix is a checkpoint's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".pth", ".pt"):
        torch.save({"net": build("small_resnet", 10, 16).state_dict(), "extra": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"net": Bomb(), "evaluations": Bomb(), "data": Bomb()}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a run of one epoch, its evaluation, and a network."""
    folder = tmp_path_factory.mktemp("prepared")
    capture = SimpleNamespace(readouterr=lambda: SimpleNamespace(out="", err=""))  # capsys has function scope
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script, flags in (("main.py", TRAIN), ("main_eval.py", EVALUATE)):
            assert run_in_process(patch, capture, script, flags).status == 0
    shutil.copy(folder / BEST, folder / "net.pth")
    return folder


@pytest.fixture
def outside(tmp_path):
    """A folder that no command may read or change."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@pytest.fixture(autouse=True)
def inside(run, prepared, outside, monkeypatch):
    """Start scripts in a copy of the prepared folder, next to ``outside``."""
    shutil.copytree(prepared, outside.with_name("inside"))
    monkeypatch.chdir(outside.with_name("inside"))
    yield
    assert not Path(MARKER).exists(), "code was executed"


# ---- no code is executed ----


DISTILL = f"{SMALL} --no_teacher_check --teacher_model small_resnet --epochs 1"
# Path of the bomb, script, flags.
REFUSED = [
    ("teacher_models/Digits/small_resnet/robust_teacher.pth", "main.py", f"{DISTILL} --method DGAD"),
    (RUN / BEST_CLEAN, "main_eval.py", "--model_path runs --attacks clean"),
    ("bomb.pth", "scripts/export.py", "--name Doe2026Bomb --out out --model_path bomb.pth"),
]


@pytest.mark.parametrize(("path", "script", "flags"), REFUSED)
def test_a_file_with_code_is_refused_by_name(refused, path, script, flags):
    plant(Path(path))
    refused(script, flags, str(path))


def test_files_with_code_are_refused_on_resume(refused):
    for path in RUN.rglob("*.pth"):
        plant(path)
    refused("main.py", f"{TRAIN.replace('--epochs 1', '--epochs 2')} --resume", str(RUN))
    torch.load(BEST, weights_only=False)
    Path(MARKER).unlink()  # the bomb works


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_cifar_pickle_with_another_checksum_is_not_opened(refused, monkeypatch, name):
    plant(cifar_files(Path("cifar"), CIFAR10, monkeypatch) / name)
    refused("main.py", "--dataset CIFAR10 --model small_resnet --epochs 1 --data_root cifar", "cifar")


# ---- no path leaves its folder ----


@pytest.mark.parametrize("name", ["../../../../../outside/secret.pth", "{outside}/secret.pth", "sub/secret.pth", ".."])
def test_results_name_no_checkpoint_elsewhere(refused, outside, monkeypatch, name):
    content = json.loads(RESULTS.read_text())
    content["evaluations"][0]["conditions"]["checkpoint"] = name.format(outside=outside)
    RESULTS.write_text(json.dumps(content))
    (outside / "secret.pth").write_text("")
    (outside / "config.json").write_text("{}")
    opened, plain = [], open
    monkeypatch.setattr("builtins.open", lambda file, *rest, **more: opened.append(file) or plain(file, *rest, **more))
    for script, flags in (("scripts/compare.py", "runs"), ("main_eval.py", EVALUATE)):
        refused(script, flags, str(RESULTS))
    assert not any("outside" in str(file) for file in opened)


@pytest.mark.parametrize("file", ["wnids.txt", "val/val_annotations.txt"])
@pytest.mark.parametrize("name", ["../../../../outside", "{outside}", "nested/name"])
def test_tiny_imagenet_names_only_its_own_files(outside, file, name):
    root, name = tiny_imagenet_files(Path("tiny-imagenet-200"), classes=3), name.format(outside=outside)
    (outside / "images").mkdir()
    for path in (outside / "images" / "0.png", outside / "0.png"):
        Image.new("RGB", (64, 64)).save(path)
    lines = f"{name}\nn00000001\nn00000002" if file == "wnids.txt" else f"{name}/0.png\tn00000000\n"
    (root / file).write_text(lines)
    with user_error(f"{root / file}"):
        data.load("Tiny_Image", root)


EVIL = [("dataset", name) for name in ("../../../outside/x", "{outside}/x", "A\n")]
EVIL += [
    ("model", name) for name in ("robustbench:../../../../outside/net", "robustbench:a\nb", "../net", "robustbench:")
]


@pytest.mark.parametrize(("key", "name"), EVIL)
def test_metadata_of_a_checkpoint_name_no_path_elsewhere(refused, outside, key, name):
    shutil.copy("net.pth", outside / "net.pt")
    torch.save(torch.load("net.pth", weights_only=True) | {key: name.format(outside=outside)}, "evil.pth")
    if key == "dataset":
        refused("scripts/export.py", "--model_path evil.pth --name Doe2026Evil --out out", "evil.pth")
    else:
        refused("main_eval.py", "--model_path evil.pth --attacks clean", "--model")
    assert len(list(outside.iterdir())) == 1


WRITTEN = ["log.txt", "config.json", "results.csv", "curves.png", "best_clean_acc_model.pth", ".lock"]
WRITTEN += [Path(RESULTS.parent.name, name) for name in ("eval.json", "eval.csv")]


@pytest.mark.parametrize("name", WRITTEN, ids=str)
def test_no_file_is_written_through_a_link(monkeypatch, capsys, outside, name):
    path, target = RUN / name, outside / "precious"
    target.write_bytes(before := path.read_bytes() if path.suffix == ".json" else b"unchanged")
    path.unlink()
    path.symlink_to(target)
    resume = "main.py", f"{TRAIN.replace('--epochs 1', '--epochs 2')} --milestones 1 --resume"
    evaluate = "main_eval.py", EVALUATE.replace("fgsm", "pgd")
    ended = run_in_process(monkeypatch, capsys, *(evaluate if path.parent != RUN else resume))
    assert ended.status in (0, 2) and target.read_bytes() == before


# ---- no content ends in a traceback ----


CYCLIC = {}
CYCLIC["net"] = CYCLIC
STRANGE = [CYCLIC, {"net": {"conv1.weight": torch.zeros(1).half().expand(10**6, 10**6)}}]


@pytest.mark.parametrize("content", STRANGE, ids=["cyclic", "expanded view"])
def test_a_strange_checkpoint_is_an_error_of_one_line(content):
    torch.save(content, "strange.pth")
    with user_error("^strange.pth: "):
        Checkpoint("strange.pth")


@pytest.mark.parametrize("metadata", [{"image_size": 10**9}, {"image_size": -3}, {"classes": [1, None]}, {"model": 5}])
def test_impossible_metadata_is_ignored(metadata):
    torch.save(torch.load("net.pth", weights_only=True) | metadata, "other.pth")
    expected = {key: value for key, value in Checkpoint("net.pth").metadata.items() if key not in metadata}
    assert Checkpoint("other.pth").metadata == expected


def test_an_error_contains_no_control_characters(refused):
    refused("main_eval.py", "--dataset \x1b[2JDigits --model_path net.pth", "--dataset")


# ---- the source; ruff's rules S... find eval, exec, pickle.load, os.system and shell=True ----


def test_no_source_loads_files_that_can_hold_code():
    unsafe = re.compile(r"torch\.load\((?!.*weights_only=True)|torch\.(hub|jit)\.load\(|allow_pickle=True")
    for folder in ("attacks", "data", "engine", "methods", "models", "scripts", "utils"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not [line for line in path.read_text(encoding="utf-8").splitlines() if unsafe.search(line)], path
