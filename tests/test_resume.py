"""A run that was interrupted ends with the same bytes as one that was not."""

import fcntl

import pytest
import torch
from commands import SMALL, run_here

RUN = f"{SMALL} --method AT --lr_schedule constant"
FILES = ("last_epoch_model.pth", "best_PGD10_acc_model.pth", "best_clean_acc_model.pth", "results.csv")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda words: run_here(monkeypatch, capsys, "main.py", words)


def results_folder(root):
    (last,) = root.rglob("last_epoch_model.pth")
    return last.parent


def test_two_epochs_and_two_more_are_four(run, tmp_path):
    assert run(f"{RUN} --epochs 4 --root_path whole").status == 0
    assert run(f"{RUN} --epochs 2 --root_path parts").status == 0
    ended = run(f"{RUN} --epochs 4 --root_path parts --resume")
    assert ended.status == 0 and "resuming after epoch 2 of 4" in ended.out
    whole, parts = results_folder(tmp_path / "whole"), results_folder(tmp_path / "parts")
    for name in FILES:
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_an_epoch_logged_but_not_saved_is_done_again_and_not_doubled(run, tmp_path):
    assert run(f"{RUN} --epochs 2 --root_path parts").status == 0
    folder = results_folder(tmp_path / "parts")
    assert run(f"{RUN} --epochs 3 --root_path parts --resume").status == 0
    expected = (folder / "results.csv").read_bytes()
    (folder / "resume" / "0003-000000.pth").unlink()  # as if the power failed between the row and the state
    assert run(f"{RUN} --epochs 3 --root_path parts --resume").status == 0
    assert (folder / "results.csv").read_bytes() == expected


def test_resume_starts_a_run_that_is_not_there_and_leaves_a_finished_one(run, tmp_path):
    assert run(f"{RUN} --epochs 1 --resume").status == 0
    folder = results_folder(tmp_path)
    before = (folder / "last_epoch_model.pth").read_bytes()
    assert run(f"{RUN} --epochs 1 --resume").status == 0
    assert (folder / "last_epoch_model.pth").read_bytes() == before


def test_a_run_is_never_overwritten_unasked(run, tmp_path):
    assert run(f"{RUN} --epochs 1").status == 0
    ended = run(f"{RUN} --epochs 1")
    assert ended.status == 2 and "holds a run already; --resume continues it" in ended.err
    assert run(f"{RUN} --epochs 1 --desc_str again").status == 0


def test_two_runs_never_share_a_folder(run, tmp_path):
    assert run(f"{RUN} --epochs 1").status == 0
    folder = results_folder(tmp_path)
    before = (folder / "config.json").read_bytes()
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what a run holds for as long as it lives
        ended = run(f"{RUN} --epochs 2 --resume --workers 1")
    assert ended.status == 2 and "another run is training there" in ended.err
    assert (folder / "config.json").read_bytes() == before
    assert run(f"{RUN} --epochs 2 --resume").status == 0


def test_resuming_with_other_settings_names_them(run):
    assert run(f"{RUN} --epochs 1").status == 0
    ended = run(f"{RUN} --epochs 2 --resume --weight_decay 0.001")
    assert ended.status == 2 and "--weight_decay 0.0005 -> 0.001" in ended.err


def test_settings_that_the_method_makes_no_use_of_may_differ(run):
    assert run(f"{RUN} --method AT --epochs 1").status == 0
    ended = run(f"{RUN} --method AT --epochs 1 --resume --teacher_model small_resnet --trades_beta 3")
    assert ended.status == 0 and "all 1 epochs are done" in ended.out


def test_checkpoints_hold_data_alone(run, tmp_path):
    assert run(f"{RUN} --epochs 1").status == 0
    for path in tmp_path.rglob("*.pth"):
        torch.load(path, weights_only=True)
