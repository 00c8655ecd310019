"""The entry scripts, from the command line to the files that they write."""

import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL
from conftest import ROOT
from run_files import folder_of, rows_of
from small_sets import cifar_files, image_folder, robustbench_package, save_network, tiny_imagenet_files
from torchvision.datasets import CIFAR100

from engine.evaluation.records import read_evaluations, results_path
from engine.training.settings import resolve
from methods import ALIASES, METHODS
from models import build
from utils.config import TrainConfig

# One optimizer step, with untrained teachers in net.pth.
ONE_STEP = "--limit_train 8 --limit_test 8 --bs 8 --num_steps 1 --epochs 1 --model small_resnet --no_teacher_check"
DIGITS = f"--dataset Digits --image_size 16 {ONE_STEP}"
TEACHER = "--teacher_model small_resnet --teacher_path net.pth"
TEACHERS = f"{TEACHER} --std_teacher_model small_resnet --std_teacher_path net.pth"


@pytest.fixture(autouse=True)
def network(tmp_path, fast_runs):
    """The network that command lines name; no figures are drawn."""
    save_network(tmp_path / "net.pth", size=32)


def test_a_distillation_and_its_evaluation_write_all_their_files(run, tmp_path):
    ended = run("main.py", f"{SMALL} --method DGAD {TEACHER} --no_teacher_check --epochs 2 --root_path runs")
    folder = tmp_path / "runs/Digits/DGAD/small_resnet_from_small_resnet_eps8_seed42"
    checkpoints = {"best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "last_epoch_model.pth"}
    others = {".lock", "config.json", "results.csv", "log.txt", "curves.png", "resume"}
    assert {path.name for path in folder.iterdir()} == checkpoints | others
    rows = rows_of(folder)
    assert len(rows) == 2
    assert all(0 <= float(row["PGD10_acc"]) <= 100 and float(row["train_loss"]) > 0 for row in rows)
    path = folder / "best_PGD10_acc_model.pth"
    checkpoint = torch.load(path, weights_only=True)
    assert {"net", "clean_acc", "PGD10_acc", "epoch"} <= set(checkpoint)
    assert checkpoint["PGD10_acc"] == max(float(row["PGD10_acc"]) for row in rows)
    assert "40 test images" in ended.out

    args = f"--model_path {path} --limit_test 20 --attacks clean,fgsm,pgd,cw,aa --limit_aa 3 --steps 3"
    ended = run("main_eval.py", f"{args} --no-pictures")
    (evaluation,) = read_evaluations(results_path(path))
    figures = evaluation["figures"]
    assert list(figures) == ["Clean", "FGSM", "PGD-3", "C&W-inf-30", "AutoAttack", "worst case"]
    assert (figures["PGD-3"]["n"], figures["AutoAttack"]["n"]) == (20, 3)
    assert "epsilon 8/255, 3 steps, step size 2/255, uniform start, 1 restart" in ended.out


@pytest.mark.parametrize("args", [*METHODS, "DGAD --model mobilenetV2 --bs 3"])
def test_every_method_trains(train, tmp_path, args):
    train(f"{DIGITS} {TEACHERS} --method {args}")
    (row,) = rows_of(tmp_path / "tuned_models/Digits" / args.split()[0])
    assert math.isfinite(float(row["train_loss"]))


def test_official_names_of_methods():
    assert {alias: resolve(TrainConfig(method=alias), {})[0].method for alias in ALIASES} == ALIASES


def test_tiny_imagenet_is_trained_on_and_evaluated(run, tmp_path):
    data_root = tiny_imagenet_files(tmp_path / "tiny-imagenet-200")
    teacher = tmp_path / "teacher_models/Tiny_Image/small_resnet/robust_teacher.pth"
    save_network(teacher, num_classes=200, size=32)
    args = "--method DGAD --teacher_model small_resnet --epsilon 8 --step_size 2 --lr_schedule piecewise --gpu_id 0"
    run("main_tiny.py", f"{ONE_STEP} {args} --ALP_beta 15.0 --data_root {data_root}")
    path = folder_of(tmp_path / "tuned_models/Tiny_Image/DGAD") / "best_PGD10_acc_model.pth"
    args = f"--dataset Tiny_Image --model small_resnet --model_path {path} --attacks clean --data_root {data_root}"
    assert "200 test images of Tiny_Image" in run("main_eval_tinyimagenet.py", args).out


def test_a_robustbench_network_is_trained_and_evaluated(run, tmp_path, monkeypatch):
    robustbench_package(tmp_path, monkeypatch)  # need not be installed
    published = tmp_path / "models/cifar100/Linf/Some2026Network.pt"
    published.parent.mkdir(parents=True)
    torch.save(build("small_resnet", 100).state_dict(), published)
    cifar_files(tmp_path, CIFAR100, monkeypatch, names=[str(k) for k in range(100)], labels=range(100))
    args = f"--dataset CIFAR100 --model robustbench:Some2026Network --data_root {tmp_path} --limit_test 20"
    run("main.py", f"{args} --method Natural --limit_train 40 --epochs 1")
    (path,) = tmp_path.rglob("best_clean_acc_model.pth")
    assert path.parent.name == "robustbench-Some2026Network_seed42"
    for checkpoint in ("", f"--model_path {path}"):
        run("main_eval.py", f"{args} {checkpoint} --attacks clean")


@pytest.mark.parametrize("classes", [4, 2])  # too few for AutoAttack: 2
def test_a_training_ends_with_the_command_that_evaluates_it(run, tmp_path, classes):
    image_folder(tmp_path / "my images", "abcd"[:classes])
    (tmp_path / "my images" / "test" / "a" / "0.png").write_text("damaged")
    args = "--dataset Folder --data_root 'my images' --model small_resnet --method Natural --epochs 1 --epsilon 8/3"
    for again in ("", "--resume"):
        ended = run("main.py", f"{args} --skip_damaged --cache_dir 'my cache' {again}")
        _, script, *command = shlex.split(ended.out.splitlines()[-1].removeprefix("evaluate: "))
        assert script == str(ROOT / "main_eval.py")
    run(script, shlex.join([*command, "--no-pictures"]) + (" --attacks clean" if classes == 4 else ""))
    conditions = [read_evaluations(path)[0]["conditions"] for path in tmp_path.rglob("eval.json")]
    assert {one["checkpoint"] for one in conditions} == {"best_clean_acc_model.pth", "last_epoch_model.pth"}
    assert {one["eps"] for one in conditions} == {8 / 3 / 255}
    assert {one["image_size"] for one in conditions} == {32} and not (tmp_path / "my images" / ".decoded").exists()


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(tmp_path):
    own = Path(sys.executable).parent.resolve() == (ROOT / ".venv" / "bin").resolve()
    command = "activate" if (ROOT / ".venv").exists() and not own else "setup.sh"
    for script in ("main.py", "main_eval.py", "main_tiny.py", "main_eval_tinyimagenet.py", "scripts/sweep.py"):
        bare = [sys.executable, "-S", "-E", str(ROOT / script)]  # finds no installed package
        ended = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1), ended.stderr
        assert ended.stderr.startswith("error: ") and "is not installed for" in ended.stderr
        assert command in ended.stderr


def test_a_student_is_initialized_from_a_checkpoint(run, tmp_path):
    run("main.py", f"{SMALL} --method Natural --model_path net.pth --epochs 1 --lr_max 1e-30 --momentum 0")
    paths = "net.pth", folder_of(tmp_path) / "last_epoch_model.pth"
    initial, trained = (torch.load(path, weights_only=True)["net"]["linear.weight"] for path in paths)
    torch.testing.assert_close(initial, trained)


def sources_of(log):
    """The lines of a log that say what set a flag, by source."""
    return {line.split(":")[0]: line for line in log.splitlines() if line.startswith("set by")}


def test_same_seed_same_bytes_and_the_config_of_a_run_repeats_it(train, tmp_path):
    train(f"{SMALL} --method TRADES --trades_beta 3 --epochs 1 --root_path a --seed 1")
    config = folder_of(tmp_path / "a") / "config.json"
    lines = sources_of(train(f"--config {config} --root_path b"))
    train(f"--config {config} --root_path c --seed 2")
    files = [(folder_of(tmp_path / root) / "last_epoch_model.pth").read_bytes() for root in "abc"]
    assert files[0] == files[1] != files[2]
    assert "--root_path b" in lines["set by flag"] and "--bs 16" in lines["set by config file"]
    assert "beta 3" in lines["set by method"]


def test_a_teacher_below_chance_level_is_refused_with_the_usual_causes(train, tmp_path):
    args = f"{SMALL} --method RSLAD {TEACHER} --epochs 1"
    train(args, error="256 clean test images.*normali")
    assert not (tmp_path / "tuned_models").exists()
    train(f"{args} --no_teacher_check")


def test_other_training_conditions_are_reported(run, tmp_path):
    save_network(tmp_path / "large.pth", size=32, image_size=32)
    ended = run("main.py", f"{DIGITS} --method RSLAD {TEACHER} --teacher_path large.pth --epsilon 16")
    assert "was trained at --image_size 32, not 16" in ended.out
    path = next(tmp_path.rglob("best_PGD10_acc_model.pth"))
    args = f"--dataset Digits --model_path {path} --limit_test 4 --attacks clean"
    assert "trained at epsilon 16/255" in run("main_eval.py", args).out
    assert "trained at epsilon" not in run("main_eval.py", f"{args} --eps 16/255").out
    assert read_evaluations(results_path(path))[0]["conditions"]["image_size"] == 16


DGAD = f"{SMALL} --method DGAD --teacher_model small_resnet"
BAD = {
    ("main.py", f"{DGAD} --teacher_path other.pth"): "other.pth: ",
    ("main.py", f"{SMALL} --method AKD2 --no_teacher_check {TEACHER}"): "--std_teacher_path: AKD2",
    ("main.py", f"{DGAD} --teacher_path net2.pth"): "net2.pth: has 2 classes",
    ("main.py", f"{SMALL} --root_path net.pth/below"): "--root_path net.pth/below: cannot be written to",
    ("main.py", f"{SMALL} --device cuda:99"): "--device cuda:99: not available",
    ("main.py", f"{SMALL} --device tpu"): "--device tpu: not a device",
    ("main.py", f"{DGAD} --teacher_model robustbench:X"): "robustbench:X: RobustBench has networks for",
    ("main_eval.py", "--dataset Digits"): "--model_path: required",
}


@pytest.mark.parametrize(("script", "args"), BAD)
def test_bad_input_is_one_line_with_status_2_and_writes_nothing(refused, tmp_path, script, args):
    save_network(tmp_path / "net2.pth", num_classes=2)
    refused(script, args, BAD[script, args])
