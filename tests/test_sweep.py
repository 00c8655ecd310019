"""The sweep and its Slurm array, mostly with a stand-in for python that trains nothing; once with the real one."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import SMALL
from conftest import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts")
SWEEP, SBATCH = ROOT / "scripts" / "sweep.sh", ROOT / "scripts" / "sweep.sbatch"
PATIENCE = 300  # seconds until a test gives a process up

# What a sweep sees of main.py: a run folder, a row an epoch, --resume, signals, exit statuses. Files in its folder
# say what is to happen: "hold" lets epoch 2 wait for a signal, "finish" lets it go on then in place of saving,
# "together" lets an epoch wait until two runs are there.
STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
if words[0].endswith("check_commands.py"):
    refused = b"--method\\0Refused\\0" in sys.stdin.buffer.read()
    if Path("hold").exists():
        Path("checking").touch()
        time.sleep(0.5)
    sys.exit(print("error: --method Refused: unknown name", file=sys.stderr) or 2 if refused else 0)
with open("calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
script, flags = os.path.basename(words[0]), dict(zip(words[1:], words[2:]))
if script.startswith("main_eval"):
    place = Path(flags["--model_path"], "last_epoch_model_eval")
    place.mkdir(exist_ok=True)
    (place / "eval.json").touch()
    sys.exit(print("error: no such attack") or 2 if "--bad" in words else 0)
if script == "compare.py":
    sys.exit(print("the table"))

caught = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: caught.append(number))
name = f"{{flags['--model']}}_seed{{flags['--seed']}}"
folder = Path(flags["--root_path"], flags["--dataset"], flags["--method"], name)
results, total = folder / "results.csv", int(flags["--epochs"])
if flags["--method"] == "Broken":
    sys.exit(print("error: --method Broken: unknown name", file=sys.stderr) or 2)
folder.mkdir(parents=True, exist_ok=True)
rows = results.read_text().splitlines() if results.exists() else ["epoch"]
if len(rows) > total:
    sys.exit(print(f"{{folder}}: all {{len(rows) - 1}} epochs are done"))
print(f"{{flags['--method']}} of {{flags['--model']}} on {{flags['--dataset']}}, run folder {{folder}}", flush=True)
(folder / "config.json").write_text(json.dumps({{"epochs": total, "warmup_lr_epochs": 1}}, indent=2))
for epoch in range(len(rows) - 1, total):
    if epoch == 1 and Path("hold").exists():
        (folder / "pid").write_text(str(os.getpid()))
        (folder / "holds").touch()
        while not caught:
            time.sleep(0.01)
    if caught and not Path("finish").exists():
        time.sleep(0.3)  # saving takes a while
        (folder / "saved").write_text(f"{{len(caught)}} {{caught[0]}}")
        print("saved; --resume continues")
        sys.exit({{signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 0}}[caught[0]])
    if Path("together").exists():
        Path(f"here-{{flags.get('--gpu_id')}}").touch()
        timeout = time.monotonic() + 20
        while len(list(Path().glob("here-*"))) < 2:
            assert time.monotonic() < timeout, "alone"
            time.sleep(0.01)
    rows.append(str(epoch))
    results.write_text("\\n".join(rows) + "\\n")
    (folder / "last_epoch_model.pth").touch()
"""

# Records what it is asked to do, and how many runs had saved by then; the state of the job lies in a file.
SCONTROL = """#!/bin/sh
echo "$* after" $(find tuned_models -name saved | wc -l) >>scontrol-calls
[ "$1" != show ] || echo "   JobState=$(cat state) Reason=None"
"""


@pytest.fixture
def here(tmp_path):
    """An empty folder with the stand-ins beside it."""
    for name, text in (("python", STAND_IN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def environment(here, **more):
    known = {key: value for key, value in os.environ.items() if key != "PYTHON" and not key.startswith("SLURM")}
    # An environment counts as activated: its python is the first of the path.
    activated = {"VIRTUAL_ENV": str(here.parent), "PATH": f"{here.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return known | activated | more


def begin(here, script, words, **more):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that run in a shell's background ignore Ctrl-C, which no shell that they start could then infer_dataset.
    infer_dataset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(
        ["bash", str(script), *words], cwd=here, env=environment(here, **more), **pipes, **infer_dataset
    )


def ended(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def sweep(here, *options, epochs=2, **more):
    return ended(begin(here, SWEEP, [*options, "--", "--epochs", str(epochs)], **more))


def calls(here):
    return (here / "calls").read_text().splitlines() if (here / "calls").exists() else []


def wait_for(here, pattern, count=1):
    timeout = time.monotonic() + PATIENCE
    while len(list(here.glob(pattern))) < count:
        assert time.monotonic() < timeout, f"{pattern} did not come"
        time.sleep(0.01)


def epochs_done(here):
    return sorted(len(path.read_text().splitlines()) - 1 for path in here.rglob("results.csv"))


FOUR = ("--methods", "AT Natural", "--seeds", "1 2")


def test_the_list_holds_every_run_as_a_command_that_can_be_copied(here):
    options = ["--datasets", "CIFAR10 Tiny_Image", "--methods", "DGAD RSLAD", "--models", "resnet18 mobilenetV2"]
    words = [*options, "--seeds", "1 2 3", "--root_path", "my runs", "--list", "--", "--desc_str", "a b"]
    status, out, err = ended(begin(here, SWEEP, words))
    lines = out.splitlines()
    assert (status, err, len(lines), len(set(lines))) == (0, "", 24, 24)
    first = f"python {ROOT}/main.py --dataset CIFAR10 --method DGAD --model resnet18 --seed 1"
    assert lines[0] == rf"{first} --root_path my\ runs --resume --desc_str a\ b"
    assert lines[-1].startswith(f"python {ROOT}/main_tiny.py --dataset Tiny_Image --method RSLAD --model mobilenetV2")
    assert not list(here.iterdir())


def test_from_the_repository_the_list_names_scripts_as_users_type_them():
    status, out, _ = ended(begin(ROOT, SWEEP, ["--list"]))
    assert (status, out) == (
        0,
        "python main.py --dataset CIFAR10 --method AT --model resnet18 --seed 42 --root_path tuned_models --resume\n",
    )


def test_only_carries_out_one_run_of_the_list(here):
    listed = ended(begin(here, SWEEP, [*FOUR, "--list", "--", "--epochs", "2"]))[1].splitlines()
    status, out, _ = sweep(here, *FOUR, "--only", "2")
    assert status == 0 and "table" not in out  # of tasks side by side none has the whole of it
    assert [f"python {call}" for call in calls(here)] == [listed[2]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--seeds one", "--seeds one"),
        ("--seeds 1 2", "2: no option"),
        ("--seeds", "--seeds: needs a value"),
        ("--methods --seeds 1", "--methods --seeds"),
        ("--jobs 0", "--jobs 0"),
        ("--only 1", "numbered 0 to 0"),
        ("--gpus a", "--gpus a"),
        ("--epochs 3", "--epochs: no option"),
        ("-- --seed 3", "--seed after --"),
        ("-- --model=vgg16", "--model=vgg16 after --"),
        ("-- --dataset CIFAR10 --model vgg16", "--dataset --model after --"),
        ("-- --gpu_id 1", "--gpu_id after --"),
        ("-- --epochs 2 --help", "--help after --"),
        ("--root_path calls/below", "--root_path calls/below"),
    ],
)
def test_bad_input_is_one_line_and_nothing_starts(here, words, named):
    (here / "calls").touch()
    status, out, err = ended(begin(here, SWEEP, words.split()))
    assert (status, out, len(err.splitlines())) == (2, "", 1) and named in err
    assert not calls(here) and [path.name for path in here.iterdir()] == ["calls"]


def test_names_given_twice_or_not_at_all_are_refused(here):
    for text, named in (("AT Natural at", "names at twice"), (" ", "names nothing")):
        status, _, err = ended(begin(here, SWEEP, ["--methods", text]))
        assert status == 2 and named in err


def test_a_missing_interpreter_is_one_line(here):
    status, _, err = sweep(here, PYTHON="no-such-python")
    assert status == 2 and err.startswith("error: no-such-python: not found") and not (here / "tuned_models").exists()


def test_every_run_is_checked_before_the_first_begins(here):
    status, out, err = sweep(here, "--methods", "AT Refused")
    assert (status, out, err) == (2, "", "error: --method Refused: unknown name\n")
    assert not list(here.iterdir())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_without_an_activated_environment_the_one_of_setup_serves(here, elsewhere):
    home = here.parent / "home"
    for name, made_of in (("scripts/sweep.sh", SWEEP), (".venv/bin/python", here.parent / "bin/python")):
        (home / name).parent.mkdir(parents=True)
        shutil.copy(made_of, home / name)
    bare = {"VIRTUAL_ENV": "", "CONDA_PREFIX": "", "CONDA_DEFAULT_ENV": ""}
    script, place = home / "scripts/sweep.sh", f"{home}/" if elsewhere else ""
    for conda in ({}, {"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"}):  # which is nobody's project
        status, out, _ = ended(begin(here if elsewhere else home, script, ["--list"], **bare | conda))
        assert status == 0 and out.startswith(f"{place}.venv/bin/python {place}main.py ")
    for activated in ({"VIRTUAL_ENV": "/mine"}, {"CONDA_PREFIX": "/opt/conda/envs/mine", "CONDA_DEFAULT_ENV": "mine"}):
        assert ended(begin(home, script, ["--list"], **bare | activated))[1].startswith("python main.py ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]
)
def test_a_signal_before_the_first_run_ends_the_sweep_with_its_status(here, number, status):
    (here / "hold").touch()
    process = begin(here, SWEEP, ["--", "--epochs", "2"])
    wait_for(here, "checking")
    process.send_signal(number)
    assert ended(process)[0] == status and not calls(here)


def test_what_is_finished_is_skipped_and_what_is_new_is_done(here):
    assert sweep(here, "--seeds", "1")[0] == 0
    status, out, _ = sweep(here, "--seeds", "1 2")
    assert status == 0 and "runs: 1 finished, 1 skipped (finished before), 0 failed" in out
    assert all("--resume" in call for call in calls(here))
    assert "runs: 2 finished" in sweep(here, "--seeds", "1 2", epochs=3)[1]  # more epochs continue them
    assert epochs_done(here) == [3, 3]


def test_a_failed_run_is_named_and_the_others_go_on(here):
    status, out, _ = sweep(here, "--methods", "Broken AT")
    assert status == 1 and "runs: 1 finished, 0 skipped (finished before), 1 failed" in out
    (log,) = here.glob("tuned_models/logs/*Broken*")
    why = "failed (status 2): error: --method Broken: unknown name"
    line = f"Broken resnet18 seed 42: {why} (log {log.relative_to(here)})"
    assert out.count(line) == 2  # when it happens, and at the end
    assert "--method Broken" in log.read_text().splitlines()[0]
    assert epochs_done(here) == [2]


def test_jobs_run_at_the_same_time_each_on_a_gpu_of_its_own(here):
    (here / "together").touch()
    assert sweep(here, "--seeds", "1 2", "--gpus", "3 5")[0] == 0
    assert sorted(call.split()[-1] for call in calls(here)) == ["3", "5"]


def test_sweeps_with_other_flags_keep_other_logs(here):
    assert sweep(here)[0] == sweep(here, epochs=3)[0] == 0
    assert len(list(here.glob("tuned_models/logs/*.log"))) == 2


@pytest.mark.parametrize(
    ("number", "status", "passed_on"),
    [
        (signal.SIGINT, 130, signal.SIGTERM),
        (signal.SIGTERM, 143, signal.SIGTERM),
        (signal.SIGUSR1, 75, signal.SIGUSR1),
    ],
)
def test_a_signal_reaches_every_run_once_and_is_waited_for(here, number, status, passed_on):
    (here / "hold").touch()
    options = [*FOUR, "--jobs", "2"]
    process = begin(here, SWEEP, [*options, "--", "--epochs", "2"])
    wait_for(here, "**/holds", count=2)
    process.send_signal(number)
    process.send_signal(number)
    stopped, out, _ = ended(process)
    assert stopped == status and "runs: 0 finished, 0 skipped (finished before), 0 failed, 4 left to do" in out
    assert [path.read_text() for path in here.rglob("saved")] == [f"1 {passed_on:d}"] * 2
    assert out.count("not begun") == 2 and "table" not in out and len(calls(here)) == 2
    (here / "hold").unlink()
    assert "runs: 4 finished" in sweep(here, *options)[1]
    assert epochs_done(here) == [2] * 4


def test_a_run_that_stopped_with_status_0_before_its_end_is_not_called_finished(here):
    (here / "hold").touch()
    process = begin(here, SWEEP, ["--seeds", "1 2", "--eval", "--attacks clean", "--", "--epochs", "2"])
    wait_for(here, "**/resnet18_seed1/holds")
    (here / "hold").unlink()
    first, second = (f"tuned_models/CIFAR10/AT/resnet18_seed{seed}" for seed in (1, 2))
    os.kill(int((here / first / "pid").read_text()), signal.SIGUSR1)  # it alone
    status, out, _ = ended(process)
    assert status == 75 and "runs: 1 finished, 0 skipped (finished before), 0 failed, 1 left to do" in out
    assert [call.split()[2] for call in calls(here) if "main_eval" in call] == [second]


def test_finished_runs_are_evaluated_once_and_compared(here):
    options = ["--datasets", "CIFAR10 Tiny_Image", "--gpus", "1", "--eval", "--attacks clean,pgd --protocol official"]
    status, out, _ = sweep(here, *options)
    assert status == 0 and "the table" in out
    evaluations = [call for call in calls(here) if "main_eval" in call]
    flags = "--attacks clean,pgd --protocol official --gpu_id 1"
    assert evaluations == [
        f"{ROOT}/main_eval.py --model_path tuned_models/CIFAR10/AT/resnet18_seed42 {flags}",
        f"{ROOT}/main_eval_tinyimagenet.py --model_path tuned_models/Tiny_Image/AT/resnet18_seed42 {flags}",
    ]
    folders = "tuned_models/CIFAR10/AT/resnet18_seed42 tuned_models/Tiny_Image/AT/resnet18_seed42"
    out_and_protocol = "--out tuned_models/comparison --protocol official"
    assert calls(here)[-1] == f"{ROOT}/scripts/compare.py {folders} {out_and_protocol}"
    sweep(here, *options)
    assert len([call for call in calls(here) if "main_eval" in call]) == 2  # nothing has changed
    sweep(here, *options, epochs=3)
    assert len([call for call in calls(here) if "main_eval" in call]) == 4  # trained further
    sweep(here, *options[:-1], "--protocol=official --attacks clean", epochs=3)
    assert calls(here)[-1] == f"{ROOT}/scripts/compare.py {folders} --out tuned_models/comparison --protocol=official"
    sweep(here, *options[:-1], "--attacks aa", epochs=3)
    assert len([call for call in calls(here) if "main_eval" in call]) == 8  # by other flags, twice
    sweep(here, "--methods", "AT MART", epochs=3)
    assert calls(here)[-1].startswith(f"{ROOT}/scripts/compare.py tuned_models/CIFAR10/AT/resnet18_seed42 --out")


def test_a_failed_evaluation_is_a_failure(here):
    status, out, _ = sweep(here, "--eval", "--bad")
    assert status == 1 and "evaluation failed (status 2): error: no such attack" in out
    assert sweep(here, "--eval", "--bad")[0] == 1  # it is tried again


def array_task(here, number, *options):
    """A task as Slurm starts it: from a copy of the script, somewhere else."""
    copy = here.parent / "bin" / "slurm_script"
    copy.write_bytes(SBATCH.read_bytes())
    job = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(here)}
    return begin(here, copy, [*options, "--", "--epochs", "2"], **job)


@pytest.fixture
def submitted(here):
    """The same folder as the one that jobs are submitted from."""
    (here / "scripts").symlink_to(ROOT / "scripts")
    return here


def asked_of_slurm(here):
    return (here / "scontrol-calls").read_text().splitlines() if (here / "scontrol-calls").exists() else []


def stop_task(here, number, state="RUNNING"):
    (here / "hold").touch()
    (here / "state").write_text(state)
    task = array_task(here, 1, "--seeds", "1 2")
    wait_for(here, "**/resnet18_seed2/holds")
    task.send_signal(number)
    status, _, _ = ended(task)
    assert [path.read_text().split()[0] for path in here.rglob("saved")] == ["1"]  # signalled once
    (here / "hold").unlink()
    return status


def test_a_task_at_its_time_limit_saves_queues_again_and_then_finishes(submitted):
    stop_task(submitted, signal.SIGUSR1)
    assert asked_of_slurm(submitted) == ["requeue 77 after 1"]
    assert epochs_done(submitted) == [1]
    assert ended(array_task(submitted, 1, "--seeds", "1 2"))[0] == 0
    assert epochs_done(submitted) == [2]
    assert ended(array_task(submitted, 1, "--seeds", "1 2"))[0] == 0
    assert asked_of_slurm(submitted) == ["requeue 77 after 1"]  # what is finished does not come back


@pytest.mark.parametrize(
    ("state", "asked"),
    [("RUNNING", ["show job 77 after 1", "requeue 77 after 1"]), ("COMPLETING", ["show job 77 after 1"])],
)
def test_a_preempted_task_queues_again_and_a_cancelled_one_does_not(submitted, state, asked):
    assert stop_task(submitted, signal.SIGTERM, state) == 143
    assert asked_of_slurm(submitted) == asked


def test_a_task_that_ends_in_time_does_not_come_back(submitted):
    for name in ("hold", "finish"):
        (submitted / name).touch()
    task = array_task(submitted, 1, "--seeds", "1 2")
    wait_for(submitted, "**/holds")
    task.send_signal(signal.SIGUSR1)
    assert ended(task)[0] == 0 and epochs_done(submitted) == [2] and not asked_of_slurm(submitted)


def test_a_task_whose_run_someone_else_stops_does_not_come_back(submitted):
    (submitted / "hold").touch()
    task = array_task(submitted, 1, "--seeds", "1 2")
    wait_for(submitted, "**/holds")
    (pid,) = submitted.rglob("pid")
    os.kill(int(pid.read_text()), signal.SIGUSR1)
    assert ended(task)[0] == 75 and not asked_of_slurm(submitted)


def test_a_task_that_fails_does_not_come_back(submitted):
    task = array_task(submitted, 0, "--methods", "Broken")
    assert ended(task)[0] == 1 and not asked_of_slurm(submitted)


def test_a_task_without_a_number_is_told_which_there_are(submitted):
    status, _, err = ended(begin(submitted, SBATCH, ["--seeds", "1 2 3"]))
    assert (status, len(err.splitlines())) == (2, 1) and "--array=0-2" in err
    status, _, err = ended(begin(submitted, SBATCH, ["--seeds", "one"], SLURM_ARRAY_TASK_ID="0"))
    assert (status, len(err.splitlines())) == (2, 1) and "--seeds one" in err


def test_a_real_sweep_trains_what_is_left_and_skips_what_is_finished(tmp_path):
    size, rest = SMALL.removeprefix("--dataset Digits ").split(" --model small_resnet ")
    options = ["--datasets", "Digits", "--methods", "AT Natural", "--models", "small_resnet", "--seeds", "1 2"]
    options += ["--root_path", "l'été 1"]
    flags = ["--", *size.split(), *rest.split(), "--epochs", "1"]
    settings = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    for wrong, named in (
        (["--methods", "AT DGDA"], "--method DGDA: unknown name; nearest: DGAD"),
        (["--methods", "Natural Plain_Clean"], "--method Natural --model small_resnet --dataset Digits: there twice"),
        (["--", "--epoch"], "--epoch"),
        (["--eval", "--attaks clean"], "--attaks"),
        (["--eval", "--attacks clean --out figures"], "--eval --out: takes the figures from their runs"),
        (["--eval", "--model_path=x"], "--eval --model_path=x: the sweep evaluates"),
        (["--eval", "--attacks clean,pdg"], "--attacks pdg: unknown name; nearest: pgd"),
    ):
        status, out, err = ended(begin(tmp_path, SWEEP, [*options, *wrong], **settings))
        assert (status, out, len(err.splitlines())) == (2, "", 1) and named in err
    assert not list(tmp_path.iterdir())
    status, out, err = ended(begin(tmp_path, SWEEP, [*options, "--only", "0", *flags], **settings))
    assert status == 0 and "runs: 1 finished" in out, out + err
    status, out, err = ended(begin(tmp_path, SWEEP, [*options, "--jobs", "2", *flags], **settings))
    assert status == 0 and "runs: 3 finished, 1 skipped (finished before), 0 failed" in out, out + err
    assert epochs_done(tmp_path) == [1] * 4
    assert len(list(tmp_path.glob("l'été 1/Digits/*/small_resnet*seed?/best_PGD10_acc_model.pth"))) == 4
