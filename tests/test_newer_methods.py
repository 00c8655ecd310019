"""IGDM, SAAD, MTARD, B-MTARD, PeerAiD and ADR: their losses against the official codes, and their states."""

import json
import math

import pytest
import torch
from conftest import GOLDEN, ROOT, golden_arrays
from run_files import folder_of, state_of
from test_trainer import trainer_of
from tiny import tiny_problem

from engine.checkpoint import LAST, save_checkpoint
from engine.distributed import Processes
from engine.training.run import _check_processes
from engine.training.weight_perturbation import WeightPerturbation
from methods import fields_read
from methods.adr import adr_loss, rectified_labels
from methods.igdm import igdm_loss
from methods.mtard import adjust_temperatures, divergence, mtard_loss, rebalance
from methods.peeraid import peeraid_loss
from methods.saad import saad_loss
from methods.trades import trades_loss
from utils.config import TrainConfig
from utils.errors import UserError

LARGER = ROOT.parent / "shared" / "golden2"  # of which tests/recorded has some rows
FOLDER = LARGER if LARGER.exists() else GOLDEN
TOLERANCE = 1e-12


def scalar(value):
    return torch.tensor(math.nan if value is None else value, dtype=torch.float64)


def state_of_row(hp):
    first = {"first_adv": hp["init_loss_adv"], "first_nat": hp["init_loss_nat"]}
    temps = {key: hp.get(key, 1.0) for key in ("temp_adv", "temp_nat")}
    return {key: scalar(value) for key, value in {"weight_nat": hp["weight"]["nat_loss"], **first, **temps}.items()}


def igdm_row(row, a):
    alpha = row["hp"]["igdm_alpha"] * row["hp"]["epoch"] / row["hp"]["divisor"]
    return igdm_loss(a["s_plus"], a["s_minus"], a["t_plus"], a["t_minus"], alpha=alpha)


def saad_row(row, a):
    hp, names = row["hp"], "s_clean s_plus s_minus t_clean t_plus t_minus"
    alpha = hp["igdm_alpha"] * hp["epoch"] / hp["epochs"]
    return saad_loss(*(a[key] for key in names.split()), alpha=alpha, beta=hp["beta"], gamma=hp["gamma"])


def adr_row(row, a):
    labels = rectified_labels(a["t_ema"], a["targets"], temperature=row["hp"]["T"], lam=row["hp"]["lam"])
    return adr_loss(a["s_adv"], labels)


def peeraid_row(row, a):
    names = {"temp": "T", "temp2": "T2", **{f"lambda{k}": f"lamb{k}" for k in (1, 2, 3)}}
    weights = {key: row["hp"][names.get(key, key)] for key in (*names, "gamma1", "gamma2")}
    return peeraid_loss(a["p_adv"], a["s_adv"], a["s_adv_again"], a["s_clean"], a["targets"], **weights)


def mtard_row(row, a):
    kl_weight = (10 if row["method"] == "MTARD_c100" else 1) / row["C"]  # officially a mean over classes too
    state = state_of_row(row["hp"])
    t_adv, t_nat = (a[f"t_{key}"] / state[f"temp_{key}"].to(a["s_adv"].dtype) for key in ("adv", "nat"))
    terms = (kl_weight * divergence(t, s).detach() for t, s in ((t_adv, a["s_adv"]), (t_nat, a["s_clean"])))
    state = rebalance(state, *terms, rate=row["hp"]["weight_learn_rate"])
    weight = state["weight_nat"].to(t_adv.dtype)
    row["got"] = adjust_temperatures(state, t_adv, t_nat, rate=row["hp"].get("temp_learn_rate", 0.0))
    return mtard_loss(
        a["s_clean"], a["s_adv"], t_nat, t_adv, weight_adv=1 - weight, weight_nat=weight, kl_weight=kl_weight
    )


def trades_row(row, a):
    """TRADES of Wang et al.: label smoothing, or CutMix, with the KL divergence to the mixed label."""
    labels, smoothing = a.get("x_soft", a["targets"]), 0 if row["hp"]["cutmix"] else row["hp"]["ls"]
    loss = trades_loss(a["s_clean"], a["s_adv"], labels, beta=row["hp"]["beta"], label_smoothing=smoothing)
    return loss + torch.xlogy(labels, labels).sum(1).mean() if row["hp"]["cutmix"] else loss


LOSSES = {"IGDM": igdm_row, "SAAD": saad_row, "ADR": adr_row, "PeerAiD": peeraid_row, "TRADES_DM": trades_row}
LOSSES |= dict.fromkeys(("MTARD_c10", "MTARD_c100", "BMTARD"), mtard_row)
ROWS = json.loads((FOLDER / "INDEX.json").read_text())
ROWS = [row for row in ROWS if row.get("method") in LOSSES and row["status"] == "ok"]


@pytest.mark.recorded
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['method']}-{row['key']}")
def test_loss_gradients_and_state_equal_the_official_code(row):
    arrays = golden_arrays(row | {"file": FOLDER / row["file"]})
    inputs = {key: arrays[key].requires_grad_() for key in arrays if key[:2] in ("s_", "p_")}
    loss = LOSSES[row["method"]](row, arrays)
    loss.backward()
    gradients = {key: torch.zeros_like(z) if z.grad is None else z.grad for key, z in inputs.items()}
    assert all(value.isfinite().all() for value in (loss, *gradients.values()))  # officially not always in float32
    if row["dtype"] == "float32":
        return
    assert loss.item() == pytest.approx(row["loss"], rel=TOLERANCE)
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, arrays[f"g_{key}"], rtol=TOLERANCE, atol=TOLERANCE * scale)
    if after := row.get("after"):
        expected = state_of_row(after)
        if row["scenario"] == "sure_natural_teacher":  # both rise officially, because an entropy is negative
            expected["temp_adv"] = scalar(row["hp"]["temp_adv"] - row["hp"]["temp_learn_rate"])
        torch.testing.assert_close(row["got"], expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("case", ["one image", "equally certain"])
def test_saad_trains_nothing_if_all_weights_are_0_and_the_log_says_so(case, caplog):
    n = 1 if case == "one image" else 4
    student, teacher, x, y = tiny_problem(n=n)
    teacher.linear.weight.zero_()
    perturbation = WeightPerturbation(student, 0.01) if case == "one image" else None  # SAAD is then called twice
    trainer = trainer_of("SAAD", student, teacher, perturbation=perturbation)
    assert trainer.step(x, y).loss == 0
    assert all(parameter.grad.abs().max() == 0 for parameter in student.parameters())
    trainer.method.after_epoch(2)
    trainer.method.after_epoch(3)
    (line,) = caplog.messages
    assert line.startswith("SAAD: epoch 3 had 1 batches of weight 0")


def test_the_balance_of_mtard_is_the_mean_over_the_parts_of_a_batch():
    def state_after(rows, parts=1):
        student, teacher, x, y = tiny_problem()
        noise = 0.1 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        trainer = trainer_of("B-MTARD", student, teacher, steps=0, parts=parts)
        trainer.step(x[rows], y[rows], start_noise=noise[rows])
        return trainer.method.state_dict()

    first, second, whole = state_after(slice(0, 3)), state_after(slice(3, 6)), state_after(slice(0, 6), parts=2)
    torch.testing.assert_close(whole, {key: (first[key] + second[key]) / 2 for key in whole})


# Runs.


def test_the_peer_has_its_own_weights_and_is_trained(distill, tmp_path):
    distill("PeerAiD", "--epochs 1")
    state, checkpoint = state_of(tmp_path), torch.load(folder_of(tmp_path) / LAST, weights_only=True)
    torch.testing.assert_close(checkpoint["method_state"], state["method_state"], rtol=0, atol=0)
    peer, student = state["method_state"]["peer"], state["net"]
    assert not torch.equal(peer["conv1.weight"], student["conv1.weight"])
    groups = state["optimizer"]["param_groups"]
    assert len(groups) == 2 and len(groups[0]["params"]) == len(groups[1]["params"])
    assert len(state["optimizer"]["state"]) == 2 * len(groups[0]["params"])
    path = max((folder_of(tmp_path) / "resume").glob("*.pth"))
    for other in ({"peer": {"conv1.weight": torch.ones(1)}}, {}):
        save_checkpoint(path, state | {"method_state": other})
        distill("PeerAiD", "--epochs 2 --resume", error="--resume: the state in resume/ belongs to another network")


@pytest.mark.parametrize("method", ["SAAD", "MTARD", "B-MTARD", "PeerAiD"])
def test_methods_of_one_process_and_batches_smaller_than_their_number_are_refused_under_torchrun(method):
    with pytest.raises(UserError, match=f"--method {method}: supports a single process only"):
        _check_processes(TrainConfig(method=method), Processes(0, 2))
    with pytest.raises(UserError, match="--bs 1: must be at least the number of processes, 2"):
        _check_processes(TrainConfig(bs=1), Processes(0, 2))


@pytest.mark.parametrize(("method", "igdm"), [("IGDM", None), ("SAAD", None), ("DGAD", 1.0), ("ADR", None)])
def test_another_number_of_epochs_is_another_training_if_a_weight_grows_over_them(method, igdm):
    assert "epochs" in fields_read(method, TrainConfig(method=method, igdm=igdm))
    assert "epochs" not in fields_read("DGAD", TrainConfig(method="DGAD"))
