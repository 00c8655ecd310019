"""A run that was interrupted ends with the same bytes as one that was not, and only the same run is resumed."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from commands import SMALL, Killed, fail_at
from filelock import FileLock
from PIL import Image
from run_files import files_of, folder_of, rows_of
from small_sets import extra_file, image_folder, save_network

from engine.checkpoint import save_checkpoint
from engine.training.results import MEASUREMENTS
from engine.training.run import make_student
from engine.training.run_folder import RunFolder
from engine.training.trainer import Trainer
from models import build
from utils.config import TrainConfig

RUN = f"{SMALL} --method AT --lr_schedule constant"
NATURAL = f"{SMALL} --method Natural"


# Settings -> the function, and its call, that ends the run, again and again.
STEP = [(Trainer, "step", 5)]  # in the middle of an epoch
SAVE = [(torch, "save", nth) for nth in (2, 5, 11, 12)]  # in a step, in a validation, in SWA's BatchNorm, at the end
KILLS = {
    # In the middle of an epoch, while a checkpoint is written, after the epoch's row and before its state.
    "AT --epochs 3 --eval_every 2": [(Trainer, "step", 3), (torch, "save", 6), (RunFolder, "save", 1)],
    "AT --epochs 3 --ema 0.9 --awp 0.01 --accumulate 2 --clip_grad 1 --epsilon_ramp 2 --lr_schedule cyclic": SAVE,
    "AT --epochs 3 --swa_start 2": SAVE,
    "AT --epochs 2 --extra_data EXTRA --augment cutmix": STEP,
    **{f"{method} --epochs 2": STEP for method in ("PeerAiD", "ADR", "B-MTARD")},  # they have a state
}


@pytest.mark.parametrize("args", KILLS)
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(distill, tmp_path, monkeypatch, args):
    extra_file(tmp_path / "extra.npz")
    for folder, kills in (("whole", []), ("parts", KILLS[args])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        start = partial(distill, args.replace("EXTRA", f"{tmp_path}/extra.npz"), "--save_minutes 0 --resume")
        for owner, name, nth in kills:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                fail_at(patch, owner, name, nth)
                start()
        assert ("resuming after epoch" in start()) == bool(kills)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_run_killed_while_it_saves_its_first_epoch_is_resumed(train, tmp_path, monkeypatch):
    train(f"{NATURAL} --epochs 2 --root_path whole")
    expected = files_of(folder_of(tmp_path / "whole"))
    for nth in (1, 2):  # the checkpoint, the state after it
        args = f"{NATURAL} --epochs 2 --resume --root_path parts{nth}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            fail_at(patch, torch, "save", nth)
            train(args)
        train(args)
        parts = files_of(folder_of(tmp_path / f"parts{nth}"))
        assert all(parts[name] == data for name, data in expected.items() if name != "config.json")


def test_two_epochs_and_two_more_are_four(train, tmp_path):
    train(f"{RUN} --epochs 4 --root_path whole")
    train(f"{RUN} --epochs 2 --root_path parts")
    measured = [[row[key] for key in MEASUREMENTS] for row in rows_of(tmp_path / "parts")]
    assert "resuming after epoch 2 of 4" in train(f"{RUN} --epochs 4 --root_path parts --resume")
    parts, whole = (files_of(folder_of(tmp_path / name)) for name in ("parts", "whole"))
    assert all(parts[name] == data for name, data in whole.items() if name != "config.json")
    rows = rows_of(tmp_path / "parts")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [[row[key] for key in MEASUREMENTS] for row in rows[:2]] == measured
    assert all(float(row[key]) > 0 for row in rows for key in MEASUREMENTS)


@pytest.mark.parametrize("damaged", [None, b"epoch\n\xff,,\n", b"epoch,images_per_s,peak_memory_mib\nx,y,z\n"])
def test_results_csv_is_written_again_from_the_state(train, tmp_path, damaged):
    train(f"{NATURAL} --epochs 2")
    table = folder_of(tmp_path) / "results.csv"
    rows = rows_of(tmp_path)
    table.unlink()
    if damaged:
        table.write_bytes(damaged)
    train(f"{NATURAL} --epochs 3 --resume")
    assert rows_of(tmp_path)[:2] == [row | dict.fromkeys(MEASUREMENTS, "") for row in rows]
    assert len(rows_of(tmp_path)) == 3


def test_resume_starts_a_new_run_and_leaves_a_finished_one(train, tmp_path):
    train(f"{RUN} --epochs 2 --val_size 8 --resume")
    files = files_of(tmp_path)
    for epochs in (2, 1):
        assert "all 2 epochs are done" in train(f"{RUN} --epochs {epochs} --val_size 8 --resume")
    assert files_of(tmp_path) == files
    (folder_of(tmp_path) / "curves.png").unlink()  # the run was stopped while it drew them
    assert "on the test images: clean" in train(f"{RUN} --epochs 2 --val_size 8 --resume")
    assert files_of(tmp_path) == files
    train(f"{RUN} --epochs 2", error="already contains a run; --resume continues it")
    train(f"{RUN} --epochs 1 --desc_str again")


def test_two_runs_never_share_a_folder(train, tmp_path):
    train(f"{NATURAL} --epochs 1")
    files = files_of(tmp_path)
    with FileLock(folder_of(tmp_path) / ".lock"):
        train(f"{NATURAL} --epochs 2 --resume --workers 1", error="another run is training there")
    assert files_of(tmp_path) == files
    train(f"{NATURAL} --epochs 2 --resume")


def test_other_settings_are_refused_but_for_those_that_the_method_does_not_use(train):
    train(f"{NATURAL} --epochs 1")
    for change, shown in (
        ("--weight_decay 0.001", "0.0005 -> 0.001"),
        ("--eval_every 2", "1 -> 2"),
        ("--ema 0.9", "not given -> 0.9"),
    ):
        train(f"{NATURAL} --epochs 2 --resume {change}", error=f"{change.split()[0]} {shown}")
    assert "all 1 epochs" in train(f"{NATURAL} --epochs 1 --resume --teacher_model small_resnet --trades_beta 3")


def test_a_state_from_before_a_flag_existed_and_a_start_file_that_has_moved_are_no_obstacle(train, tmp_path):
    save_network(tmp_path / "start.pth")
    train(f"{RUN} --epochs 1 --model_path start.pth --normalize cifar10")
    (tmp_path / "start.pth").unlink()
    (path,) = tmp_path.rglob("resume/*.pth")
    state = torch.load(path, weights_only=True)
    for name in ("compile", "precision", "sync_bn", "attack_bn", "eval_every"):
        state["config"].pop(name, None)
    save_checkpoint(path, state)
    train(f"{RUN} --epochs 2 --model_path start.pth --resume --eval_every 2", error="--eval_every 1 -> 2")
    train(f"{RUN} --epochs 2 --model_path start.pth --resume --no_teacher_check")
    train(f"{RUN} --epochs 3 --resume")


def test_a_student_that_began_with_a_file_of_deepmind_is_resumed_in_its_layout():
    config, data = TrainConfig(model="wideresnet70_16"), SimpleNamespace(classes=range(10), image_size=32)
    with torch.device("meta"):  # 267 million parameters
        weights = build("wideresnet70_16_deepmind", 10).state_dict()
        assert make_student(config, data, None, {"net": weights}).state_dict().keys() == weights.keys()


def test_a_run_keeps_its_number_of_threads(train, tmp_path, monkeypatch):
    used, current = [], [3]
    monkeypatch.setattr(torch, "set_num_threads", lambda n: used.append(n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: current[0])
    train(f"{NATURAL} --epochs 1")
    current[0] = 1
    assert "CPU threads: 3" in train(f"{NATURAL} --epochs 2 --resume") and used == [3, 3]
    assert json.loads((folder_of(tmp_path) / "config.json").read_text())["threads"] == 3
    assert "CPU threads: 2" in train(f"{NATURAL} --epochs 3 --resume --threads 2")


def test_more_epochs_keep_the_milestones_of_the_first_start(train, tmp_path):
    train(f"{NATURAL} --epochs 2")
    log = train(f"{NATURAL} --epochs 4 --resume")
    assert "the run keeps its milestones 1 2; a new run with --epochs 4 would use 2 3" in log
    assert [float(row["lr"]) for row in rows_of(tmp_path)] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert json.loads((folder_of(tmp_path) / "config.json").read_text())["milestones"] == [1, 2]


def test_other_data_are_refused(train, tmp_path):
    root = tmp_path / "images"
    image_folder(root, "ab", size=(16, 16))
    extra_file(tmp_path / "extra.npz", classes=2)
    args = "--dataset Folder --data_root images --model small_resnet --method AT --num_steps 1 --bs 4"
    args += " --extra_data extra.npz"
    train(f"{args} --epochs 1")
    files = files_of(folder_of(tmp_path))
    extra_file(tmp_path / "extra.npz", n=80, classes=2)
    train(f"{args} --epochs 2 --resume", error="was trained with other images; --desc_str NAME starts another run")
    extra_file(tmp_path / "extra.npz", classes=2)
    without = args.removesuffix(" --extra_data extra.npz")
    train(f"{without} --epochs 2 --resume", error="has other settings .--extra_data extra.npz -> not given.;")
    for path in (root / "train/a/0.png", root / "test/b/1.png"):
        original = path.read_bytes()
        Image.new("RGB", (16, 16), "red").save(path)
        train(f"{args} --epochs 2 --resume", error="was trained with other images; --desc_str NAME starts another run")
        path.write_bytes(original)
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "c")
    train(f"{args} --epochs 2 --resume", error="was trained with other classes; --desc_str NAME starts another run")
    assert files_of(folder_of(tmp_path)) == files


def test_other_teachers_are_refused_and_the_same_at_other_paths_are_not(train, tmp_path):
    for seed, name in enumerate(("robust.pth", "standard.pth", "other.pth")):
        save_network(tmp_path / name, seed)
    args = f"{SMALL} --method AKD2 --no_teacher_check --teacher_model small_resnet --std_teacher_model small_resnet"
    train(f"{args} --epochs 1 --teacher_path robust.pth --std_teacher_path standard.pth")
    error = "was trained with other teachers; --desc_str NAME starts another run"
    for paths in ("--teacher_path other.pth --std_teacher_path standard.pth",
                  "--teacher_path robust.pth --std_teacher_path other.pth"):  # fmt: skip
        train(f"{args} --epochs 2 --resume {paths}", error=error)
    (tmp_path / "robust.pth").rename(tmp_path / "moved.pth")
    train(f"{args} --epochs 2 --resume --teacher_path moved.pth --std_teacher_path standard.pth")
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["1", "2"]
