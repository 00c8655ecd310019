"""Every loss equals the official code where that is right, and the paper where it is not."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
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

# Official losses and ours sum the same terms in another order: a few machine epsilons of float64.
TOLERANCE = 1e-12


def adaad_of(a, hp):
    scale = 0.1 if hp["dataset"] == "CIFAR10" else 1.0
    return adaad_loss(a["s_clean"], a["s_adv"], a["t_clean"], a["t_adv"], alpha=hp["AdaAD_alpha"], kl_weight=scale)


def dgad_of(a, hp):
    switches = {"alp_beta": hp["ALP_beta"], "use_pcr": hp["alp"] == "on"}
    return dgad_loss(a["s_clean"], a["s_adv"], a["t_clean"], a["t_adv"], a["targets"], **switches)


def ard_of(weight):
    def loss(a, hp):
        scale = 1 / a["s_adv"].shape[1] if weight is None else weight
        options = {"alpha": hp["alpha"], "temp": hp["temp"], "kl_weight": scale}
        return ard_loss(a["s_clean"], a["s_adv"], a["t_clean"], a["targets"], **options)

    return loss


def two_teachers(a, hp, loss, *first, **options):
    weights = {"robust_weight": hp["alpha1"], "std_weight": hp["alpha2"], "temp": hp["temp"]}
    return loss(*first, a["s_adv"], a["t_adv"], a["t_st_adv"], a["targets"], **weights, **options)


def iad1_of(a, hp):
    options = {"alpha": hp["alpha"], "beta": hp["beta"], "temp": hp["temp"], "introspect": hp["epoch"] >= hp["begin"]}
    return iad1_loss(a["s_clean"], a["s_adv"], a["t_clean"], a["t_adv"], a["targets"], **options)


def iad2_of(a, hp):
    options = {"beta": hp["beta"], "introspect": hp["epoch"] >= hp["begin"]}
    return two_teachers(a, hp, iad2_loss, a["s_clean"], **options)


def adaiad_of(a, hp):
    options = {"alpha": hp["IAD_alpha"], "beta": hp["IAD_beta"], "temp": hp["temp"]}
    introspect = hp["epoch"] >= hp["IAD_begin"]
    return adaiad_loss(a["s_clean"], a["s_adv"], a["t_adv"], a["targets"], **options, introspect=introspect)


# Method of the recordings -> our loss on their arrays and hyper-parameters.
LOSSES = {
    "AT": lambda a, hp: at_loss(a["s_adv"], a["targets"]),
    "AT_iad_pretrain": lambda a, hp: at_loss(a["s_adv"], a["targets"]),
    "TRADES": lambda a, hp: trades_loss(a["s_clean"], a["s_adv"], a["targets"], beta=hp["beta"]),
    "TRADES_dgad_tiny": lambda a, hp: trades_loss(a["s_clean"], a["s_adv"], a["targets"], beta=hp["trades_beta"]),
    "RSLAD": lambda a, hp: rslad_loss(a["s_clean"], a["s_adv"], a["t_clean"], kl_weight=0.1),
    "AdaAD": adaad_of,
    "DGAD": dgad_of,
    "DGAD_IAD": dgad_of,  # officially the same value: its introspection compares the student with itself (bug D6)
    "ARD_goldblum": ard_of(None),
    "ARD_iad": ard_of(1.0),
    "AKD2_iad": lambda a, hp: two_teachers(a, hp, akd2_loss),
    "IAD-I": iad1_of,
    "IAD-II": iad2_of,
    "AdaAD_IAD": adaiad_of,
}


def recorded(dtype):
    rows = [row for row in golden_rows(dtype=dtype) if row.get("method") in LOSSES]
    return [pytest.param(row, id=f"{row['method']}-{row['key']}-{row['scenario']}") for row in rows]


def value_and_gradients(row, loss):
    arrays = golden_arrays(row)
    for name in ("s_clean", "s_adv"):
        arrays[name].requires_grad_()
    value = loss(arrays, row["hp"])
    value.backward()
    zero = torch.zeros_like(arrays["s_clean"])
    return arrays, value.detach(), [zero if (g := arrays[name].grad) is None else g for name in ("s_clean", "s_adv")]


def deviates(row):
    """Rows where the official code is wrong by our table of differences: we follow the paper there."""
    hp = row["hp"]
    partial = row["N"] < hp.get("bs", 0)  # divides by --bs what it averages over fewer images (bugs D3, D28)
    product = hp.get("model") == "mobilenetV2"  # multiplies the two terms (bug D4)
    return row["status"] == "raises" or partial or product


@pytest.mark.recorded
@pytest.mark.parametrize("row", [param for param in recorded("float64") if not deviates(param.values[0])])
def test_loss_and_gradients_equal_the_official_code(row):
    arrays, value, (of_clean, of_adv) = value_and_gradients(row, LOSSES[row["method"]])
    expected, expected_of_clean = value.item(), of_clean
    if row["method"] == "RSLAD":  # its log(q + 1e-5) shifts the value by a constant in the student
        q = arrays["t_clean"].softmax(1)
        expected += 0.1 * (q * ((q + 1e-5).log() - q.clamp(min=1e-300).log())).sum(1).mean().item()
    if row["method"].startswith("DGAD"):
        missing, gradient = missing_of_official_dgad(arrays)
        expected, expected_of_clean = expected - missing.item(), of_clean - gradient
    assert arrays["loss"].item() == pytest.approx(expected, rel=TOLERANCE)
    for ours, theirs in ((expected_of_clean, arrays["g_s_clean"]), (of_adv, arrays["g_s_adv"])):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * theirs.abs().max().item())


def missing_of_official_dgad(arrays):
    """What the official clean-guided term lacks, and its gradient: the mean over k images has the divisor k + 1e-10."""
    clean = arrays["s_clean"].detach().requires_grad_()
    wrong = arrays["t_clean"].argmax(1) != arrays["targets"]
    guided = (wrong * kl(swap(arrays["t_clean"], arrays["targets"]), clean)).mean()
    missing = 1e-10 / (wrong.sum() + 1e-10) * guided
    return missing.detach(), torch.autograd.grad(missing, clean)[0]


@pytest.mark.parametrize("row", recorded("float32"))
def test_value_and_gradients_are_finite_in_single_precision(row):
    _, value, gradients = value_and_gradients(row, LOSSES[row["method"]])
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.recorded
@pytest.mark.parametrize("row", [param for param in recorded("float64") if deviates(param.values[0])])
def test_where_the_official_code_is_wrong_ours_follows_the_paper(row):
    arrays, value, _ = value_and_gradients(row, LOSSES[row["method"]])
    if not row["method"].startswith("DGAD"):
        clean, adv, y = arrays["s_clean"], arrays["s_adv"], arrays["targets"]
        expected = F.cross_entropy(clean, y) + row["hp"]["trades_beta"] * plain_kl(clean, adv).mean()
    else:
        expected = plain_dgad(arrays, row["hp"]["ALP_beta"])
    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)


def plain_kl(a, b):
    p, q = a.softmax(1), b.softmax(1)
    return (torch.xlogy(p, p) - p * q.log()).sum(1)


def plain_dgad(arrays, beta):
    """The algorithm box image by image, with the division by the number of images really in the batch."""
    total = 0
    for s, s_adv, t, t_adv, y in zip(
        *(arrays[k] for k in ("s_clean", "s_adv", "t_clean", "t_adv")), arrays["targets"], strict=True
    ):
        guide, student = (t, s) if t.argmax() != y else (t_adv, s_adv)
        guide = guide.clone()
        rival = guide.clone()
        rival[y] = -torch.inf
        c = rival.argmax()
        if guide[y] < guide[c]:
            guide[y], guide[c] = guide[c].clone(), guide[y].clone()
        total = total + plain_kl(guide[None], student[None]).sum()
    pcr = ((arrays["s_adv"].softmax(1) - arrays["s_clean"].softmax(1)) ** 2).mean()
    return total / len(arrays["targets"]) + beta * pcr


def test_kl_by_hand():
    target = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64).log_softmax(1)
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25]], dtype=torch.float64).log()
    first = 0.5 * (torch.tensor(0.5).log() - torch.tensor(0.75).log()) + 0.5 * (
        torch.tensor(0.5).log() - torch.tensor(0.25).log()
    )
    assert kl(target, logits)[0].item() == pytest.approx(first.item(), rel=1e-6)
    assert kl(logits, logits).abs().max() < 1e-15
    torch.testing.assert_close(kl(target, logits, 4.0), kl(target / 4, logits / 4))


def test_kl_stays_finite_where_a_probability_underflows():
    target = torch.tensor([[0.0, 500.0]], requires_grad=True)
    logits = torch.tensor([[500.0, 0.0]], requires_grad=True)
    loss = kl(target, logits).sum()
    loss.backward()
    assert loss.item() == pytest.approx(500)
    assert target.grad.isfinite().all() and logits.grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([1.0, 3.0, 2.0], 0, [3.0, 1.0, 2.0]),  # wrong: the label takes the prediction's logit
        ([3.0, 1.0, 2.0], 0, [3.0, 1.0, 2.0]),  # right: untouched
        ([3.0, 1.0, 3.0], 2, [3.0, 1.0, 3.0]),  # a tie is left alone
        ([1.0, 3.0, 3.0], 0, [3.0, 1.0, 3.0]),  # two rivals tie: the first gives its logit
    ],
)
def test_swap(logits, label, expected):
    assert swap(torch.tensor([logits]), torch.tensor([label])).tolist() == [expected]


def dgad_case(n=4, c=5, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(n, c, dtype=torch.float64) for _ in range(4)], torch.randint(c, (n,))


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_dgad_with_a_teacher_right_or_wrong_on_all(right, n):
    (s, s_adv, t, t_adv), y = dgad_case(n)
    y = t.argmax(1) if right else t.argmin(1)
    guide, student = (t_adv, s_adv) if right else (t, s)
    expected = plain_kl(swap(guide, y), student).mean() + 5 * ((s_adv.softmax(1) - s.softmax(1)) ** 2).mean()
    torch.testing.assert_close(dgad_loss(s, s_adv, t, t_adv, y, alp_beta=5.0), expected)


def test_dgad_switches():
    (s, s_adv, t, t_adv), y = dgad_case(8)
    y[:4] = t[:4].argmax(1)
    wrong = t.argmax(1) != y
    assert wrong.any() and not wrong.all()
    pcr = ((s_adv.softmax(1) - s.softmax(1)) ** 2).mean()
    no_els = torch.where(wrong, plain_kl(t, s), plain_kl(t_adv, s_adv)).mean()
    cases = {
        (True, True, False): torch.where(wrong, plain_kl(swap(t, y), s), plain_kl(swap(t_adv, y), s_adv)).mean(),
        (False, True, False): plain_kl(swap(t_adv, y), s_adv).mean(),
        (True, False, False): no_els,
        (True, False, True): no_els + 2 * pcr,
        (False, False, False): plain_kl(t_adv, s_adv).mean(),
    }
    for (use_map, use_els, use_pcr), expected in cases.items():
        loss = dgad_loss(s, s_adv, t, t_adv, y, alp_beta=2.0, use_map=use_map, use_els=use_els, use_pcr=use_pcr)
        torch.testing.assert_close(loss, expected)
    half = dgad_loss(s, s_adv, t, t_adv, y, alp_beta=2.0, distill_weight=0.5, use_els=False)
    torch.testing.assert_close(half, 0.5 * no_els + 2 * pcr)


def test_dgad_iad_adds_introspection_where_the_teacher_classifies_the_clean_image_correctly():
    (s, s_adv, t, t_adv), y = dgad_case(8)
    y[:4] = t[:4].argmax(1)
    right = t.argmax(1) == y
    unreliable = 1 - swap(t_adv, y).softmax(1).gather(1, y[:, None]).squeeze(1) ** 0.1
    extra = (right * unreliable * plain_kl(s, s_adv)).mean()
    with_iad, without = (dgad_loss(s, s_adv, t, t_adv, y, alp_beta=2.0, introspect_beta=b) for b in (0.1, None))
    assert 0 < right.sum() < 8
    torch.testing.assert_close(with_iad - without, extra)


def test_introspection_reaches_clean_and_adversarial_logits_and_no_teacher():
    (s, s_adv, t, t_adv), y = dgad_case()
    for logits in (s, s_adv, t, t_adv):
        logits.requires_grad_()
    iad1_loss(s, s_adv, t.detach(), t_adv, y, alpha=1.0, beta=0.1, temp=1.0, introspect=True).backward()
    assert s.grad.abs().sum() > 0 and s_adv.grad.abs().sum() > 0 and t_adv.grad is None


def test_iad2_before_introspection_is_akd2_and_needs_no_clean_logits():
    (_, s_adv, t_adv, u_adv), y = dgad_case()
    weights = {"robust_weight": 0.5, "std_weight": 0.25, "temp": 2.0}
    torch.testing.assert_close(
        iad2_loss(None, s_adv, t_adv, u_adv, y, **weights, beta=0.1, introspect=False),
        akd2_loss(s_adv, t_adv, u_adv, y, **weights),
    )


def test_mart_by_its_equations():
    (s, s_adv, _, _), y = dgad_case(8)
    p, q = s.softmax(1), s_adv.softmax(1)
    index = torch.arange(8)
    rival = q.clone()
    rival[index, y] = 0
    bce = -q[index, y].log() - (1 - rival.amax(1)).log()
    expected = (bce + 5 * plain_kl(s, s_adv) * (1 - p[index, y])).mean()
    torch.testing.assert_close(mart_loss(s, s_adv, y, beta=5.0), expected)


def test_mart_stays_finite_where_the_network_is_certain_and_wrong():
    s = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    loss = mart_loss(s, s, torch.tensor([0]), beta=5.0)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


def test_recipes_name_known_settings():
    names = {spec.name for spec in fields(TrainConfig)}
    assert set(RECIPES) <= set(METHODS)
    for method in METHODS:
        for dataset in ("CIFAR10", "CIFAR100", "Tiny_Image", "Digits"):
            assert set(recipe(method, dataset, "mobilenetV2")) <= names


def test_recipes_of_the_papers():
    assert recipe("DGAD", "Tiny_Image", "resnet18")["alp_beta"] == 15.0
    assert recipe("DGAD", "CIFAR100", "mobilenetV2").items() >= {"lr_max": 0.05, "distill_weight": 0.5}.items()
    assert recipe("RSLAD", "CIFAR10", "resnet18").items() >= {"epochs": 300, "weight_decay": 2e-4}.items()
    assert recipe("ARD", "CIFAR100", "resnet18")["bs"] == 256
