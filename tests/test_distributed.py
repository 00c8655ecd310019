"""Training and evaluation by several processes of torchrun equal those by one; a killed process ends the run."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from run_files import rows_of
from shared_steps import ten_steps
from small_sets import extra_file, save_network

from engine.distributed import SINGLE_PROCESS, Processes
from engine.evaluation.records import read_evaluations, results_path
from engine.training.results import MEASUREMENTS

METHODS = ("AT", "TRADES", "IAD-II", "DGAD", "ADR", "IGDM")
TRAIN = (
    "--dataset Digits --image_size 16 --model small_resnet --limit_train 50 --limit_test 41 --bs 12 --num_steps 2 "
    "--method AT --lr_schedule constant --precision fp32"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def torchrun(processes: int, script: str, options: str, folder) -> subprocess.Popen:
    """Start a script in several processes, in a new session."""
    command = [*TORCHRUN, f"--nproc_per_node={processes}", str(ROOT / script), *options.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def finish(run: subprocess.Popen, timeout: int = 120) -> str:
    """Wait until a run succeeds; return its output."""
    out, err = run.communicate(timeout=timeout)
    assert run.returncode == 0, err
    return out


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("processes", [2, 3])
def test_ten_steps_of_several_processes_are_those_of_one(tmp_path, processes):
    finish(torchrun(processes, "tests/shared_steps.py", f"{tmp_path / 'net.pt'} {' '.join(METHODS)}", tmp_path), 300)
    shared = torch.load(tmp_path / "net.pt", weights_only=True)
    for name in (*METHODS, "pieces"):
        expected = ten_steps("AT" if name == "pieces" else name, SINGLE_PROCESS, pieces=name == "pieces")
        assert shared[name]["means"] == pytest.approx(expected["means"], rel=1e-9), name
        # Float64 sums in another order differ by 1e-16 a step, too little to change the sign of a gradient.
        torch.testing.assert_close(shared[name]["net"], expected["net"], rtol=1e-9, atol=1e-11)
    first, *others = shared["unsynced"]  # without synchronized BatchNorm too all ranks have one network
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    assert not torch.equal(first["bn1.running_mean"], shared["AT"]["net"]["bn1.running_mean"])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 6, 7, 11, 20])
def test_the_shards_of_all_parts_are_the_whole_batch_and_weigh_as_their_images(n, parts, count):
    shards = [shard for rank in range(count) for shard in Processes(rank, count).shards(n, parts)]
    replicated = n // min(n, parts) < count
    images = sorted(image for shard in shards for image in range(n)[shard.rows])
    assert images == [image for image in range(n) for _ in range(count if replicated else 1)]
    for shard in shards:
        weight = len(range(n)[shard.rows]) / n / (count if replicated else 1)
        assert (shard.batch_size, shard.replicated, shard.weight) == (n, replicated, pytest.approx(weight))
    assert [i for rank in range(count) for i in range(n)[Processes(rank, count).rows(n)]] == list(range(n))


def results_of(folder):
    """Rows of results.csv without the measurements, which no two runs share."""
    rows = rows_of(folder)
    return [{key: float(value or 0) for key, value in row.items() if key not in MEASUREMENTS} for row in rows]


def net_of(folder):
    (path,) = folder.rglob("last_epoch_model.pth")
    return torch.load(path, weights_only=True)["net"]


@pytest.mark.dist
@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_another_number_of_processes_resumes(train, tmp_path):
    run = torchrun(2, "main.py", f"{TRAIN} --epochs 500 --save_minutes 0", tmp_path)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("resume/0001-*.pth")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, err = run.communicate(timeout=60)  # all processes end within a minute
    assert run.returncode != 0
    assert "error: torchrun: another process of this run has ended; --resume continues the run" in err
    epochs = int(max(path.name for path in tmp_path.rglob("resume/*.pth"))[:4])
    train(f"{TRAIN} --epochs {epochs + 1} --resume")
    assert len(results_of(tmp_path)) == epochs + 1
    finish(torchrun(3, "main.py", f"{TRAIN} --epochs {epochs + 2} --resume", tmp_path))
    assert len(results_of(tmp_path)) == epochs + 2


@pytest.mark.dist
def test_a_run_of_two_processes_equals_a_run_of_one(train, tmp_path):
    extra_file(tmp_path / "extra.npz")
    options = f"{TRAIN.replace('AT', 'Natural')} --epochs 2 --val_size 20 --augment idbh-weak"
    options += f" --extra_data {tmp_path}/extra.npz"  # an attack's signs would amplify rounding
    train(f"{options} --root_path one")
    out = finish(torchrun(2, "main.py", f"{options} --root_path two", tmp_path))
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(re.findall("epoch 1/2", out)) == 1, "only rank 0 logs"
    assert "2 processes share each batch of 12; BatchNorm normalizes over the whole batch" in out
    for got, expected in zip(results_of(two), results_of(one), strict=True):
        # Float32 sums in another order; one of 20 to 50 images may be classified differently.
        assert expected == pytest.approx(got, rel=1e-3, abs=5)
    state = net_of(two)
    for key, value in net_of(one).items():
        # Ten steps double a difference of 1e-7 some ten times; unsynchronized processes would differ by a tenth.
        assert (state[key] - value).abs().max() <= 1e-3 * value.abs().max() + 1e-4, key


@pytest.mark.slow
@pytest.mark.dist
def test_processes_share_the_images_of_an_evaluation_and_one_of_them_writes(run, tmp_path):
    flags = "--dataset Digits --image_size 16 --no-pictures --limit_test 50 --bs 10 --eps 0.02"
    flags += " --attacks clean,pgd,aa --limit_aa 12 --model_path"
    paths = [save_network(tmp_path / name / "net.pth") for name in ("single", "shared")]
    run("main_eval.py", f"{flags} {paths[0]}")
    assert finish(torchrun(2, "main_eval.py", f"{flags} {paths[1]}", tmp_path), 300).count("PGD-20  ") == 1
    single, shared = (read_evaluations(results_path(path))[0]["figures"] for path in paths)
    for title, result in single.items():
        assert (shared[title]["accuracy"], shared[title].get("correct")) == (result["accuracy"], result.get("correct"))
