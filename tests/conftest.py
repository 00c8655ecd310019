"""Fixtures that many test files share; the reader of the values recorded from the official codes."""

import contextlib
import functools
import gc
import json
import logging
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

# Shells ignore SIGINT for background jobs, nohup ignores SIGHUP, and a run then ignores it too; tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "recorded"))


def golden_rows(**fields) -> list[dict]:
    """Rows of the index of recorded values whose fields equal ``fields``."""
    rows = json.loads((GOLDEN / "INDEX.json").read_text(encoding="utf-8"))
    return [row for row in rows if all(row.get(key) == value for key, value in fields.items())]


def golden_arrays(row: dict) -> dict[str, torch.Tensor]:
    """The arrays of one row, by name."""
    with np.load(GOLDEN / row["file"]) as file:
        prefix = row["key"] + "."
        return {
            key.removeprefix(prefix): torch.from_numpy(np.asarray(file[key]))
            for key in file.files
            if key.startswith(prefix) and file[key].dtype.kind in "fiu"
        }


@contextlib.contextmanager
def user_error(pattern: str):
    """Expect a UserError of one line that matches the pattern."""
    from utils.errors import UserError

    with pytest.raises(UserError, match=pattern) as raised:
        yield
    assert "\n" not in str(raised.value)


def pytest_collection_finish():
    gc.freeze()  # a trainer collects the garbage of its teachers, 0.2 s among the objects of all imported modules


@pytest.fixture(autouse=True)
def isolated():
    """Start every test with the same random numbers and restore what a run changes in its process."""
    torch.manual_seed(0)
    root = logging.getLogger()
    state = os.environ.copy(), root.handlers[:], root.level, torch.get_num_threads(), torch.get_default_dtype()
    tf32, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
    torch.set_float32_matmul_precision("highest")
    environment, root.handlers[:], level, threads, dtype = state
    root.setLevel(level)
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture
def fast_runs(monkeypatch):
    """Leave out what takes most of the time of a short run: drawing, and parsing the table of Digits again."""
    import sklearn.datasets
    from matplotlib.figure import Figure
    from PIL import Image

    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Image.new("RGB", (1, 1)).save(path, "PNG"))
    monkeypatch.setattr(sklearn.datasets, "load_digits", load_digits)


@functools.cache
def load_digits():
    from sklearn.datasets._base import load_digits

    return load_digits()


@pytest.fixture
def train(monkeypatch, tmp_path, caplog, fast_runs):
    """``train(args)`` does what ``python main.py ARGS`` does, in an empty folder, and returns the log.

    With ``error``, it must raise a UserError whose single line matches.
    """
    import engine.training.run
    from utils.config import TrainConfig
    from utils.flags import parse

    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def start(args: str, error: str | None = None) -> str:
        caplog.clear()
        parsed = parse(TrainConfig, shlex.split(args), description="", choices={})
        with user_error(error) if error else contextlib.nullcontext():
            engine.training.run.train(*parsed)
        return "\n".join(caplog.messages)

    return start


@pytest.fixture(scope="session")
def network():
    """A small network whose running statistics are not the initial ones, in eval mode."""
    from small_sets import IMAGES

    from models import build

    torch.manual_seed(1)
    trained = build("small_resnet", 10)
    trained(IMAGES)
    return trained.eval()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """``run(script, args)`` does what ``python SCRIPT ARGS`` does, in an empty folder, and checks the exit status.

    A run of status 2 must end with a single error line.
    """
    from commands import run_in_process

    monkeypatch.chdir(tmp_path)

    def start(script: str, args: str, status: int = 0):
        ended = run_in_process(monkeypatch, capsys, script, args)
        assert ended.status == status, ended.err
        assert status != 2 or (ended.err.startswith("error: ") and ended.err.count("\n") == 1), ended.err
        return ended

    return start


@pytest.fixture
def refused(run):
    """``refused(script, args, text)``: the script ends with one error line that contains the text; no file changes."""
    from run_files import contents

    def check(script: str, args: str, text: str):
        before = contents(".")
        error = run(script, args, status=2).err
        assert text in error and error.strip().isprintable(), error
        assert contents(".") == before

    return check


@pytest.fixture
def distill(train, tmp_path):
    """``distill(method, args)`` trains a small network by a method, with small teachers of random weights."""
    from commands import SMALL
    from small_sets import save_network

    path = save_network(tmp_path / "teacher.pth")
    flags = f"{SMALL} --lr_schedule constant --device cpu --threads 1 --no_teacher_check --teacher_model small_resnet "
    flags += f"--teacher_path {path} --std_teacher_model small_resnet --std_teacher_path {path}"
    return lambda method, args="", error=None: train(f"{flags} --method {method} {args}", error=error)
