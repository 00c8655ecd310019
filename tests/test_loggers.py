"""TensorBoard and Weights & Biases receive every epoch once, and their failures never change a run.

Fakes replace both packages.
"""

import sys
import typing
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
from commands import SMALL
from run_files import files_of, folder_of, rows_of

from engine.training.results import MEASUREMENTS, METRICS

RUN = f"{SMALL} --method AT --lr_schedule constant"
VALUES = {*METRICS, *MEASUREMENTS} - {"epoch", "train_clean_acc"}  # AT has no logits of clean images


class SummaryWriter:
    """Like the real one: ``purge_step`` hides all earlier events from that step on."""

    events: typing.ClassVar = {}  # by folder

    def __init__(self, log_dir, purge_step=None):
        self.shown = self.events.setdefault(log_dir, [])
        if purge_step is not None:
            self.shown[:] = [event for event in self.shown if event[1] < purge_step]

    def add_scalar(self, name, value, step):
        self.shown.append((name, step, value))

    def flush(self):
        pass


class Wandb(ModuleType):
    """Like the real one: a run keeps the first values of a step."""

    Settings = SimpleNamespace

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.steps, self.failing = [], {}, False

    def init(self, **options):
        self.calls.append(options)
        if self.failing:
            raise ConnectionError("api.example: no route to host\nand more lines")
        self.steps.setdefault(options["id"], {})
        return self

    def log(self, values, step, commit):
        self.steps[self.calls[-1]["id"]].setdefault(step, values)


@pytest.fixture
def wandb(monkeypatch):
    tensorboard, wandb = ModuleType("torch.utils.tensorboard"), Wandb()
    monkeypatch.setattr(SummaryWriter, "events", {})
    tensorboard.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_PROJECT", "WANDB_INIT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return wandb


def shown_in_tensorboard():
    (events,) = SummaryWriter.events.values()
    return sorted((name, step) for name, step, _ in events)


def test_both_receive_every_value_of_every_epoch(wandb, train, tmp_path):
    train(f"{RUN} --epochs 2 --tensorboard --wandb")
    (path,) = SummaryWriter.events
    assert path.startswith("tuned_models/Digits/AT/") and path.endswith("/tensorboard")
    assert shown_in_tensorboard() == sorted((name, step) for name in VALUES for step in (1, 2))
    for name, step, value in SummaryWriter.events[path]:
        assert value == pytest.approx(float(rows_of(tmp_path)[step - 1][name]), rel=1e-5)  # six digits in the table
    (call,) = wandb.calls
    assert call["config"]["method"] == "AT" and call["name"] == "small_resnet_eps8_seed42"
    assert call["settings"].init_timeout == 20  # without an answer, not after 90 seconds
    (steps,) = wandb.steps.values()
    assert list(steps) == [1, 2] and steps[1].keys() == VALUES


def test_a_resumed_run_logs_every_epoch_once(wandb, train, tmp_path):
    train(f"{RUN} --epochs 1")
    assert not SummaryWriter.events and not wandb.calls
    train(f"{RUN} --epochs 2 --tensorboard --wandb --resume")  # earlier epochs too
    (folder_of(tmp_path) / "resume/0002-000000.pth").unlink()  # as if the power failed between the row and its state
    train(f"{RUN} --epochs 3 --tensorboard --wandb --resume")
    assert shown_in_tensorboard() == sorted((name, step) for name in VALUES for step in (1, 2, 3))
    first, second = wandb.calls
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert list(wandb.steps[first["id"]]) == [1, 2, 3]
    train(f"{RUN} --epochs 1 --wandb --desc_str other")
    assert len(wandb.steps) == 2


def test_a_logger_that_fails_changes_nothing_of_the_run(wandb, train, tmp_path, monkeypatch):
    train(f"{RUN} --epochs 2 --root_path plain")
    wandb.failing = True
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    log = train(f"{RUN} --epochs 2 --root_path logged --tensorboard --wandb")
    assert log.count("--tensorboard: [Errno 28] No space left on device; the run continues without it") == 1
    assert log.count("--wandb: api.example: no route to host; the run continues without it") == 1
    plain, logged = (files_of(folder_of(tmp_path / name)) for name in ("plain", "logged"))
    assert logged.keys() == plain.keys()
    assert all(logged[name] == data for name, data in plain.items() if name != "config.json")
    wandb.failing = False
    train(f"{RUN} --epochs 3 --root_path logged --wandb --resume")  # the epochs before the failure too
    (steps,) = wandb.steps.values()
    assert list(steps) == [1, 2, 3]


@pytest.mark.parametrize(("flag", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_an_error_before_anything_is_written(train, tmp_path, monkeypatch, flag, module):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    train(f"{RUN} --epochs 1 --{flag}", error=f"^--{flag}: requires a package: pip install {flag}$")
    assert not (tmp_path / "tuned_models").exists()
