"""A run that was interrupted ends with the same bytes as one that was not, and only the same run is resumed."""

import json

import pytest
import torch
from commands import SMALL
from filelock import FileLock
from PIL import Image
from run_files import files_of, folder_of, rows_of
from small_sets import image_folder

from engine.checkpoint import save_checkpoint
from engine.training.results import MEASUREMENTS
from engine.training.run_folder import RunFolder
from engine.training.trainer import Trainer
from models import build

RUN = f"{SMALL} --method AT --lr_schedule constant"
NATURAL = f"{SMALL} --method Natural"


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing handles it."""


def kill_at(monkeypatch, owner, name, nth):
    """Make the ``nth`` call of a function raise Killed."""
    function, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, killing)


def test_a_run_killed_at_three_points_ends_with_the_same_bytes(train, tmp_path, monkeypatch):
    args = f"{RUN} --epochs 3 --save_minutes 0 --eval_every 2 --resume"
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    train(args)
    monkeypatch.chdir(tmp_path / "parts")
    for owner, name, nth in (
        (Trainer, "step", 3),  # in the middle of an epoch
        (torch, "save", 6),  # while a checkpoint is written
        (RunFolder, "save", 1),  # after the epoch's row, before its state
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, owner, name, nth)
            train(args)
    assert "resuming after epoch" in train(args)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert [row["PGD10_acc"] != "" for row in rows_of(tmp_path / "parts")] == [False, True, True]


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
    train(f"{NATURAL} --epochs 2 --resume")
    files = files_of(tmp_path)
    for epochs in (2, 1):
        assert "all 2 epochs are done" in train(f"{NATURAL} --epochs {epochs} --resume")
    assert files_of(tmp_path) == files
    train(f"{NATURAL} --epochs 2", error="already contains a run; --resume continues it")
    train(f"{NATURAL} --epochs 1 --desc_str again")


def test_a_run_stopped_while_it_drew_the_curves_draws_them_when_it_is_resumed(train, tmp_path):
    train(f"{RUN} --epochs 1 --val_size 8")
    files = files_of(tmp_path)
    (folder_of(tmp_path) / "curves.png").unlink()
    assert "on the test images: clean" in train(f"{RUN} --epochs 1 --val_size 8 --resume")
    assert files_of(tmp_path) == files


def test_two_runs_never_share_a_folder(train, tmp_path):
    train(f"{NATURAL} --epochs 1")
    files = files_of(tmp_path)
    with FileLock(folder_of(tmp_path) / ".lock"):
        train(f"{NATURAL} --epochs 2 --resume --workers 1", error="another run is training there")
    assert files_of(tmp_path) == files
    train(f"{NATURAL} --epochs 2 --resume")


def test_a_file_system_without_locks_is_one_warning(train, monkeypatch):
    def acquire(self):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert train(f"{NATURAL} --epochs 1").count("cannot be locked") == 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [("--weight_decay 0.001", "0.0005 -> 0.001"), ("--eval_every 2", "1 -> 2"), ("--ema 0.9", "not given -> 0.9")],
)
def test_other_settings_are_refused(train, change, shown):
    train(f"{NATURAL} --epochs 1")
    train(f"{NATURAL} --epochs 2 --resume {change}", error=f"{change.split()[0]} {shown}")


def test_settings_that_the_method_does_not_use_may_differ(train):
    train(f"{RUN} --epochs 1")
    assert "all 1 epochs" in train(f"{RUN} --epochs 1 --resume --teacher_model small_resnet --trades_beta 3")


def test_a_state_from_before_a_flag_existed_and_a_start_file_that_has_moved_are_no_obstacle(train, tmp_path):
    save_network(tmp_path / "start.pth", 0)
    train(f"{RUN} --epochs 1 --model_path start.pth")
    (tmp_path / "start.pth").unlink()
    (path,) = tmp_path.rglob("resume/*.pth")
    state = torch.load(path, weights_only=True)
    for name in ("compile", "precision", "sync_bn", "attack_bn", "eval_every"):
        state["config"].pop(name, None)
    save_checkpoint(path, state)
    train(f"{RUN} --epochs 2 --model_path start.pth --resume --eval_every 2", error="--eval_every 1 -> 2")
    train(f"{RUN} --epochs 2 --model_path start.pth --resume --no_teacher_check")
    train(f"{RUN} --epochs 3 --resume")


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


def rename_class(root):
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "c")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: Image.new("RGB", (16, 16), "red").save(root / "train" / "a" / "0.png"), "images"),
        (lambda root: Image.new("RGB", (16, 16), "red").save(root / "test" / "b" / "1.png"), "images"),
        (rename_class, "classes"),
    ],
)
def test_other_data_are_refused(train, tmp_path, change, what):
    image_folder(tmp_path / "images", "ab", size=(16, 16))
    args = "--dataset Folder --data_root images --model small_resnet --method Natural --bs 4"
    train(f"{args} --epochs 1")
    change(tmp_path / "images")
    files = files_of(folder_of(tmp_path))
    train(f"{args} --epochs 2 --resume", error=f"was trained with other {what}; --desc_str NAME starts another run")
    assert files_of(folder_of(tmp_path)) == files


def save_network(path, seed):
    torch.manual_seed(seed)
    save_checkpoint(path, {"net": build("small_resnet", 10, 16).state_dict()})


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
