"""Each loss equals the official code, or the paper where the official code is wrong."""

from dataclasses import fields
from itertools import product

import pytest
import torch
from conftest import golden_arrays, golden_rows

from methods import METHODS
from methods.adaad import adaad_loss, adaiad_loss
from methods.akd2 import akd2_loss
from methods.ard import ard_loss
from methods.at import at_loss
from methods.dgad import dgad_loss
from methods.iad import iad1_loss, iad2_loss
from methods.losses import kl, swap
from methods.mart import mart_loss
from methods.recipes import RECIPES, recipe
from methods.rslad import rslad_loss
from methods.trades import trades_loss
from utils.config import TrainConfig

# The order of summation differs: a few machine epsilons of float64.
TOLERANCE = 1e-12


def introspects(row):
    return row["hp"]["epoch"] >= row["hp"].get("begin", row["hp"].get("IAD_begin"))


ARD = {"alpha": "alpha", "temp": "temp"}
IAD = {"beta": "beta", "temp": "temp", "introspect": introspects}
TWO_TEACHERS = {"robust_weight": "alpha1", "std_weight": "alpha2", "temp": "temp"}
DGAD = (
    dgad_loss,
    "s_clean s_adv t_clean t_adv targets",
    {"alp_beta": "ALP_beta", "use_pcr": lambda row: row["hp"]["alp"] == "on"},
)
# Recorded method -> our loss, its arrays, and its options: a hyperparameter, a function of the row, or a number.
LOSSES = {
    "AT": (at_loss, "s_adv targets", {}),
    "AT_iad_pretrain": (at_loss, "s_adv targets", {}),
    "TRADES": (trades_loss, "s_clean s_adv targets", {"beta": "beta"}),
    "TRADES_dgad_tiny": (trades_loss, "s_clean s_adv targets", {"beta": "trades_beta"}),
    "RSLAD": (rslad_loss, "s_clean s_adv t_clean", {"kl_weight": 0.1}),
    "AdaAD": (
        adaad_loss,
        "s_clean s_adv t_clean t_adv",
        {"alpha": "AdaAD_alpha", "kl_weight": lambda row: 0.1 if row["hp"]["dataset"] == "CIFAR10" else 1.0},
    ),
    "DGAD": DGAD,
    "DGAD_IAD": DGAD,  # officially the same value: its introspection compares the student with itself (bug D6)
    "ARD_goldblum": (ard_loss, "s_clean s_adv t_clean targets", ARD | {"kl_weight": lambda row: 1 / row["C"]}),
    "ARD_iad": (ard_loss, "s_clean s_adv t_clean targets", ARD | {"kl_weight": 1.0}),
    "AKD2_iad": (akd2_loss, "s_adv t_adv t_st_adv targets", TWO_TEACHERS),
    "IAD-I": (iad1_loss, "s_clean s_adv t_clean t_adv targets", IAD | {"alpha": "alpha"}),
    "IAD-II": (iad2_loss, "s_clean s_adv t_adv t_st_adv targets", IAD | TWO_TEACHERS),
    "AdaAD_IAD": (adaiad_loss, "s_clean s_adv t_adv targets", IAD | {"alpha": "IAD_alpha", "beta": "IAD_beta"}),
}


def recorded(dtype):
    rows = [row for row in golden_rows(dtype=dtype) if row.get("method") in LOSSES]
    return [pytest.param(row, id=f"{row['method']}-{row['key']}-{row['scenario']}") for row in rows]


def value_and_gradients(row):
    arrays, hp = golden_arrays(row), row["hp"]
    for name in ("s_clean", "s_adv"):
        arrays[name].requires_grad_()
    loss, names, options = LOSSES[row["method"]]
    options = {k: hp[v] if isinstance(v, str) else v(row) if callable(v) else v for k, v in options.items()}
    value = loss(*(arrays[name] for name in names.split()), **options)
    value.backward()
    zero = torch.zeros_like(arrays["s_clean"])
    return arrays, value.detach(), [zero if (g := arrays[name].grad) is None else g for name in ("s_clean", "s_adv")]


def deviates(row):
    """Whether the official code is wrong for this row (docs/differences.md); tests/test_steps.py has the paper's."""
    hp = row["hp"]
    partial = row["N"] < hp.get("bs", 0)  # divides by --bs although the batch is smaller (bugs D3, D28)
    product = hp.get("model") == "mobilenetV2"  # multiplies the two terms (bug D4)
    return row["status"] == "raises" or partial or product


@pytest.mark.recorded
@pytest.mark.parametrize("row", [param for param in recorded("float64") if not deviates(param.values[0])])
def test_loss_and_gradients_equal_the_official_code(row):
    arrays, value, (grad_clean, grad_adv) = value_and_gradients(row)
    expected = value.item()
    if row["method"] == "RSLAD":  # its log(q + 1e-5) shifts the value by a constant in the student
        q = arrays["t_clean"].softmax(1)
        expected += 0.1 * (q * ((q + 1e-5).log() - q.clamp(min=1e-300).log())).sum(1).mean().item()
    if row["method"].startswith("DGAD"):
        difference, gradient = difference_of_official_dgad(arrays)
        expected, grad_clean = expected - difference.item(), grad_clean - gradient
    assert arrays["loss"].item() == pytest.approx(expected, rel=TOLERANCE)
    for ours, theirs in ((grad_clean, arrays["g_s_clean"]), (grad_adv, arrays["g_s_adv"])):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * theirs.abs().max().item())


def difference_of_official_dgad(arrays):
    """Ours minus the official value, and its gradient: the official mean over k images divides by k + 1e-10."""
    clean = arrays["s_clean"].detach().requires_grad_()
    wrong = arrays["t_clean"].argmax(1) != arrays["targets"]
    distillation = (wrong * kl(swap(arrays["t_clean"], arrays["targets"]), clean)).mean()
    difference = 1e-10 / (wrong.sum() + 1e-10) * distillation
    return difference.detach(), torch.autograd.grad(difference, clean)[0]


@pytest.mark.parametrize("row", recorded("float32"))
def test_value_and_gradients_are_finite_in_single_precision(row):
    _, value, gradients = value_and_gradients(row)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_swap_exchanges_the_label_with_the_first_of_the_largest_other_logits():
    correct, wrong, tie, other_tie = [3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [3.0, 1.0, 3.0], [1.0, 3.0, 3.0]
    swapped = swap(torch.tensor([correct, wrong, tie, other_tie]), torch.tensor([0, 0, 2, 0]))
    assert swapped.tolist() == [correct, [3.0, 1.0, 2.0], tie, [3.0, 1.0, 3.0]]


def test_mart_is_finite_for_a_confident_wrong_prediction():
    s = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    loss = mart_loss(s, s, torch.tensor([0]), beta=5.0)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


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
        ("TRADES", "Digits", "small_resnet"): {"epsilon": pytest.approx(0.031 * 255)},
    }.items():
        values = recipe(method, dataset, model)
        assert {key: values[key] for key in expected} == expected
