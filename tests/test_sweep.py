"""The sweep and its Slurm array, with a fake interpreter that trains nothing; once with the real one."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest
from commands import SMALL
from conftest import ROOT

from data import DATASETS, load
from scripts.sweep import sweep
from scripts.tasks import Pool
from utils.config import TrainConfig
from utils.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
TIMEOUT = 300  # seconds

# What a sweep sees of the scripts, and a Slurm task of sweep.py. Files in the working directory control it: "hold"
# waits for a signal, "finish" ends as usual after it, "fail" names a method that fails.
FAKE = f"""#!{sys.executable} -SE
import os, signal, sys, time
from pathlib import Path

def hold(folder):
    received = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: received.append(number))
    (folder / "holds").touch()
    while not received:
        time.sleep(0.01)
    if not Path("finish").exists():
        time.sleep(0.2)  # saving takes a while
        (folder / "saved").write_text(f"{{len(received)}} {{received[0]}}")
        sys.exit({{signal.SIGTERM: 143, signal.SIGUSR1: 75}}[received[0]])

args = sys.argv[1:]
with open("calls", "a") as calls:
    calls.write(" ".join(args) + "\\n")
script, flags = os.path.basename(args[0]), dict(zip(args[1:], args[2:]))
if script == "sweep.py":
    if "--list" in args:
        sys.exit("error: bad" if "bad" in args else print("1\\n2\\n3"))
    if Path("hold").exists():
        hold(Path())
    sys.exit(int(args[-1]))
if script.startswith("main_eval"):
    folder = Path(flags["--model_path"], "last_epoch_model_eval")
    folder.mkdir(exist_ok=True)
    (folder / "eval.json").touch()
    sys.exit("error: a bad evaluation" if "666" in args else 0)
if script == "compare.py":
    sys.exit()
if Path("fail").exists() and Path("fail").read_text() == flags["--method"]:
    sys.exit("error: a bad run")
radius = "" if flags["--method"] == "Natural" else "_eps8"
teacher = "_from_resnet18" if flags["--method"] == "RSLAD" else ""
name = f"{{flags['--model']}}{{teacher}}{{radius}}_seed{{flags['--seed']}}"
folder = Path(flags["--root_path"], flags["--dataset"], flags["--method"], name)
folder.mkdir(parents=True, exist_ok=True)
if Path("hold").exists():
    hold(folder)
results, rows = folder / "results.csv", "epoch\\n" + "1\\n" * int(flags["--epochs"])
if not (results.exists() and results.read_text() == rows):
    results.write_text(rows)
    (folder / "last_epoch_model.pth").touch()
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """The working directory, empty; PYTHON is the fake interpreter."""
    folder = tmp_path / "workdir"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHON", executable(tmp_path / "bin" / "python", FAKE))
    digits = load("Digits", image_size=16)
    for name in ("CIFAR10", "Tiny_Image"):
        monkeypatch.setitem(DATASETS, name, lambda *_: digits)
    return folder


@pytest.fixture
def run(workdir, caplog):
    """Run a sweep in this process: its exit status and its log."""
    caplog.set_level("INFO")

    def run(*options, epochs=2, flags=()):
        caplog.clear()
        status = sweep([*options, "--", "--epochs", str(epochs), *flags])
        return status, caplog.text

    return run


def calls(workdir, script=""):
    lines = (workdir / "calls").read_text().splitlines() if (workdir / "calls").exists() else []
    return [line.removeprefix(f"{ROOT}/") for line in lines if script in line]


def wait_for(workdir, pattern, count=1):
    timeout = time.monotonic() + TIMEOUT
    while len(list(workdir.glob(pattern))) < count:
        assert time.monotonic() < timeout, f"{pattern} did not appear"
        time.sleep(0.01)


def epochs_done(workdir):
    return sorted(len(path.read_text().splitlines()) - 1 for path in workdir.rglob("results.csv"))


FOUR = ("--methods", "AT Natural", "--seeds", "1 2")


def test_the_list_has_every_run_as_a_command_that_can_be_copied(workdir, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setenv("PYTHON", "python")
    options = ["--datasets", "CIFAR10 Tiny_Image", "--methods", "DGAD RSLAD", "--models", "resnet18 mobilenetV2"]
    assert sweep([*options, "--seeds", "1 2 3", "--root_path", "my runs", "--list", "--", "--desc_str", "a b"]) == 0
    lines = caplog.messages[0].splitlines()
    assert (len(lines), len(set(lines))) == (24, 24) and not list(workdir.iterdir())
    first = f"python {ROOT}/main.py --dataset CIFAR10 --method DGAD --model resnet18 --seed 1"
    assert lines[0] == f"{first} --root_path 'my runs' --resume --desc_str 'a b'"
    assert lines[-1].startswith(f"python {ROOT}/main_tiny.py --dataset Tiny_Image --method RSLAD --model mobilenetV2")
    monkeypatch.chdir(ROOT)  # as users type it
    assert sweep(["--list"]) == 0
    args = "--dataset CIFAR10 --method AT --model resnet18 --seed 42 --root_path tuned_models --resume"
    assert caplog.messages[1] == f"python main.py {args}"


BAD = {
    "--seeds one": "--seeds: 'one' is not a whole number",
    "--methods ' '": "--methods, --models or --seeds is empty",
    "--methods 'AT at'": "CIFAR10 at resnet18 seed 42: is listed twice",
    "--methods 'AT DGDA'": "--methods DGDA: unknown name; nearest: DGAD",
    "--jobs 0": "--jobs 0: must be at least 1",
    "--only 1": "numbered 0 to 0",
    "--gpus a": "--gpu_id: 'a' is not a whole number",
    "-- --epoch": "--epoch",
    "-- --seed 3": "--seed after --",
    "--gpus 0 -- --gpu_id 1": "--gpu_id after --",
    "--methods 'AT DGAD' -- --teacher_model vgg16": "--teacher_model vgg16: no file",
    "--methods 'AT DGAD' -- --teacher_path tuned_models/x.pth": "tuned_models/x.pth: does not exist",
    "--eval '--attaks clean'": "--attaks",
    '--eval "\'"': "--eval ': No closing quotation",
    "--eval '--attacks clean,pdg'": "--attacks pdg: unknown name; nearest: pgd",
    "--eval --model_path=x": "--eval --model_path: the sweep evaluates",
    "--datasets Folder --eval --attacks=clean,aa -- --data_root pair": "AutoAttack requires at least 4 classes, not 2",
}


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_reported_before_the_first_run(workdir, monkeypatch, args):
    splits = load("Digits", image_size=16)._replace(classes=("a", "b"))
    monkeypatch.setitem(DATASETS, "Folder", lambda *_: splits)
    with pytest.raises(UserError, match=re.escape(BAD[args])):
        sweep(shlex.split(args))
    assert not list(workdir.iterdir())


def test_a_teacher_may_be_trained_by_an_earlier_run_and_only_selects_a_run(workdir, run):
    teacher = "tuned_models/CIFAR10/AT/resnet18_eps8_seed42/best_PGD10_acc_model.pth"
    flags = ["--teacher_model", "resnet18", "--teacher_path", teacher]
    (workdir / "fail").write_text("AT")
    options = ["--methods", "AT RSLAD", "--seeds", "42 1", "--jobs", "2"]
    status, log = run(*options, flags=flags)  # the students wait for their teacher, other teachers do not
    assert status == 1 and "0 finished" in log and "2 failed, 2 left to do" in log and len(calls(workdir)) == 2
    (workdir / "fail").unlink()
    assert run(*options, flags=flags)[0] == 0
    assert run("--methods", "AT Natural", "--seeds", "1 2", "--only", "2")[0] == 0
    args = "--dataset CIFAR10 --method Natural --model resnet18 --seed 1 --root_path tuned_models --resume --epochs 2"
    assert calls(workdir)[6:] == [f"main.py {args}"]


def test_finished_runs_are_skipped_and_new_ones_trained(workdir, run):
    assert run("--seeds", "1")[0] == 0
    status, log = run("--seeds", "1 2")
    assert status == 0 and "runs: 1 finished, 1 skipped (finished before), 0 failed" in log
    assert all("--resume" in call for call in calls(workdir, "main.py"))
    assert "runs: 2 finished" in run("--seeds", "1 2", epochs=3)[1]  # more epochs continue them
    assert epochs_done(workdir) == [3, 3]
    assert len(list(workdir.glob("tuned_models/logs/*.log"))) == 4  # one for each set of flags


def test_a_failed_run_is_reported_once_and_the_others_continue(workdir, run):
    (workdir / "fail").write_text("Natural")
    status, log = run("--methods", "Natural AT")
    assert status == 1 and "runs: 1 finished, 0 skipped (finished before), 1 failed" in log
    (path,) = workdir.glob("tuned_models/logs/*Natural*")
    line = f"Natural resnet18 seed 42: failed (status 1): error: a bad run (log {path.relative_to(workdir)})"
    assert log.count(line) == 1 and "--method Natural" in path.read_text().splitlines()[0]
    assert epochs_done(workdir) == [2]
    for _ in range(2):  # a failed evaluation is repeated
        status, log = run("--eval", "--attacks clean --seed 666")
        assert status == 1 and "evaluation: failed (status 1): error: a bad evaluation" in log
    assert len(calls(workdir, "main_eval")) == 2


def test_jobs_have_one_gpu_each_and_share_the_cores(workdir, run, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6))
    assert run("--seeds", "1 2", "--gpus", "3 5")[0] == 0
    assert sorted(call.split()[-1] for call in calls(workdir, "main.py")) == ["3", "5"]
    assert all("--threads 3 " in call for call in calls(workdir, "main.py"))
    run("--jobs", "2", "--seeds", "1 2", flags=["--threads", "5"])
    assert all(call.endswith("--threads 5") for call in calls(workdir, "main.py")[2:])


def test_finished_runs_are_evaluated_once_and_compared(workdir, run):
    options = ["--datasets", "CIFAR10 Tiny_Image", "--gpus", "1", "--eval", "--attacks clean,pgd --protocol official"]
    (workdir / "config.json").write_text(json.dumps(asdict(TrainConfig(data_root="-my data", threads=2))))
    flags = ["--config", "config.json", "--skip_damaged"]
    assert run(*options, flags=flags)[0] == 0
    folders = [f"tuned_models/{dataset}/AT/resnet18_eps8_seed42" for dataset in ("CIFAR10", "Tiny_Image")]
    shared = "--data_root=-my data --skip_damaged --device=auto --threads=2"
    args = f"{shared} --attacks clean,pgd --protocol official --model_path"
    assert calls(workdir, "main_eval") == [
        f"main_eval.py {args} {folders[0]} --gpu_id 1",
        f"main_eval_tinyimagenet.py {args} {folders[1]} --gpu_id 1",
    ]
    table = f"scripts/compare.py {' '.join(folders)} --out tuned_models/comparison --protocol official"
    assert calls(workdir)[-1] == table
    (workdir / folders[0] / "last_epoch_model.pth").unlink()
    run(*options, flags=flags)
    assert len(calls(workdir, "main_eval")) == 2  # no new checkpoint
    (workdir / folders[0] / "last_epoch_model_eval" / "eval.json").unlink()
    run(*options, flags=flags)
    assert len(calls(workdir, "main_eval")) == 3
    run(*options, flags=flags, epochs=3)
    assert len(calls(workdir, "main_eval")) == 5  # trained further
    run(*options[:-1], "--state 'my state' --attacks aa", epochs=3)
    assert len(calls(workdir, "main_eval")) == 7  # with other flags
    assert "--state my state --attacks aa" in calls(workdir, "main_eval")[-1]
    run("--methods", "AT MART", epochs=3)
    assert calls(workdir)[-1] == f"scripts/compare.py {folders[0]} --out tuned_models/comparison --protocol paper"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_run_once_and_the_sweep_waits(workdir, run, number):
    forwarded = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM

    def send():
        wait_for(workdir, "**/holds", count=2)
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    (workdir / "hold").touch()
    threading.Thread(target=send).start()
    ended, log = run(*FOUR, "--jobs", "2")
    assert ended == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}[number]
    assert "runs: 0 finished, 0 skipped (finished before), 0 failed, 4 left to do" in log
    assert [path.read_text() for path in workdir.rglob("saved")] == [f"1 {forwarded:d}"] * 2
    assert len(calls(workdir)) == 2  # neither another run nor a table
    (workdir / "hold").unlink()
    assert "runs: 4 finished" in run(*FOUR)[1]


def test_a_signal_that_nohup_ignores_stays_ignored():
    handler, pool = signal.signal(signal.SIGHUP, signal.SIG_IGN), Pool([[]])
    try:
        pool.run(lambda: os.kill(os.getpid(), signal.SIGHUP) or [])
    finally:
        signal.signal(signal.SIGHUP, handler)
    assert not pool.received


# Records its arguments, and whether the run had saved by then; the state of the job is in a file, before a long text.
SCONTROL = """#!/bin/sh
echo "$* $(ls | grep -c saved)" >>scontrol-calls
[ "$1" != show ] || { echo "   JobState=$(cat state) Reason=None"; seq 99999; }
"""


@pytest.fixture
def task(workdir, monkeypatch):
    """Start a task as Slurm does: from a copy of the script in another folder."""
    (workdir / "scripts").symlink_to(ROOT / "scripts")
    executable(workdir.parent / "bin/scontrol", SCONTROL)
    monkeypatch.setenv("PATH", f"{workdir.parent / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(workdir))
    copy = shutil.copy(ROOT / "scripts/sweep.sbatch", workdir.parent / "slurm_script")

    def start(*args, number="1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
        return subprocess.Popen(["bash", copy, *args], stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(
    ("number", "state", "status", "commands"),
    [
        (signal.SIGUSR1, "", 75, ["requeue 77_1 1"]),
        (signal.SIGTERM, "RUNNING", 143, ["show job 77_1 1", "requeue 77_1 1"]),  # preempted
        (signal.SIGTERM, "COMPLETING", 143, ["show job 77_1 1"]),  # cancelled
        (signal.SIGUSR1, "finish", 1, None),
        (None, "finish", 75, None),
    ],
)
def test_a_stopped_task_saves_and_is_requeued_unless_it_was_cancelled(workdir, task, number, state, status, commands):
    for name in filter(None, ["hold" if number else "", "state", state]):
        (workdir / name).write_text(state)
    process = task(str(status))
    if number:
        wait_for(workdir, "holds")
        process.send_signal(number)
    assert process.wait(TIMEOUT) == status
    assert calls(workdir) == [f"scripts/sweep.py --only 1 {status}"]
    record = workdir / "scontrol-calls"
    assert (record.read_text().splitlines() if record.exists() else None) == commands
    assert (workdir / "saved").exists() == bool(commands) and (
        not commands or (workdir / "saved").read_text()[0] == "1"
    )


@pytest.mark.parametrize(("args", "message"), [((), "--array=0-2"), (("bad",), "error: bad")])
def test_a_task_without_a_number_says_which_there_are(task, args, message):
    process = task(*args, number="")
    err = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode in (1, 2) and message in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_real_sweep_trains_what_is_left_and_skips_what_is_finished(tmp_path):
    small = SMALL.replace("--dataset Digits", "").replace("--model small_resnet", "").split()
    options = ["--datasets", "Digits", "--models", "small_resnet", "--seeds", "1 2", "--root_path", "l'été 1"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    for extra, line in ((["--only", "0"], "1 finished, 0 skipped"), (["--jobs", "2"], "1 finished, 1 skipped")):
        command = ["bash", ROOT / "scripts/sweep.sh", *options, *extra, "--", *small, "--epochs", "1"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert ended.returncode == 0 and line in ended.stdout, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("l'été 1/Digits/AT/small_resnet*seed?/best_PGD10_acc_model.pth"))) == 2
