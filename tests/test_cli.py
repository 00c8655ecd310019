"""The entry scripts, from the command line to what they leave on the disk."""

import csv
import json
import math
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from commands import SMALL, run_apart, run_here
from conftest import ROOT
from PIL import Image
from small_sets import cifar_files, tiny_imagenet_files
from torchvision.datasets import CIFAR100

from engine.evaluation.records import results_path
from engine.training.run import command_for
from methods import ALIASES, METHODS, WITH_TWO_TEACHERS
from models import build
from utils.config import TrainConfig


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an entry script inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda script, words: run_here(monkeypatch, capsys, script, words)


def save_network(path, num_classes=10, name="small_resnet", image_size=32):
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": build(name, num_classes, image_size).state_dict()}, path)
    return path


def figures_of(path):
    return json.loads(results_path(path).read_text())["evaluations"][-1]["figures"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_distillation_and_its_evaluation_leave_everything_they_promise(tmp_path):
    teacher = save_network(tmp_path / "teacher.pth")
    words = f"{SMALL} --method DGAD --teacher_model small_resnet --teacher_path {teacher} --no_teacher_check"
    ended = run_apart("main.py", f"{words} --epochs 2 --root_path runs", tmp_path)
    assert ended.status == 0, ended.err
    folder = tmp_path / "runs/Digits/DGAD/small_resnet_from_small_resnet_eps8_seed42"
    names = {"best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"}
    assert {path.name for path in folder.iterdir()} == names | {
        ".lock",
        "config.json",
        "results.csv",
        "log.txt",
        "curves.png",
        "resume",
    }
    assert json.loads((folder / "config.json").read_text())["method"] == "DGAD"
    rows = rows_of(folder / "results.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(0 <= float(row["PGD10_acc"]) <= 100 and float(row["train_loss"]) > 0 for row in rows)
    checkpoint = torch.load(folder / "best_PGD10_acc_model.pth", weights_only=True)
    assert {"net", "clean_acc", "PGD10_acc", "epoch"} <= set(checkpoint)
    assert checkpoint["PGD10_acc"] == max(float(row["PGD10_acc"]) for row in rows)
    assert "chosen on 40 test images" in ended.out

    path = folder / "best_PGD10_acc_model.pth"
    words = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 20"
    ended = run_apart("main_eval.py", f"{words} --attacks clean,fgsm,pgd,cw,aa --limit_aa 3", tmp_path)
    assert ended.status == 0, ended.err
    figures = figures_of(path)
    assert list(figures) == ["Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack", "worst case"]
    assert (figures["PGD-20"]["n"], figures["AutoAttack"]["n"]) == (20, 3)
    assert "epsilon 8/255, 20 steps, step 2/255, uniform start, 1 start" in ended.out


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory):
    return tiny_imagenet_files(tmp_path_factory.mktemp("data") / "tiny-imagenet-200")


# Data set -> script, flags of two steps on it, classes.
SETS = {
    "Digits": ("main.py", SMALL, 10),
    "CIFAR100": ("main.py", "--dataset CIFAR100 --model small_resnet --num_steps 2 --bs 16 --limit_test 20", 100),
    "Tiny_Image": ("main_tiny.py", "--model small_resnet --num_steps 2 --bs 16 --limit_test 20", 200),
}


def two_steps(method, folder, classes):
    """Flags of two steps of a method, with untrained teachers that lie in ``folder``."""
    network = save_network(folder / "teacher.pth", classes)
    teachers = f"--no_teacher_check --teacher_model small_resnet --teacher_path {network}"
    if ALIASES.get(method, method) in WITH_TWO_TEACHERS:
        teachers += f" --std_teacher_model small_resnet --std_teacher_path {network}"
    return f"--limit_train 32 --epochs 1 --method {method} {teachers}"


@pytest.mark.parametrize("dataset", SETS)
def test_every_method_trains_on_every_kind_of_data(nursery, tmp_path, monkeypatch, tiny_imagenet, dataset):
    script, words, classes = SETS[dataset]
    data_root = tiny_imagenet if dataset == "Tiny_Image" else tmp_path
    if dataset == "CIFAR100":
        cifar_files(tmp_path, CIFAR100, monkeypatch, names=[str(k) for k in range(100)], labels=range(100))
        script, words = "tests/unsigned_cifar.py", f"{ROOT / script} {words}"
    for method in METHODS:
        folder = tmp_path / method
        folder.mkdir()
        nursery.start(folder, script, f"{words} --data_root {data_root} {two_steps(method, folder, classes)}")
        assert nursery.wait() == 0, f"{method}: {(folder / 'output.txt').read_text()}"
        (results,) = (folder / "tuned_models" / dataset / method).glob("*/results.csv")
        (row,) = rows_of(results)
        assert math.isfinite(float(row["train_loss"]))


@pytest.mark.parametrize("alias", ALIASES)
def test_official_names_of_methods_train(run, tmp_path, alias):
    ended = run("main.py", f"{SMALL} {two_steps(alias, tmp_path, 10)}")
    assert ended.status == 0, ended.err
    assert (tmp_path / "tuned_models/Digits" / ALIASES[alias]).is_dir()


def test_tiny_imagenet_command_and_evaluation(run, tmp_path, tiny_imagenet):
    save_network(tmp_path / "teacher_models/Tiny_Image/small_resnet/robust_teacher.pth", 200)
    words = "--dataset Tiny_Image --model small_resnet --method DGAD --teacher_model small_resnet --epsilon 8"
    words += " --num_steps 2 --step_size 2 --epochs 1 --bs 128 --lr_max 0.1 --lr_schedule piecewise --ALP_beta 15.0"
    ended = run("main_tiny.py", f"{words} --gpu_id 0 --no_teacher_check --data_root {tiny_imagenet}")
    assert ended.status == 0, ended.err
    path = next((tmp_path / "tuned_models/Tiny_Image/DGAD").glob("*/best_PGD10_acc_model.pth"))
    words = f"--dataset Tiny_Image --model small_resnet --model_path {path} --attacks clean,fgsm"
    ended = run("main_eval_tinyimagenet.py", f"{words} --data_root {tiny_imagenet}")
    assert ended.status == 0, ended.err
    assert "200 test images of Tiny_Image" in ended.out


def test_a_mobilenet_learns_from_another_network(run, tmp_path):
    teacher = save_network(tmp_path / "teacher.pth")
    words = f"--dataset Digits --model mobilenetV2 --method DGAD --teacher_model small_resnet --teacher_path {teacher}"
    ended = run("main.py", f"{words} --no_teacher_check --num_steps 1 --limit_train 4 --limit_test 4 --bs 3 --epochs 1")
    assert ended.status == 0, ended.err


def test_a_network_of_robustbench_is_student_and_is_evaluated(run, tmp_path, monkeypatch):
    zoo = ModuleType("robustbench.utils")  # stands for the package, which need not be installed
    zoo.load_model = lambda name, dataset, threat_model: build("small_resnet", 100)
    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", zoo)
    names = [str(k) for k in range(100)]
    cifar_files(tmp_path, CIFAR100, monkeypatch, names=names, labels=range(100))
    words = f"--dataset CIFAR100 --model robustbench:Some2026Network --data_root {tmp_path} --limit_test 20"
    ended = run("main.py", f"{words} --method Natural --limit_train 40 --epochs 1")
    assert ended.status == 0, ended.err
    (path,) = tmp_path.rglob("best_clean_acc_model.pth")
    assert path.parent.name == "robustbench-Some2026Network_seed42"
    for checkpoint in ("", f"--model_path {path}"):
        ended = run("main_eval.py", f"{words} {checkpoint} --attacks clean")
        assert ended.status == 0, ended.err


def test_official_evaluation_protocol(run, tmp_path):
    path = save_network(tmp_path / "net.pth")
    words = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 4"
    ended = run("main_eval.py", f"{words} --protocol official --attacks fgsm,pgd,cw")
    assert ended.status == 0, ended.err
    figures = figures_of(path)
    assert list(figures) == ["FGSM", "PGD-10", "C&W-L2", "worst case"]


def test_an_evaluation_adds_to_what_is_kept_and_replaces_no_figure_of_more_images(run, tmp_path):
    path = save_network(tmp_path / "net.pth")
    words = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 20"
    for more in ("--attacks clean,pgd", "--attacks fgsm", "--attacks pgd --eps 0.1"):
        assert run("main_eval.py", f"{words} {more}").status == 0
    first, second = json.loads(results_path(path).read_text())["evaluations"]
    assert (list(first["figures"]), list(second["figures"])) == (["Clean", "PGD-20", "FGSM", "worst case"], ["PGD-20"])
    assert (first["conditions"]["eps"], second["conditions"]["eps"]) == (8 / 255, 0.1)


def test_a_figure_does_not_depend_on_the_attacks_before_it(run, tmp_path):
    path = save_network(tmp_path / "net.pth")
    words = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 100 --steps 1"
    lines = []
    for attacks in ("pgd,cw", "cw"):
        ended = run("main_eval.py", f"{words} --attacks {attacks}")
        lines += [line.split("%")[0] for line in ended.out.splitlines() if line.startswith("C&W-inf-30")]
    assert len(lines) == 2 and lines[0] == lines[1]


def test_our_own_checkpoint_tells_its_image_size_and_its_network(run, tmp_path):
    assert run("main.py", f"{SMALL} --method Natural --epochs 1").status == 0
    (path,) = tmp_path.rglob("best_clean_acc_model.pth")
    ended = run("main_eval.py", f"--dataset Digits --model small_resnet --model_path {path} --attacks clean")
    assert ended.status == 0
    (evaluation,) = json.loads(results_path(path).read_text())["evaluations"]
    assert evaluation["conditions"]["image_size"] == 16
    ended = run("main_eval.py", f"--dataset Digits --model resnet18 --model_path {path} --attacks clean")
    assert ended.status == 2 and "holds a small_resnet; leave the flag out" in ended.err


def image_folder(root, classes):
    for part, k in product(("train", "test"), range(classes)):
        (root / part / f"class{k}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (60 * k, 0, 0)).save(root / part / f"class{k}" / "a.png")


@pytest.mark.parametrize("classes", [4, 2])  # for AutoAttack two are too few
def test_a_training_ends_with_the_command_that_evaluates_it(tmp_path, monkeypatch, capsys, classes):
    image_folder(tmp_path / "my images", classes)
    monkeypatch.chdir(tmp_path)
    words = "--dataset Folder --data_root 'my images' --model small_resnet --method Natural --epochs 1 --epsilon 8/3"
    for again in ("", "--resume"):
        ended = run_here(monkeypatch, capsys, "main.py", f"{words} {again}")
        assert ended.status == 0, ended.err
        _, script, *told = shlex.split(ended.out.splitlines()[-1].removeprefix("evaluate: "))
        assert script == str(ROOT / "main_eval.py")
    told = shlex.join(told) + (" --attacks clean" if classes == 4 else "")
    ended = run_here(monkeypatch, capsys, script, told)
    assert ended.status == 0 and "was trained at" not in ended.out, ended.err
    evaluated = [json.loads(path.read_text())["evaluations"][0] for path in tmp_path.rglob("eval.json")]
    assert {one["conditions"]["checkpoint"] for one in evaluated} == {
        "best_PGD10_acc_model.pth",
        "last_epoch_model.pth",
    }
    assert {one["conditions"]["eps"] for one in evaluated} == {8 / 3 / 255}


def test_from_the_repository_the_last_line_names_the_script_as_users_type_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = TrainConfig(dataset="Digits", gpu_id=1)
    assert command_for(config, Path("runs/a"), 10) == "python main_eval.py --model_path runs/a --gpu_id 1"


def test_without_its_packages_a_script_says_in_one_line_what_brings_them(tmp_path):
    own = Path(sys.executable).parent.resolve() == (ROOT / ".venv" / "bin").resolve()  # activating it is of no use
    for script in ("main.py", "main_tiny.py", "main_eval.py", "main_eval_tinyimagenet.py", "scripts/sweep.py"):
        bare = [sys.executable, "-S", "-E", str(ROOT / script)]  # an interpreter that finds no installed package
        line = "python main.py --method AT"
        ended = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, timeout=60, input=line)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1), ended.stderr
        assert ended.stderr.startswith("error: ") and "is not installed for" in ended.stderr
        words = "activate" if (ROOT / ".venv").exists() and not own else "setup.sh"
        assert words in ended.stderr


def test_last_batch_of_one_and_validation_split(run, tmp_path):
    ended = run("main.py", f"{SMALL} --method AT --limit_train 33 --val_size 20 --epochs 1")
    assert ended.status == 0, ended.err
    assert "chosen on 20 validation images" in ended.out
    assert "best_PGD10_acc_model.pth on the test images" in ended.out


def test_a_student_can_start_from_a_checkpoint(run, tmp_path):
    path = save_network(tmp_path / "start.pth")
    ended = run("main.py", f"{SMALL} --method Natural --model_path {path} --epochs 1 --lr_max 1e-30 --momentum 0")
    assert ended.status == 0, ended.err
    (last,) = (tmp_path / "tuned_models").rglob("last_epoch_model.pth")
    started, trained = (torch.load(file, weights_only=True)["net"]["linear.weight"] for file in (path, last))
    torch.testing.assert_close(started, trained)


def test_same_seed_same_bytes_and_another_seed_other_ones(run, tmp_path):
    for root, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("main.py", f"{SMALL} --method TRADES --epochs 1 --root_path {root} --seed {seed}").status == 0
    files = [next((tmp_path / root).rglob("last_epoch_model.pth")).read_bytes() for root in "abc"]
    assert files[0] == files[1] != files[2]


def test_a_teacher_that_reads_nothing_is_refused_with_the_usual_causes(run, tmp_path):
    path = save_network(tmp_path / "random.pth")
    words = f"{SMALL} --method RSLAD --teacher_model small_resnet --teacher_path {path} --epochs 1"
    ended = run("main.py", words)
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert "of 256 clean test images" in ended.err and "normalised" in ended.err
    assert not (tmp_path / "tuned_models").exists()
    assert run("main.py", f"{words} --no_teacher_check").status == 0


def test_the_recipe_fills_what_the_command_line_leaves_open(run, tmp_path):
    words = f"{SMALL} --method TRADES --recipe paper --epochs 1 --weight_decay 0.001 --seed 0"
    ended = run("main.py", words)
    assert ended.status == 0, ended.err
    (path,) = tmp_path.rglob("config.json")
    config = json.loads(path.read_text())
    assert (config["epsilon"], config["weight_decay"]) == (pytest.approx(0.031 * 255), 0.001)
    assert (config["epochs"], config["milestones"]) == (1, [1])  # the recipe's milestones belong to its own epochs
    lines = {line.split(":")[0]: line for line in ended.out.splitlines() if line.startswith("set by")}
    assert "--weight_decay 0.001" in lines["set by flag"] and "--seed 0" in lines["set by flag"]
    assert "--epsilon 7.905" in lines["set by recipe"]
    assert "--lr_max 0.1" in lines["set by default"]
    assert "beta 6" in lines["set by method"]


BAD = [
    ("main.py", "--method DGAT", "--method DGAT: unknown name; nearest: DGAD"),
    ("main.py", "--model resnet81", "--model resnet81: unknown name; nearest: resnet18"),
    ("main.py", "--dataset CIFAR11", "--dataset CIFAR11: unknown name; nearest: CIFAR10"),
    ("main.py", f"{SMALL} --epsilon 0", "--epsilon 0.0: must be above 0"),
    ("main.py", f"{SMALL} --epsilon 0.031", "--epsilon 0.031: is in units of 1/255: 0.031 in [0, 1] is 7.905 here"),
    ("main.py", f"{SMALL} --num_steps 0", "--num_steps 0: must be a number of at least 1"),
    ("main.py", f"{SMALL} --method DGAD --teacher_model resnet18", "teacher_models/Digits/resnet18/robust_teacher.pth"),
    ("main.py", f"{SMALL} --method DGAD --teacher_model resnet18", "python main.py --dataset Digits --method AT"),
    ("main.py", f"{SMALL} --method DGAD --teacher_path other.pth --teacher_model small_resnet", "other.pth: "),
    (
        "main.py",
        f"{SMALL} --method AKD2 --no_teacher_check --teacher_path net.pth --teacher_model small_resnet",
        "--std_teacher_path: AKD2",
    ),
    (
        "main.py",
        f"{SMALL} --method DGAD --teacher_path net.pth --teacher_model resnet18",
        "net.pth: the weights of another",
    ),
    (
        "main.py",
        f"{SMALL} --method DGAD --teacher_path net7.pth --teacher_model small_resnet",
        "net7.pth: made for 7 classes",
    ),
    ("main.py", f"{SMALL} --root_path net.pth/below", "--root_path net.pth/below: cannot write there"),
    ("main.py", f"{SMALL} --device cuda:99", "--device cuda:99: this machine has"),
    ("main.py", f"{SMALL} --device tpu", "--device tpu: not a device"),
    ("main.py", "--dataset Folder --model small_resnet", "--data_root: --dataset Folder needs a folder with"),
    (
        "main.py",
        "--dataset Folder --model small_resnet --data_root images",
        "images/train/b/broken.png: not a readable image",
    ),
    ("main.py", f"{SMALL} --method DGAD --teacher_model robustbench:X", "robustbench:X: RobustBench has networks for"),
    ("main_tiny.py", "--image_size 32", "--image_size 32: Tiny_Image has 64x64 images"),
    ("main_tiny.py", "--data_root nowhere", "--data_root nowhere: no Tiny-ImageNet there"),
    ("main_eval.py", "--dataset Digits", "--model_path: needed"),
    ("main_eval.py", "--dataset Digits --model_path missing.pth", "missing.pth: "),
    (
        "main_eval.py",
        "--dataset Digits --model resnet18 --model_path net.pth",
        "net.pth: the weights of another network",
    ),
    (
        "main_eval.py",
        "--dataset Digits --model_path net.pth --attacks fgsm,pdg",
        "--attacks pdg: unknown name; nearest: pgd",
    ),
    (
        "main_eval.py",
        "--dataset Folder --model small_resnet --data_root pair --model_path net2.pth",
        "AutoAttack needs 4",
    ),
    ("main_eval.py", "--dataset Digits --model_path net.pth --eps 8", "--eps 8.0: must be between 0 and 1, as 8/255"),
    ("main_eval_tinyimagenet.py", "--data_root nowhere --model_path net.pth", "no Tiny-ImageNet there"),
]


@pytest.mark.parametrize(("script", "words", "line"), BAD)
def test_bad_input_is_one_line_with_status_2_and_nothing_written(run, tmp_path, script, words, line):
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "net7.pth", 7)
    save_network(tmp_path / "net2.pth", 2)
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"):
        (tmp_path / "pair" / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "pair" / name)
    for name in ("train/a/good.png", "train/b/broken.png", "test/a/good.png", "test/b/good.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
        if path.stem == "broken":
            path.write_bytes(path.read_bytes()[:50])
    before = sorted(tmp_path.rglob("*"))
    ended = run(script, words)
    assert ended.status == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert line in ended.err
    # Decoded images are kept beside good data whatever comes after.
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.name.startswith(".decoded")] == before


def test_a_bad_command_line_shows_no_traceback_in_a_process_of_its_own(tmp_path):
    ended = run_apart("main.py", "--epochs none", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "error: --epochs: invalid int value: 'none' (--help lists the flags)\n"


def test_an_evaluation_at_another_epsilon_than_training_is_pointed_out(run, tmp_path):
    assert run("main.py", f"{SMALL} --limit_train 8 --epochs 1 --method AT --epsilon 16").status == 0
    path = next(tmp_path.rglob("best_PGD10_acc_model.pth"))
    words = f"--dataset Digits --model_path {path} --limit_test 4 --attacks clean"
    assert "trained at epsilon 16/255 and is attacked at 8/255 (--eps)" in run("main_eval.py", words).out
    assert "trained at" not in run("main_eval.py", f"{words} --eps {16 / 255}").out


def test_a_teacher_of_another_image_size_is_pointed_out(run, tmp_path):
    teacher = save_network(tmp_path / "teacher.pth", image_size=32)
    content = torch.load(teacher, weights_only=True)
    torch.save(content | {"image_size": 32}, teacher)
    words = f"--limit_train 8 --epochs 1 --method RSLAD --teacher_model small_resnet --teacher_path {teacher}"
    ended = run("main.py", f"{SMALL} {words} --no_teacher_check")
    assert ended.status == 0 and "was trained at --image_size 32, these are 16" in ended.out + ended.err
