"""Killed processes, signals, damaged files, full disks, bad losses: nothing finished is lost; errors are one line."""

import errno
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
import torch
from commands import SMALL, run_in_process
from conftest import ROOT
from filelock import FileLock
from run_files import files_of, folder_of

import methods
from engine.distributed import Processes, local_gpu
from engine.training.run import _train
from engine.training.signals import Signals
from engine.training.trainer import Trainer
from utils.cli import run_command
from utils.config import TrainConfig
from utils.errors import Stopped, UserError

RUN = f"{SMALL} --method AT --lr_schedule constant"
# 24 steps per epoch, a state after each: long enough to be killed often.
LONG = (
    "--dataset Digits --image_size 16 --model small_resnet --limit_train 96 --limit_test 40 --bs 4 --num_steps 2 "
    "--method AT --lr_schedule constant --epochs 4 --save_minutes 0 --resume --device cpu --threads 1"
)


def wait_until(check) -> None:
    deadline = time.monotonic() + 120
    while not check():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.001)


def checkpoints(files):
    return {name: data for name, data in files.items() if name.endswith((".pth", ".csv"))}


def same_checkpoints(tmp_path):
    """Whether the runs below "parts" and "whole" have the same checkpoints and tables."""
    parts, whole = (checkpoints(files_of(folder_of(tmp_path / name))) for name in ("parts", "whole"))
    return all(parts[name] == data for name, data in whole.items())


# Killed and stopped.


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_with_the_same_bytes(tmp_path):
    def start(folder):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(ROOT / "main.py"), *LONG.split()]
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def start_and_wait_for_a_state():
        states, run = {*parts.rglob("resume/*.pth")}, start(parts)
        wait_until(lambda: {*parts.rglob("resume/*.pth")} - states)
        return run

    randomness, parts, whole = random.Random(0), tmp_path / "parts", tmp_path / "whole"
    for number in range(6):
        run = start_and_wait_for_a_state()
        if number % 2:  # while a file is written
            wait_until(lambda: any(parts.rglob(".partial-*")))
        else:
            time.sleep(randomness.uniform(0, 0.2))
        if number == 2:
            run.send_signal(signal.SIGSTOP)  # alive, with its lock
            second = start(parts)
            assert "another run is training there" in second.communicate()[1] and second.returncode == 2
        run.kill()
        assert run.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
    run = start_and_wait_for_a_state()
    run.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM: saved in" in run.communicate()[1] and run.returncode == 143
    assert [start(folder).wait() for folder in (parts, whole)] == [0, 0]
    assert files_of(parts) == files_of(whole)


def test_a_run_stopped_by_signals_exits_with_their_status_and_ends_with_the_same_bytes(train, tmp_path, monkeypatch):
    train(f"{RUN} --epochs 3 --root_path whole")
    args, step = f"{RUN} --epochs 3 --root_path parts --resume --save_minutes 60", Trainer.step
    for number, name, status in ((1, "SIGTERM", 143), (1, "SIGINT", 130), (2, "SIGUSR1", 75), (1, "SIGHUP", 129)):
        calls = itertools.count(1)

        def signaled(*rest, number=number, name=name, calls=calls, **options):
            if next(calls) == number:
                os.kill(os.getpid(), getattr(signal, name))
            return step(*rest, **options)

        monkeypatch.setattr(Trainer, "step", signaled)
        message = f"^stopped by {name}: saved in .*AT/small_resnet_eps8_seed42; --resume continues$"
        with pytest.raises(Stopped, match=message) as stop:
            train(args)
        assert stop.value.status == status
        assert max(tmp_path.rglob("parts/**/resume/*.pth")).stem[5:] != "000000", "in the middle of an epoch"
    monkeypatch.setattr(Trainer, "step", step)
    train(args)
    assert same_checkpoints(tmp_path)


def test_a_signal_while_a_file_is_read_is_not_reported_as_damage(train, tmp_path, monkeypatch):
    train(f"{RUN} --epochs 1")
    files = files_of(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped by SIGTERM: --resume continues from the last saved state") as stop:
        train(f"{RUN} --epochs 2 --resume")
    assert stop.value.status == 143 and files_of(tmp_path) == files


def test_ctrl_c_after_another_signal_ends_a_run_at_once():
    with Signals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


# Damaged files.


def test_a_damaged_newest_state_falls_back_to_the_previous_one(train, tmp_path):
    train(f"{RUN} --epochs 3 --root_path whole")
    train(f"{RUN} --epochs 2 --root_path parts")
    newest = max(tmp_path.rglob("parts/**/resume/*.pth"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of a weight
    newest.write_bytes(data)
    log = train(f"{RUN} --epochs 3 --root_path parts --resume")
    assert f"{newest.relative_to(tmp_path)}: truncated, damaged or not written by PyTorch" in log
    assert "resuming after epoch 1 of 3" in log
    whole, parts = (files_of(folder_of(tmp_path / name)).keys() for name in ("whole", "parts"))
    assert parts == whole | {f"resume/{newest.stem}.bad"} and same_checkpoints(tmp_path)


ALTERED = {
    "truncated": None,
    "another network": lambda state: state | {"net": {"w": torch.ones(2)}},
    "an empty optimizer": lambda state: state | {"optimizer": {}},
    "a state of an older version": lambda state: {"sums" if key == "metrics" else key: state[key] for key in state},
    "a list": lambda state: [state],
    "a best checkpoint": lambda state: {key: state[key] for key in ("net", "classes")},
}


def test_a_file_that_is_no_state_of_this_run_is_refused(train, tmp_path):
    train(f"{RUN} --epochs 1")
    (path,) = tmp_path.rglob("resume/*.pth")
    original = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for what, change in ALTERED.items():
        if change:
            torch.save(change(state), path)
        else:
            path.write_bytes(original[:1000])
        files = files_of(tmp_path)
        train(f"{RUN} --epochs 2 --resume", error="resume/")
        assert files_of(tmp_path) == files, what


# Disks.


def failing(number):
    return Mock(side_effect=OSError(number, os.strerror(number)))


def test_a_full_disk_ends_the_run_without_incomplete_files(train, tmp_path, monkeypatch):
    train(f"{RUN} --epochs 1 --root_path parts")
    saved = {name: data for name, data in files_of(tmp_path).items() if name.endswith(".pth")}
    saved_in = "the last good checkpoint is .*/0001-000000.pth; .*--resume continues the run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # less than a checkpoint
    try:
        train(f"{RUN} --epochs 2 --root_path parts --resume", error=rf"\.pth: cannot be written \(.*\); {saved_in}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(number))
            error = rf"cannot be written \({os.strerror(number)}.*{saved_in}"
            train(f"{RUN} --epochs 2 --root_path parts --resume", error=error)
    files = files_of(tmp_path)
    assert {name: data for name, data in files.items() if name.endswith(".pth")} == saved
    assert not [name for name in files if ".partial-" in name]
    train(f"{RUN} --epochs 2 --root_path parts --resume")
    train(f"{RUN} --epochs 2 --root_path whole")
    assert same_checkpoints(tmp_path)


def test_a_file_system_without_locks_flushing_or_links_is_enough(train, tmp_path, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", failing(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    assert train(f"{RUN} --epochs 2").count("cannot be locked") == 1
    train(f"{RUN} --epochs 2 --desc_str again")
    first, second = (files_of(path.parent) for path in sorted(tmp_path.rglob("config.json")))
    assert all(second[name] == data for name, data in first.items() if name != "config.json")


def test_a_full_disk_in_an_evaluation_is_one_line(train, run, tmp_path, monkeypatch):
    train(f"{RUN} --epochs 1")
    assert len({path.stat().st_ino for path in folder_of(tmp_path).glob("*.pth")}) == 1, "best and last are one file"
    args = f"--model_path {folder_of(tmp_path)}/last_epoch_model.pth --limit_test 20 --no-pictures --attacks"
    run("main_eval.py", f"{args} clean")
    before = files_of(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    error = run("main_eval.py", f"{args} clean,fgsm", status=2).err
    assert "eval.json has the finished attacks" in error and "No space left on device" in error
    assert files_of(tmp_path) == before


# Losses and memory.


def test_diverging_weights_are_never_saved(train, tmp_path):
    error = r"--lr_max 1e\+30: .* nan or inf .*at learning rate [2-9]\.\d+e\+29; .*checkpoint"  # still increasing
    train(f"{SMALL} --method AT --epochs 3 --lr_max 1e30 --lr_schedule cyclic --save_minutes 0", error=error)
    for path in tmp_path.rglob("*.pth"):
        net = torch.load(path, weights_only=True)["net"]
        assert all(value.isfinite().all() for value in net.values()), path


def test_exhausted_memory_is_one_line_that_names_the_flags_to_reduce(train, run, tmp_path, monkeypatch, capsys):
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()):
        with pytest.raises(SystemExit, match="2"):
            run_command(Mock(side_effect=error))
        assert capsys.readouterr().err == "error: out of memory; reduce --bs\n"
    out_of_memory = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))  # there may be no GPU here
    args = f"{SMALL} --method Natural --epochs"
    train(f"{args} 1")
    with monkeypatch.context() as patch:  # the optimizer's buffers, on resuming
        patch.setattr(torch.optim.SGD, "load_state_dict", out_of_memory)
        train(f"{args} 2 --resume", error="^CUDA out of memory; reduce --bs 16$")
    monkeypatch.setitem(methods.METHODS, "Natural", lambda config: lambda *args: out_of_memory())
    train(f"{args} 2 --resume", error="^CUDA out of memory; reduce --bs 16$")
    train(f"{args} 1 --seed 1 --eval_bs 8", error="^CUDA out of memory; reduce --bs 16 or --eval_bs 8$")
    monkeypatch.setattr("engine.evaluation.evaluate.run_attack", out_of_memory)
    path = folder_of(tmp_path / "tuned_models/Digits/Natural/small_resnet_seed42")
    assert "--bs 7" in run("main_eval.py", f"--model_path {path} --attacks pgd --bs 7", status=2).err


# Ranks of torchrun.


@pytest.mark.parametrize(
    ("errors", "printed"),
    [(["a", None], [0]), ([None, "b"], [1]), (["a", "b"], [0, 1]), (["a", "a"], [0]), (["a", "a", None], [0, 1])],
)
def test_every_rank_prints_its_own_error_and_rank_0_that_of_all(monkeypatch, errors, printed):
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda all_, own: all_.__setitem__(slice(None), errors))
    for rank, error in enumerate(errors):
        function = Mock(side_effect=UserError(error) if error else None)
        with pytest.raises(UserError, match=error or next(filter(None, errors))) as raised:
            Processes(rank, len(errors)).on_all_ranks(function)
        assert raised.value.printed == (rank in printed)


@pytest.mark.parametrize("settings", [{"precision": "tf32"}, {"desc_str": 200 * "x"}, {"model_path": "missing.pth"}])
def test_an_error_of_all_ranks_is_printed_once(monkeypatch, tmp_path, settings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda all_, own: all_.__setitem__(slice(None), [own] * 2)
    )
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda message: None)
    with pytest.raises(UserError) as raised:
        _train(
            TrainConfig(dataset="Digits", method="Natural", device="cpu", **settings), {}, Processes(1, 2), Signals()
        )
    assert not raised.value.printed


def test_the_rank_is_printed_under_torchrun_and_ignored_without_it(monkeypatch, capsys):
    def error_of_a_run() -> str:
        return run_in_process(monkeypatch, capsys, "main.py", "--epochs 0").err

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert local_gpu(0) == 0 and error_of_a_run().startswith("error: --epochs 0:")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert local_gpu(5) == 0 and error_of_a_run().startswith("[rank 3] error: --epochs 0:")
    monkeypatch.delenv("RANK")
    assert error_of_a_run().startswith("error: --epochs 0:")
