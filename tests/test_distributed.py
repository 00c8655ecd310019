"""Training shared among the processes of a torchrun computes what one process does, and survives the loss of one."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import run_apart
from conftest import ROOT
from shared_steps import ten_steps

from engine.distributed import SINGLE_PROCESS, Processes

METHODS = ("AT", "TRADES", "IAD-II", "DGAD")
TRAIN = (
    "--dataset Digits --image_size 16 --model small_resnet --limit_train 50 --limit_test 41 --bs 12 --num_steps 2 "
    "--method AT --lr_schedule constant --precision fp32"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(processes: int, script: str, words: str, folder) -> subprocess.Popen:
    """Start a script in several processes, in a session of their own."""
    command = [*TORCHRUN, f"--nproc_per_node={processes}", str(ROOT / script), *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


@pytest.mark.parametrize("processes", [2, 3])
def test_ten_steps_of_several_processes_are_those_of_one(tmp_path, processes):
    run = torchrun(processes, "tests/shared_steps.py", f"{tmp_path / 'net.pt'} {' '.join(METHODS)}", tmp_path)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    shared = torch.load(tmp_path / "net.pt", weights_only=True)
    for name in METHODS:
        alone = ten_steps(name, SINGLE_PROCESS)
        assert shared[name]["means"] == pytest.approx(alone["means"], rel=1e-9), name
        for key, value in alone["net"].items():
            # Float64 sums in another order differ by 1e-16 a step; the attack's sign must not have seen it.
            torch.testing.assert_close(shared[name]["net"][key], value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}")
    first, *others = shared["unsynced"]  # one network, whose state any of them may save, even where BatchNorm is not
    assert all(torch.equal(other[key], first[key]) for other in others for key in first)
    assert not torch.equal(first["bn1.running_mean"], shared["AT"]["net"]["bn1.running_mean"])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 6, 7, 20])
def test_parts_are_the_whole_batch_and_weigh_as_their_images(n, count):
    parts = [Processes(rank, count).shard(n) for rank in range(count)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    if n >= count:
        assert [i for part in parts for i in range(n)[part.rows]] == list(range(n))
        assert all(part.weight == len(range(n)[part.rows]) / n for part in parts)
    else:
        assert all(range(n)[part.rows] == range(n) and part.replicated for part in parts)
    rows = [i for rank in range(count) for i in range(n)[Processes(rank, count).rows(n)]]
    assert rows == list(range(n))


def results_of(root):
    (path,) = root.rglob("results.csv")
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [{key: float(value or 0) for key, value in zip(header, row, strict=True)} for row in rows]


def net_of(root):
    (path,) = root.rglob("last_epoch_model.pth")
    return torch.load(path, weights_only=True)["net"]


def test_a_killed_process_ends_the_run_which_another_number_of_processes_continues(tmp_path):
    run = torchrun(2, "main.py", f"{TRAIN} --epochs 500 --save_minutes 0", tmp_path)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("resume/0001-*.pth")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, err = run.communicate(timeout=60)  # all of them have ended within a minute
    assert run.returncode != 0
    assert "error: torchrun: another process of this run has ended; --resume continues the run" in err
    states = sorted(path.name for path in tmp_path.rglob("resume/*.pth"))
    done = int(states[-1][:4])
    ended = run_apart("main.py", f"{TRAIN} --epochs {done + 1} --resume", tmp_path)
    assert ended.status == 0, ended.err
    assert len(results_of(tmp_path)) == done + 1
    again = torchrun(3, "main.py", f"{TRAIN} --epochs {done + 2} --resume", tmp_path)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert len(results_of(tmp_path)) == done + 2


def test_a_shared_run_ends_as_one_process_does(tmp_path):
    words = f"{TRAIN.replace('AT', 'Natural')} --epochs 2 --val_size 20"  # an attack's signs would blow rounding up
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    assert run_apart("main.py", words, tmp_path / "alone").status == 0
    run = torchrun(2, "main.py", words, tmp_path / "shared")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert len(re.findall("epoch 1/2", out)) == 1, "one process speaks"
    assert "2 processes share each batch of 12; BatchNorm over the whole batch" in out
    for ours, theirs in zip(results_of(tmp_path / "alone"), results_of(tmp_path / "shared"), strict=True):
        # Float32 sums in another order; one image more or less of 20 to 50 may stand.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=5)
    state = net_of(tmp_path / "shared")
    for key, value in net_of(tmp_path / "alone").items():
        # Ten steps double a difference of 1e-7 some ten times; parts that met no other would differ by a tenth.
        assert (state[key] - value).abs().max() <= 1e-3 * value.abs().max() + 1e-4, key


def test_batches_smaller_than_the_number_of_processes_are_refused(tmp_path):
    run = torchrun(2, "main.py", TRAIN.replace("--bs 12", "--bs 1"), tmp_path)
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert err.count("error: --bs 1: is shared by 2 processes; give each an image or more") == 1
