"""TensorBoard and Weights & Biases get every epoch once, and whatever happens to them the run goes on as without.

Stand-ins take the place of both packages, so that neither is needed.
"""

import csv
import sys
import typing
from types import ModuleType

import pytest
from commands import SMALL, run_here
from test_faults import files_of

RUN = f"{SMALL} --method AT --lr_schedule constant"
VALUES = {"lr", "train_loss", "train_adv_acc", "clean_loss", "clean_acc", "PGD10_loss", "PGD10_acc"}  # of AT


class SummaryWriter:
    """What the real one does with a purge_step: everything written before from that step on is shown no more."""

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
    """What the real one does: a step that its run has already is not taken again, and a run whose beginning failed is
    in use until its service is torn down.
    """

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.steps, self.refuses, self.in_use = [], {}, 0, set()

    def init(self, **options):
        self.begun.append(options)
        if options["id"] in self.in_use:
            raise RuntimeError(f"run ID {options['id']} is in use")
        if self.refuses > 0:
            self.refuses -= 1
            self.in_use.add(options["id"])
            raise ConnectionError("api.example: no route to host\nand more lines")
        self.steps.setdefault(options["id"], {})
        return self

    def teardown(self):
        self.in_use.clear()

    def log(self, values, step, commit):
        self.steps[self.begun[-1]["id"]].setdefault(step, values)


@pytest.fixture
def packages(monkeypatch):
    tensorboard = ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(SummaryWriter, "events", {})
    tensorboard.SummaryWriter = SummaryWriter
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return wandb


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda words: run_here(monkeypatch, capsys, "main.py", words)


def rows_of(root):
    (path,) = root.rglob("results.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def shown_in_tensorboard():
    (events,) = SummaryWriter.events.values()
    return sorted((name, step) for name, step, _ in events)


def test_tensorboard_shows_every_value_of_every_epoch(packages, run, tmp_path):
    assert run(f"{RUN} --epochs 2 --tensorboard").status == 0
    (place,) = SummaryWriter.events
    assert place.startswith("tuned_models/Digits/AT/") and place.endswith("/tensorboard")
    assert shown_in_tensorboard() == sorted((name, step) for name in VALUES for step in (1, 2))
    for name, step, value in SummaryWriter.events[place]:
        assert value == pytest.approx(float(rows_of(tmp_path)[step - 1][name]), rel=1e-5)  # results.csv has six digits


def test_wandb_gets_every_epoch_with_the_settings_of_the_run(packages, run):
    assert run(f"{RUN} --epochs 2 --wandb").status == 0
    (begun,) = packages.begun
    assert begun["config"]["method"] == "AT" and begun["name"] == "small_resnet_eps8_seed42"
    assert "mode" not in begun  # WANDB_MODE decides
    (steps,) = packages.steps.values()
    assert list(steps) == [1, 2] and steps[1].keys() == VALUES


def test_a_resumed_run_doubles_no_point_and_loses_none(packages, run, tmp_path):
    assert run(f"{RUN} --epochs 2 --tensorboard --wandb").status == 0
    (state,) = tmp_path.rglob("resume/0002-*.pth")
    state.unlink()  # as if the power failed between the second row and its state
    assert run(f"{RUN} --epochs 3 --tensorboard --wandb --resume").status == 0
    assert shown_in_tensorboard() == sorted((name, step) for name in VALUES for step in (1, 2, 3))
    first, second = packages.begun
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert list(packages.steps[first["id"]]) == [1, 2, 3]


def test_sinks_that_are_asked_for_later_get_the_epochs_before(packages, run):
    assert run(f"{RUN} --epochs 2").status == 0
    assert run(f"{RUN} --epochs 3 --tensorboard --wandb --resume").status == 0
    assert {step for _, step in shown_in_tensorboard()} == {1, 2, 3}
    (steps,) = packages.steps.values()
    assert list(steps) == [1, 2, 3]


def test_two_runs_are_two_runs_of_wandb(packages, run):
    assert run(f"{RUN} --epochs 1 --wandb").status == 0
    assert run(f"{RUN} --epochs 1 --wandb --desc_str other").status == 0
    assert len({begun["id"] for begun in packages.begun}) == 2


def test_without_a_network_wandb_keeps_the_run_here(packages, run):
    packages.refuses = 1
    ended = run(f"{RUN} --epochs 1 --wandb")
    assert ended.status == 0
    assert "--wandb: api.example: no route to host; kept in tuned_models/" in ended.out and "and more" not in ended.out
    assert [begun.get("mode") for begun in packages.begun] == [None, "offline"]
    (steps,) = packages.steps.values()
    assert list(steps) == [1]


def test_a_sink_that_fails_changes_nothing_of_the_run(packages, run, tmp_path, monkeypatch):
    assert run(f"{RUN} --epochs 2 --root_path plain").status == 0
    packages.refuses = 2

    def full(self, name, value, step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    ended = run(f"{RUN} --epochs 2 --root_path echoed --tensorboard --wandb")
    assert ended.status == 0
    assert ended.out.count("--tensorboard: [Errno 28] No space left on device; the run goes on without") == 1
    assert ended.out.count("--wandb: api.example: no route to host; the run goes on without") == 1
    plain, echoed = files_of(tmp_path / "plain"), files_of(tmp_path / "echoed")
    assert {name.rsplit("/", 1)[1] for name in echoed.keys() - plain.keys()} == {"wandb_id.txt"}
    assert all(echoed[name] == data for name, data in plain.items() if not name.endswith("config.json"))


@pytest.mark.parametrize("flag, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_one_line_before_anything_is_written(run, tmp_path, monkeypatch, flag, module):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    ended = run(f"{RUN} --epochs 1 --{flag}")
    assert (ended.status, ended.err) == (2, f"error: --{flag}: needs a package: pip install {flag}\n")
    assert not (tmp_path / "tuned_models").exists()


def test_a_run_without_the_flags_loads_neither(packages, run):
    assert run(f"{RUN} --epochs 1").status == 0
    assert not SummaryWriter.events and not packages.begun
