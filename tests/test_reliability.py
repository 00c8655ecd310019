"""--log_reliability: correct counts, without another forward pass, and the same after interruptions."""

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from run_files import files_of, folder_of, rows_of
from test_trainer import trainer_of
from tiny import tiny_problem

from engine.distributed import Processes
from engine.training.metrics import EpochMetrics
from methods import METHODS, WITHOUT_TEACHER
from methods.losses import Step
from utils.plots import draw_alpha, save_figure

# Images whose teacher logits a method computes; IAD-I also adversarial ones after the start of introspection.
COMPUTED = {
    "clean": {"ARD", "RSLAD", "IAD-I"},
    "adv": {"AdaIAD", "AKD2", "IAD-II", "IGDM", "MTARD", "B-MTARD"},
    "clean adv": {"AdaAD", "DGAD", "DGAD-IAD", "SAAD"},
}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - WITHOUT_TEACHER.keys()))
@pytest.mark.parametrize("epoch", [0, 60])
def test_a_step_returns_the_teacher_logits_that_it_computes(name, epoch):
    student, teacher, x, y = tiny_problem()
    forwards = []
    trainer = trainer_of(name, student, teacher)
    method = trainer.method

    def counted(student, teacher, *rest):
        def forward(images):
            logits = teacher(images)
            forwards.append((images.detach(), logits.detach()))
            return logits

        return method(student, forward, *rest)

    trainer.method = counted
    result = trainer.step(x, y, epoch)
    entries = [kinds for kinds, names in COMPUTED.items() if name in names]
    assert len(entries) == 1, f"add {name} to COMPUTED"
    expected = entries[0].split() + ["adv"] * (name == "IAD-I" and epoch >= 60)
    returned = {"clean": result.t_clean, "adv": result.t_adv}
    assert [key for key, logits in returned.items() if logits is not None] == expected
    mirrored = name in ("IGDM", "SAAD")  # the last forward is of x - (x' - x)
    assert len(forwards) == len(expected) + mirrored, "no forward pass for logging only"
    for images, logits in forwards[: len(expected)]:
        kind = "clean" if torch.equal(images, x) else "adv"
        assert torch.equal(returned[kind], logits)
        torch.testing.assert_close(logits, teacher(images))


def step_of(probabilities, labels):
    """A step whose teacher gives the labels, of two classes, these probabilities on adversarial images."""
    alpha = torch.tensor(probabilities, dtype=torch.float64)
    is_label = torch.nn.functional.one_hot(labels, 2).bool()
    logits = torch.where(is_label, alpha[:, None].log(), (1 - alpha)[:, None].log())
    return Step(torch.tensor(1.0), t_clean=is_label * 1.0, t_adv=logits)


def test_alpha_has_twenty_bins_and_one_belongs_to_the_last():
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    metrics = EpochMetrics("cpu", teacher=True)
    metrics.add(step_of([0.0, 0.049, 0.051, 0.52, 0.999, 1.0], y), y)
    assert list(metrics.reliability().values()) == [6, 100, 50, 2, 1, *[0] * 8, 1, *[0] * 8, 2]


def test_all_images_weigh_equally_and_a_state_continues_the_sums():
    y = torch.tensor([0, 1, 0, 1])
    step = step_of([0.9, 0.2, 0.3, 0.7], y)
    whole, parts = (EpochMetrics("cpu", teacher=True) for _ in range(2))
    for part, n in ((step, 4), (Step(step.loss + 1, t_clean=step.t_clean[:1], t_adv=step.t_adv[:1]), 1)):
        whole.add(part, y[:n])
        parts.add(part, y[:n])
        parts = EpochMetrics("cpu", state=parts.state(), teacher=True)
    assert whole.reliability() == parts.reliability() and whole.state() == parts.state()
    without = EpochMetrics("cpu")
    without.add(step, y)
    assert without.reliability() is None
    parts = EpochMetrics("cpu", state=without.state(), teacher=True)  # the flag is given in the middle of an epoch
    parts.add(step, y)
    assert parts.reliability() is None
    assert whole.reliability()["teacher_adv_acc"] == 60
    assert whole.means()["train_loss"] == pytest.approx((4 * 1 + 1 * 2) / 5)


def test_the_sums_of_all_ranks_add_up_to_those_of_one_process(monkeypatch):
    monkeypatch.setattr(Processes, "all_reduce_sum", lambda self, values: values)
    y = torch.tensor([0, 1, 0, 1, 1])
    step = step_of([0.9, 0.2, 0.3, 0.7, 0.6], y)
    whole = EpochMetrics("cpu", teacher=True)
    whole.add(step, y)
    total = 0
    for rank in range(2):
        processes = Processes(rank, 2)
        rows = processes.shards(5)[0].rows
        metrics = EpochMetrics("cpu", processes, teacher=True)
        metrics.add(Step(step.loss, t_clean=step.t_clean[rows], t_adv=step.t_adv[rows]), y)
        total = total + torch.tensor(metrics.state()["alpha"])
    assert total.tolist() == whole.state()["alpha"]
    rank1 = EpochMetrics("cpu", Processes(1, 2), whole.state(), teacher=True)
    assert not rank1.sums["alpha"].any() and not rank1.sums["t_adv"], "only rank 0 continues saved sums"


# Runs.


def alphas(row):
    return [int(cell) for key, cell in row.items() if key.startswith("alpha_")]


def test_a_run_writes_a_row_per_epoch_and_a_figure(distill, tmp_path):
    distill("IAD-I", "--epochs 2 --IAD_begin 1 --log_reliability")
    rows = rows_of(tmp_path, "reliability.csv")
    assert [(row["epoch"], row["n"]) for row in rows] == [("1", "48"), ("2", "48")]
    assert all(0 <= float(row["teacher_clean_acc"]) <= 100 for row in rows)
    assert rows[0]["teacher_adv_acc"] == rows[0]["alpha_0.00"] == ""  # before introspection
    assert len(alphas(rows[1])) == 20 and sum(alphas(rows[1])) == 48
    with Image.open(next(tmp_path.rglob("reliability.png"))) as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_the_flag_changes_nothing_else_of_a_run_and_may_change_on_resuming(distill, tmp_path):
    distill("DGAD", "--epochs 2 --root_path plain")
    distill("DGAD", "--epochs 2 --root_path logged --log_reliability")
    plain, logged = (files_of(folder_of(tmp_path / name)) for name in ("plain", "logged"))
    assert logged.keys() - plain.keys() == {"reliability.csv", "reliability.png"}
    others = [name for name in plain if "resume/" not in name and name != "config.json"]
    assert all(plain[name] == logged[name] for name in others) and len(others) >= 4
    distill("DGAD", "--epochs 3 --root_path logged --resume")
    distill("DGAD", "--epochs 4 --root_path logged --resume --log_reliability")
    distill("DGAD", "--epochs 4 --root_path whole --log_reliability")
    whole, parts = (rows_of(tmp_path / name, "reliability.csv") for name in ("whole", "logged"))
    assert parts == [whole[0], whole[1], whole[3]]


def test_the_figure_of_alpha_shows_shares_of_each_epoch(tmp_path, recwarn):
    columns = ["alpha_0.00", "alpha_0.50"]
    rows = [{"epoch": 1, "n": 4} | dict.fromkeys(columns), {"epoch": 2, "n": 4, columns[0]: 1, columns[1]: 3}]
    figure, axes = plt.subplots()
    draw_alpha(axes, rows, columns)
    (mesh,) = axes.collections
    assert mesh.get_array().flatten().tolist() == [25, 75]
    axes.set_title("日本")  # characters that the font does not have
    save_figure(figure, tmp_path / "alpha.png")
    assert not recwarn.list
