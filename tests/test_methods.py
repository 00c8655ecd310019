"""Losses and states of the methods equal the official codes, or the papers where the official code is wrong."""

import json
import math
from dataclasses import fields
from itertools import product
from pathlib import Path

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
from methods import METHODS, SINGLE_PROCESS_ONLY, fields_read
from methods.adaad import adaad_loss, adaiad_loss
from methods.adr import adr_loss, rectified_labels
from methods.akd2 import akd2_loss
from methods.ard import ard_loss
from methods.at import at_loss
from methods.dgad import dgad_loss
from methods.iad import iad1_loss, iad2_loss
from methods.igdm import igdm_loss
from methods.ikl import ikl_loss
from methods.losses import kl, swap
from methods.mart import mart_loss
from methods.mtard import adjust_temperatures, divergence, mtard_loss, rebalance
from methods.peeraid import PeerAiD, peeraid_loss
from methods.recipes import RECIPES, recipe
from methods.rslad import rslad_loss
from methods.saad import saad_loss
from methods.trades import trades_loss
from utils.config import TrainConfig
from utils.errors import UserError

LARGER = ROOT.parent / "shared" / "golden2"  # of which tests/recorded has some rows
# The order of summation differs: a few machine epsilons of float64.
TOLERANCE = 1e-12


# Our losses on recorded logits, with the errors of the official codes that shift a value: (row, its arrays) -> loss.


def of(loss, names, **options):
    """A loss of these arrays; each option is a hyperparameter, a function of the row, or a number."""

    def call(row, a):
        hp = row["hp"]
        values = {k: hp[v] if isinstance(v, str) else v(row) if callable(v) else v for k, v in options.items()}
        return loss(*(a[name] for name in names.split()), **values)

    return call


def introspects(row):
    return row["hp"]["epoch"] >= row["hp"].get("begin", row["hp"].get("IAD_begin"))


def rslad_row(row, a):
    q = a["t_clean"].softmax(1)
    constant = torch.xlogy(q, q + 1e-5) - torch.xlogy(q, q)  # of the official log(q + 1e-5)
    return rslad_loss(a["s_clean"], a["s_adv"], a["t_clean"], kl_weight=0.1) + 0.1 * constant.sum(1).mean()


def dgad_row(row, a):
    names, y = "s_clean s_adv t_clean t_adv targets", a["targets"]
    loss = of(dgad_loss, names, alp_beta="ALP_beta", use_pcr=lambda row: row["hp"]["alp"] == "on")(row, a)
    wrong = a["t_clean"].argmax(1) != y  # the official mean over these k images divides by k + 1e-10
    return loss - 1e-10 / (wrong.sum() + 1e-10) * (wrong * kl(swap(a["t_clean"], y), a["s_clean"])).mean()


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


def ikl_row(row, a):
    weights = {key: row["hp"][key] for key in ("alpha", "beta", "gamma")}
    return ikl_loss(a["s_clean"], a["s_adv"], a["x_class_weights"][a["targets"]], a["targets"], **weights)


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


ARD = {"alpha": "alpha", "temp": "temp"}
IAD = {"beta": "beta", "temp": "temp", "introspect": introspects}
TWO_TEACHERS = {"robust_weight": "alpha1", "std_weight": "alpha2", "temp": "temp"}
FOUR = "s_clean s_adv t_clean t_adv"
LOSSES = {
    **dict.fromkeys(("AT", "AT_iad_pretrain"), of(at_loss, "s_adv targets")),
    "TRADES": of(trades_loss, "s_clean s_adv targets", beta="beta"),
    "TRADES_dgad_tiny": of(trades_loss, "s_clean s_adv targets", beta="trades_beta"),
    "TRADES_DM": trades_row,
    "RSLAD": rslad_row,
    "AdaAD": of(
        adaad_loss,
        FOUR,
        alpha="AdaAD_alpha",
        kl_weight=lambda row: 0.1 if row["hp"]["dataset"] == "CIFAR10" else 1.0,
    ),
    # Officially the same value with IAD: its introspection compares the student with itself (bug D6).
    **dict.fromkeys(("DGAD", "DGAD_IAD"), dgad_row),
    "ARD_goldblum": of(ard_loss, "s_clean s_adv t_clean targets", **ARD, kl_weight=lambda row: 1 / row["C"]),
    "ARD_iad": of(ard_loss, "s_clean s_adv t_clean targets", **ARD, kl_weight=1.0),
    "AKD2_iad": of(akd2_loss, "s_adv t_adv t_st_adv targets", **TWO_TEACHERS),
    "IAD-I": of(iad1_loss, f"{FOUR} targets", **IAD, alpha="alpha"),
    "IAD-II": of(iad2_loss, "s_clean s_adv t_adv t_st_adv targets", **IAD | TWO_TEACHERS),
    "AdaAD_IAD": of(adaiad_loss, "s_clean s_adv t_adv targets", **IAD | {"alpha": "IAD_alpha", "beta": "IAD_beta"}),
    "IGDM": igdm_row,
    "SAAD": saad_row,
    "ADR": adr_row,
    "PeerAiD": peeraid_row,
    **dict.fromkeys(("IKL", "GKL"), ikl_row),
    **dict.fromkeys(("MTARD_c10", "MTARD_c100", "BMTARD"), mtard_row),
}


def deviates(row):
    """Whether the official code is wrong for this row (docs/differences.md); tests/test_steps.py has the paper's."""
    hp = row["hp"]
    partial = row["N"] < hp.get("bs", 0)  # divides by --bs although the batch is smaller (bugs D3, D28)
    product = hp.get("model") == "mobilenetV2"  # multiplies the two terms (bug D4)
    return row["status"] == "raises" or partial or product


def rows():
    found = []
    for folder in filter(Path.exists, (GOLDEN, LARGER)):
        index = json.loads((folder / "INDEX.json").read_text(encoding="utf-8"))
        found += [row | {"file": folder / row["file"]} for row in index if row.get("method") in LOSSES]
    return [row for row in found if row["hp"].get("beta", 1) is not None]  # with None SAAD raises, ours has a default


@pytest.mark.recorded
@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['method']}-{row['key']}-{row['scenario']}")
def test_loss_gradients_and_state_equal_the_official_code(row):
    arrays = golden_arrays(row)
    inputs = {key: value.requires_grad_() for key, value in arrays.items() if key[:2] in ("s_", "p_")}
    loss = LOSSES[row["method"]](row, arrays)
    loss.backward()
    gradients = {key: torch.zeros_like(z) if z.grad is None else z.grad for key, z in inputs.items()}
    assert all(value.isfinite().all() for value in (loss, *gradients.values()))  # officially not always in float32
    if row["dtype"] == "float32" or deviates(row):
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


def test_swap_exchanges_the_label_with_the_first_of_the_largest_other_logits():
    correct, wrong, tie, other_tie = [3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [3.0, 1.0, 3.0], [1.0, 3.0, 3.0]
    swapped = swap(torch.tensor([correct, wrong, tie, other_tie]), torch.tensor([0, 0, 2, 0]))
    assert swapped.tolist() == [correct, [3.0, 1.0, 2.0], tie, [3.0, 1.0, 3.0]]


def test_mart_is_finite_for_a_confident_wrong_prediction():
    s = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    loss = mart_loss(s, s, torch.tensor([0]), beta=5.0)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


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
    assert line.startswith("SAAD: epoch 3 had 1 batches or parts of weight 0")


def test_the_balance_of_mtard_is_the_mean_over_the_parts_of_a_batch():
    def state_after(rows, parts=1):
        student, teacher, x, y = tiny_problem()
        noise = 0.1 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        trainer = trainer_of("B-MTARD", student, teacher, steps=0, parts=parts)
        trainer.step(x[rows], y[rows], start_noise=noise[rows])
        return trainer.method.state_dict()

    first, second, whole = state_after(slice(0, 3)), state_after(slice(3, 6)), state_after(slice(0, 6), parts=2)
    torch.testing.assert_close(whole, {key: (first[key] + second[key]) / 2 for key in whole})


def test_the_class_weights_of_ikl_are_means_over_the_previous_epoch():
    student, teacher, x, y = tiny_problem(n=12)
    trainer = trainer_of("IKL", student, teacher, perturbation=WeightPerturbation(student, 0.01), parts=2)
    for epoch in range(2):
        logits = torch.cat([trainer.step(x[k : k + 6], y[k : k + 6]).clean for k in (0, 6)])
        trainer.method.load_state_dict(trainer.method.state_dict())
        trainer.after_epoch(epoch, ())
    probabilities, got = (logits / 4).softmax(1), trainer.method.state_dict()["class_weights"]
    absent = set(range(10)) - set(y.tolist())
    assert absent
    for label in range(10):
        expected = torch.full_like(got[0], 0.1) if label in absent else probabilities[y == label].mean(0)
        torch.testing.assert_close(got[label], expected)


# Runs.


def test_the_peer_has_its_own_weights_and_is_trained(distill, tmp_path, monkeypatch):
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
    diverge = lambda self: next(self.parameters()).data.fill_(torch.nan)  # noqa: E731  # after the only step
    monkeypatch.setattr(PeerAiD, "after_step", diverge, raising=False)
    distill("PeerAiD", "--epochs 1 --limit_train 16 --seed 1", error="a loss or a weight is nan or inf in epoch 1")


def test_methods_of_one_process_and_batches_smaller_than_their_number_are_refused_under_torchrun():
    for method in (*SINGLE_PROCESS_ONLY, "PeerAiD"):  # which trains a second network
        with pytest.raises(UserError, match=f"--method {method}: supports a single process only"):
            _check_processes(TrainConfig(method=method), Processes(0, 2))
    with pytest.raises(UserError, match="--bs 1: must be at least the number of processes, 2"):
        _check_processes(TrainConfig(bs=1), Processes(0, 2))
    with pytest.raises(UserError, match="--bs 3: must be at least the number of processes times --accumulate, 4"):
        _check_processes(TrainConfig(bs=3, accumulate=2), Processes(0, 2))


@pytest.mark.parametrize(("method", "igdm"), [("IGDM", None), ("SAAD", None), ("DGAD", 1.0), ("ADR", None)])
def test_another_number_of_epochs_is_another_training_if_a_weight_grows_over_them(method, igdm):
    assert "epochs" in fields_read(method, TrainConfig(method=method, igdm=igdm))
    assert "epochs" not in fields_read("DGAD", TrainConfig(method="DGAD"))


def test_recipes_of_the_papers():
    names = {spec.name for spec in fields(TrainConfig)}
    assert set(RECIPES) <= set(METHODS)
    for method, dataset in product(METHODS, ("CIFAR10", "CIFAR100", "Tiny_Image", "Digits")):
        assert set(recipe(method, dataset, "mobilenetV2")) <= names
    for (method, dataset, model), expected in {
        ("DGAD", "Tiny_Image", "resnet18"): {"alp_beta": 15.0},
        ("DGAD", "CIFAR100", "mobilenetV2"): {"lr_max": 0.05, "distill_weight": 0.5},
        ("RSLAD", "CIFAR10", "resnet18"): {"epochs": 300, "weight_decay": 2e-4},
        ("ARD", "CIFAR100", "resnet18"): {"bs": 256},
        ("GKL", "CIFAR10", "resnet18"): {"lr_max": 0.2, "lr_schedule": "cosine", "epsilon_ramp": 200},
        ("TRADES", "Digits", "small_resnet"): {"epsilon": pytest.approx(0.031 * 255)},
    }.items():
        values = recipe(method, dataset, model)
        assert {key: values[key] for key in expected} == expected
    # The first epochs with a lower rate, from 1.
    for (method, dataset), epochs in {
        **dict.fromkeys([("RSLAD", "CIFAR10"), ("MTARD", "CIFAR100"), ("B-MTARD", "CIFAR10")], (216, 261, 286)),
        **dict.fromkeys([("DGAD", "Tiny_Image"), ("IGDM", "CIFAR10"), ("ADR", "CIFAR10")], (101, 151)),
        ("TRADES", "CIFAR10"): (75,),
        ("MART", "CIFAR10"): (75, 90, 100),
        ("PeerAiD", "CIFAR10"): (215, 260, 285),
        ("PeerAiD", "Tiny_Image"): (100, 150),
        ("ADR", "Tiny_Image"): (41, 61),
    }.items():
        assert recipe(method, dataset, "resnet18")["milestones"] == tuple(epoch - 1 for epoch in epochs)
