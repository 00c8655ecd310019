"""Whatever interrupts a run, nothing that was finished is lost, and what goes on ends with the bytes of a whole run."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from commands import SMALL, run_here
from conftest import ROOT

import methods
from engine.training.run_folder import RunFolder
from utils.config import TrainConfig

RUN = f"{SMALL} --method AT --lr_schedule constant --epochs 3"
# 24 steps an epoch, so that a run lives long enough to be killed often; a state after each.
LONG = (
    "--dataset Digits --image_size 16 --model small_resnet --limit_train 96 --limit_test 40 --bs 4 --num_steps 2 "
    "--method AT --lr_schedule constant --epochs 4 --save_minutes 0 --resume --device cpu --threads 1"
)


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    nursery.start(folder, "main.py", LONG)
    assert nursery.wait() == 0
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda words: run_here(monkeypatch, capsys, "main.py", words)


def files_of(root) -> dict:
    """All that a run left, but for its log."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in ("log.txt", "output.txt"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def seen(check) -> None:
    """Wait until ``check()`` holds."""
    deadline = time.monotonic() + 120
    while not check():
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.001)


def resumed(root):
    """Whether the run has taken its folder and made a first step since it started."""
    text = (root / "output.txt").read_text() if (root / "output.txt").exists() else ""
    return "device cpu" in text


def test_killed_at_twenty_random_moments_a_run_ends_with_the_same_bytes(nursery, whole, tmp_path):
    chance, kills = random.Random(0), 0
    while kills < 20:
        pid = nursery.start(tmp_path, "main.py", LONG)
        seen(lambda: resumed(tmp_path))
        if kills % 2:  # in the middle of writing a file
            seen(lambda: any(tmp_path.rglob(".partial-*")))
        else:
            time.sleep(chance.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL, "the run was over before it was killed: make it longer"
        (tmp_path / "output.txt").unlink()
        kills += 1
    nursery.start(tmp_path, "main.py", LONG)
    assert nursery.wait() == 0
    assert files_of(tmp_path) == files_of(whole)


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 0)])
def test_a_signal_saves_and_ends_with_its_status(nursery, whole, tmp_path, name, status):
    words = LONG.replace("--save_minutes 0", "--save_minutes 60")
    pid = nursery.start(tmp_path, "main.py", words)
    seen(lambda: any(tmp_path.rglob("best_PGD10_acc_model.pth")))
    os.kill(pid, getattr(signal, name))
    assert nursery.wait() == status
    last = (tmp_path / "output.txt").read_text().splitlines()[-1]
    assert re.fullmatch(f"stopped by {name}: saved in .*AT/small_resnet_eps8_seed42; --resume continues", last)
    (newest, *_) = sorted((path.name for path in tmp_path.rglob("resume/*.pth")), reverse=True)
    assert not newest.endswith("-000000.pth"), "in the middle of an epoch"
    nursery.start(tmp_path, "main.py", LONG)
    assert nursery.wait() == 0
    assert files_of(tmp_path) == files_of(whole)


def test_a_spoilt_newest_state_falls_back_to_the_one_before(run, tmp_path):
    assert run(f"{RUN} --root_path whole").status == 0
    assert run(RUN.replace("--epochs 3", "--epochs 2")).status == 0
    _, newer = sorted((tmp_path / "tuned_models").rglob("resume/*.pth"))
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of a weight
    newer.write_bytes(data)
    ended = run(f"{RUN} --resume")
    assert ended.status == 0
    assert f"{newer.relative_to(tmp_path)}: not a readable checkpoint (wrong checksum" in ended.out
    assert "resuming after epoch 1 of 3" in ended.out
    spoilt = str(newer.with_suffix(".bad").relative_to(tmp_path / "tuned_models"))
    assert files_of(tmp_path / "tuned_models").keys() == files_of(tmp_path / "whole").keys() | {spoilt}
    for name, content in files_of(tmp_path / "whole").items():
        if name.endswith((".pth", ".csv")):
            assert files_of(tmp_path / "tuned_models")[name] == content, name


def test_states_that_are_all_spoilt_are_named_and_left_alone(run, tmp_path):
    assert run(RUN).status == 0
    states = sorted(tmp_path.rglob("resume/*.pth"))
    assert len(states) == 2
    for state in states:
        state.write_bytes(state.read_bytes()[:1000])
    before = files_of(tmp_path)
    ended = run(f"{RUN} --resume")
    assert ended.status == 2 and str(states[-1].relative_to(tmp_path)) in ended.err
    assert ended.err.count("\n") == 1
    assert files_of(tmp_path) == before


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_no_half_file(run, tmp_path):
    assert run(RUN.replace("--epochs 3", "--epochs 1")).status == 0
    before = {name: data for name, data in files_of(tmp_path).items() if name.endswith(".pth")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a checkpoint is larger
    try:
        ended = run(f"{RUN} --resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert re.search(r"error: .*\.pth: cannot be written \(.*\); --resume continues the run", ended.err)
    after = files_of(tmp_path)
    assert {name: data for name, data in after.items() if name.endswith(".pth")} == before
    assert not [name for name in after if ".partial-" in name]
    assert run(f"{RUN} --resume").status == 0
    assert run(f"{RUN} --root_path whole").status == 0
    parts, uninterrupted = files_of(tmp_path / "tuned_models"), files_of(tmp_path / "whole")
    assert all(parts[name] == data for name, data in uninterrupted.items() if name.endswith((".pth", ".csv")))


def test_a_place_that_cannot_be_written_to_is_told_before_any_work(run):
    ended = run(f"{RUN} --root_path /proc/nowhere")  # a file system that takes no folder, not even root's
    assert ended.status == 2 and ended.err.startswith("error: --root_path /proc/nowhere: cannot write there")
    assert "epoch" not in ended.out


def test_an_output_folder_that_disappears_ends_the_run_in_one_line(run, tmp_path):
    def take_away():
        seen(lambda: any(tmp_path.rglob("resume/0001-*.pth")))
        (tmp_path / "tuned_models").rename(tmp_path / "elsewhere")

    thief = threading.Thread(target=take_away)
    thief.start()
    ended = run(RUN.replace("--epochs 3", "--epochs 200"))
    thief.join()
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert "cannot be written (No such file or directory)" in ended.err
    assert not (tmp_path / "tuned_models").exists()


def test_a_loss_that_is_no_number_stops_at_its_step_and_saves_nothing_bad(run, tmp_path):
    ended = run(f"{RUN} --lr_max 1e30 --save_minutes 0")
    assert ended.status == 2 and ended.err.count("\n") == 1
    said = r"error: --lr_max 1e\+30: .*(step|epoch) \d.* nan or inf at learning rate 1e\+30; (.*)checkpoint"
    assert re.search(said, ended.err)
    for path in tmp_path.rglob("*.pth"):
        net = torch.load(path, weights_only=True)["net"]
        assert all(value.isfinite().all() for value in net.values()), path


def test_a_bad_loss_names_the_step_and_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    assert run(RUN.replace("--epochs 3", "--epochs 1")).status == 0
    bad = {"left": 2}

    def natural(config):
        plain = methods.natural.natural

        def step(student, *rest):
            outcome = plain(student, *rest[-4:])
            bad["left"] -= 1
            return outcome._replace(loss=outcome.loss * float("nan")) if bad["left"] == 0 else outcome

        return step

    monkeypatch.setitem(methods.METHODS, "AT", natural)
    ended = run(f"{RUN} --resume")
    assert ended.status == 2
    assert "the loss of step 2 of epoch 2 is nan or inf at learning rate 0.1; the last good checkpoint is" in ended.err
    assert "resume/0001-000000.pth" in ended.err


def test_a_full_gpu_names_a_batch_size_that_fits(run, monkeypatch):
    def natural(config):
        def step(student, attack, x, y, epoch):
            if len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")  # what torch raises; there is no GPU to fill here
            return methods.natural.natural(student, attack, x, y, epoch)

        return step

    monkeypatch.setitem(methods.METHODS, "Natural", natural)
    ended = run(f"{SMALL} --method Natural --epochs 1")
    assert ended.status == 2
    assert (
        ended.err == "error: --bs 16: the GPU's memory does not hold a training step of so many images; --bs 4 fits\n"
    )


def test_a_full_gpu_in_an_evaluation_is_one_line(run, tmp_path, monkeypatch, capsys):
    assert run(f"{SMALL} --method Natural --epochs 1").status == 0

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("engine.evaluation.evaluate.run_attack", full)
    ended = run_here(monkeypatch, capsys, "main_eval.py", f"--model_path {tmp_path} --attacks pgd --bs 7")
    assert ended.status == 2 and ended.err.startswith("error: --bs 7: CUDA out of memory; reduce --bs")


def test_a_clock_that_jumps_changes_nothing(run, tmp_path, monkeypatch):
    assert run(f"{RUN} --root_path whole").status == 0
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(0, 2e9))
    assert run(f"{RUN} --root_path parts").status == 0
    parts, uninterrupted = files_of(tmp_path / "parts"), files_of(tmp_path / "whole")
    assert all(parts[name] == data for name, data in uninterrupted.items() if name.endswith((".pth", ".csv")))


def test_the_lock_of_a_killed_run_dies_with_it(nursery, tmp_path):
    pid = nursery.start(tmp_path, "main.py", LONG)
    seen(lambda: any(tmp_path.rglob("resume/*.pth")))
    os.kill(pid, signal.SIGSTOP)  # alive, and holding its lock
    command = [sys.executable, str(ROOT / "main.py"), *LONG.split()]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 2 and "another run is training there" in second.stderr
    os.kill(pid, signal.SIGKILL)
    nursery.wait()
    nursery.start(tmp_path, "main.py", LONG)
    assert nursery.wait() == 0


def test_a_run_stopped_while_it_drew_is_drawn_when_it_is_resumed(run, tmp_path):
    assert run(f"{RUN} --val_size 8").status == 0
    (picture,) = tmp_path.rglob("curves.png")
    before = files_of(tmp_path)
    picture.unlink()
    ended = run(f"{RUN} --val_size 8 --resume")
    assert ended.status == 0 and "on the test images: clean" in ended.out
    assert files_of(tmp_path) == before


def test_states_of_more_than_ten_thousand_epochs_keep_their_order(tmp_path):
    folder = RunFolder(TrainConfig(root_path=str(tmp_path), method="Natural"), teacher=None)
    folder.last_state()
    folder.create(None)
    for epochs in (9998, 9999, 10000, 10001):
        folder.save_state({"net": {}, "optimizer": {}, "epochs": epochs, "metrics": {"batches": 0}})
    assert sorted(path.name for path in tmp_path.rglob("*.pth")) == ["10000-000000.pth", "10001-000000.pth"]


def test_a_signal_that_comes_while_a_file_is_read_is_not_taken_for_damage(run, tmp_path, monkeypatch):
    assert run(RUN).status == 0
    before = files_of(tmp_path)
    plain = torch.load

    def interrupted(*about, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*about, **options)

    monkeypatch.setattr(torch, "load", interrupted)
    ended = run(f"{RUN.replace('--epochs 3', '--epochs 4')} --resume")
    assert (ended.status, ended.err) == (143, "stopped by SIGTERM: --resume continues from what is saved\n")
    assert files_of(tmp_path) == before


ALTERED = {
    "another network": lambda state: state | {"net": {"w": torch.ones(2)}},
    "no network": lambda state: state | {"net": None},
    "an empty optimizer": lambda state: state | {"optimizer": {}},
    "rows of another table": lambda state: state | {"rows": [{"epoch": 0}] * 3},
    "rows that are missing": lambda state: state | {"rows": []},
    "no epochs": lambda state: state | {"epochs": "three"},
    "no settings": lambda state: state | {"config": None},
    "a spoilt metrics": lambda state: state | {"metrics": state["metrics"] | {"batches": "x"}},
    "a list": lambda state: [state],
    "a best checkpoint": lambda state: {key: state[key] for key in ("net", "classes")},
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_state_that_is_none_of_this_run_is_refused_in_one_line(run, tmp_path, what):
    assert run(RUN).status == 0
    for path in tmp_path.rglob("resume/*.pth"):
        torch.save(ALTERED[what](torch.load(path, weights_only=True)), path)
    before = files_of(tmp_path)
    ended = run(f"{RUN.replace('--epochs 3', '--epochs 4')} --resume")
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert "resume/" in ended.err
    assert files_of(tmp_path) == before
