"""The fast path against the plain reference of the benchmarks: the same images, losses and gradients."""

import shutil
from copy import deepcopy

import pytest
import torch
from tiny import TinyNet, tiny_problem, trained_on_stripes

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian, pgd
from data import Split
from data.loader import Batches
from engine.accuracy import evaluate
from engine.fast.frozen import FoldedModel
from engine.fast.precision import PLAIN, Arithmetic, choose_arithmetic
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from methods.losses import kl
from models import build
from scripts.benchmark import plain
from utils.config import TrainConfig
from utils.errors import UserError

OBJECTIVES = {
    "CE": lambda s, t, x, y: lambda z: cross_entropy(s(z), y),
    "AdaAD": lambda s, t, x, y: lambda z: kl(t(z), s(z)),
    "RSLAD": lambda s, t, x, y: lambda z: kl(t(x).detach(), s(z)),
    "TRADES": lambda s, t, x, y: lambda z: kl(s(x).detach(), s(z)),
}
EPSILON = 8 / 255
FAST = Arithmetic(channels_last=True)
BF16 = Arithmetic(torch.bfloat16, channels_last=True)


HOT = ("ARD", "AdaIAD")  # at temperature 30 all probabilities are nearly equal: their differences lose a digit


def trainer_of(kind, name, student, teachers, **options):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    ball = {"epsilon": EPSILON, "step_size": 2 / 255, "steps": 10}
    count = 0 if name in WITHOUT_TEACHER else 2 if name in WITH_TWO_TEACHERS else 1
    trainer = kind(student, teachers[:count], METHODS[name](TrainConfig()), optimizer, **ball, **options)
    attack = trainer.attack

    def noting(*args, **kwargs):
        trainer.x_adv = attack(*args, **kwargs)
        return trainer.x_adv

    trainer.attack = noting
    return trainer


def step(trainer, x, y, k):
    """One step with the draws of step ``k``; returns the adversarial images and the gradients of the weights."""
    torch.manual_seed(k)
    trainer.x_adv = x
    trainer.step(x, y, 100)
    return trainer.x_adv, [parameter.grad.clone() for parameter in trainer.student.parameters()]


def twenty_steps(name, dtype, networks, x):
    """Yield, for each step, what the reference and the fast path make of the same weights."""
    torch.manual_seed(0)
    student, *teachers = (network.to(dtype) for network in networks)
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    y = teachers[0](x).argmax(1)
    y[::3] = (y[::3] + 1) % 10
    reference = trainer_of(plain.Trainer, name, deepcopy(student), teachers)
    ours = trainer_of(Trainer, name, deepcopy(student), teachers, arithmetic=FAST)
    for k in range(20):
        ours.student.load_state_dict(reference.student.state_dict())  # or rounding would grow from step to step
        yield step(reference, x, y, k), step(ours, x, y, k), (reference.student, ours.student)


def networks_of(make):
    torch.manual_seed(0)
    return [make() for _ in range(3)]


@pytest.mark.parametrize("name", METHODS)
def test_in_float64_twenty_steps_of_every_method_are_the_references(name):
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for (x_adv, gradients), (ours, our_gradients), (student, our_student) in twenty_steps(
        name, torch.float64, networks_of(TinyNet), x
    ):
        assert torch.equal(ours, x_adv)
        # Sums in another order; float64 rounds at 1e-16, some twenty layers and passes grow it.
        torch.testing.assert_close(our_gradients, gradients, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(our_student.state_dict(), student.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_in_float32_twenty_steps_of_every_method_are_the_references_to_rounding(name):
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    differing, pixels = 0, 0
    for (x_adv, gradients), (ours, our_gradients), _ in twenty_steps(name, torch.float32, networks_of(TinyNet), x):
        apart = (ours - x_adv).abs() > 1e-6
        differing, pixels = differing + int(apart.sum()), pixels + x.numel()
        if not apart.any():  # images that differ have gradients that differ
            gradient, ours = (torch.cat([g.flatten() for g in values]) for values in (gradients, our_gradients))
            assert (ours - gradient).norm() <= (3e-5 if name in HOT else 1e-5) * gradient.norm()
    # A pixel whose gradient is within rounding of zero may step the other way.
    assert differing < 1e-3 * pixels


@pytest.mark.parametrize("name", ["DGAD", "TRADES", "IAD-II"])
def test_a_residual_network_too(name):
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    networks = networks_of(lambda: build("small_resnet", 10, 16))
    for (x_adv, _), (ours, _), (student, our_student) in twenty_steps(name, torch.float64, networks, x):
        assert torch.equal(ours, x_adv)
        torch.testing.assert_close(our_student.state_dict(), student.state_dict(), rtol=1e-9, atol=1e-12)


# bfloat16.


@pytest.fixture(scope="module")
def trained():
    """A trained student and a teacher, images, labels."""
    student, x, y = trained_on_stripes()
    teacher, _, _ = trained_on_stripes(seed=1)
    return student, teacher, x, y


def reached(trained, name, arithmetic, seed=0):
    """Adversarial images of a training attack through views, and the mean objective there in float32."""
    student, teacher, x, y = trained
    objective, noise = OBJECTIVES[name], gaussian(x, EPSILON, torch.Generator().manual_seed(seed))
    views = [FoldedModel(network, arithmetic) for network in (student, teacher)]
    x_adv = pgd(objective(*views, x, y), x, x + noise, epsilon=EPSILON, step_size=2 / 255, steps=10)
    return x_adv, float(objective(student, teacher, x, y)(x_adv).mean())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_attack_in_bfloat16_reaches_what_one_in_float32_reaches(trained, name):
    student, _, _, y = trained
    x_plain, plainly = reached(trained, name, PLAIN)
    x_bf16, in_bf16 = reached(trained, name, BF16)
    if name == "TRADES":  # starts at the minimum of its objective, where chance decides the way
        seeds = [reached(trained, name, PLAIN, seed)[1] for seed in range(5)]
        assert abs(in_bf16 - plainly) <= max(seeds) - min(seeds) + 0.005 * plainly
        return
    assert in_bf16 == pytest.approx(plainly, rel=0.005)
    robust = [int((student(x_adv).argmax(1) == y).sum()) for x_adv in (x_plain, x_bf16)]
    assert abs(robust[0] - robust[1]) <= 2 * len(y) // 200


def test_in_bfloat16_weights_losses_and_logits_stay_float32():
    student, teacher, x, y = tiny_problem(dtype=torch.float32)
    seen = []

    def method(s, t, attack, x, y, epoch):
        seen.extend([s(x), t(x)])
        return METHODS["DGAD"](TrainConfig())(s, t, attack, x, y, epoch)

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = Trainer(
        student, [teacher], method, optimizer, epsilon=EPSILON, step_size=2 / 255, steps=2, arithmetic=BF16
    )
    before = student.conv1.weight.clone()
    outcome = trainer.step(x, y)
    assert {z.dtype for z in seen} == {outcome.loss.dtype} == {student.conv1.weight.dtype} == {torch.float32}
    assert not torch.equal(student.conv1.weight, before)
    assert seen[0].detach().bfloat16().float().sub(seen[0].detach()).abs().max() == 0  # computed in bfloat16


# Judging an epoch.


def test_an_epochs_figures_count_what_pgd10_finds_at_any_step():
    net, x, y = trained_on_stripes()
    batches = Batches(Split((255 * x).round().byte(), y), 128, device="cpu")
    clean, robust = Validator(net, batches, EPSILON, seed=1)()
    assert clean == pytest.approx(evaluate(net, batches))
    generator = torch.Generator().manual_seed(1)
    noise = [2 * torch.rand(z.shape, generator=generator) - 1 for z, _ in batches]
    expected = plain.pgd_accuracy(net, batches, noise=noise, epsilon=EPSILON, step_size=EPSILON / 4, steps=10)
    # The view's float32 sums come in another order: an image on the border may fall to the other side.
    assert robust.accuracy == pytest.approx(expected, abs=100 / len(y))
    assert 20 < robust.accuracy < clean.accuracy and robust.loss > clean.loss
    assert Validator(net, batches, EPSILON, seed=1)() == (clean, robust)


# Choosing.


def test_flags_choose_the_arithmetic():
    cpu = torch.device("cpu")
    assert choose_arithmetic("fp32", "auto", cpu) == (
        Arithmetic(None, True, False),
        "precision fp32, compile off, channels-last",
    )
    assert choose_arithmetic("bf16", "on", cpu)[0] == Arithmetic(torch.bfloat16, True, True)
    with pytest.raises(UserError, match="--precision tf32"):
        choose_arithmetic("tf32", "auto", cpu)


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_where_the_device_multiplies_it(monkeypatch, native):
    monkeypatch.setattr("engine.fast.precision._native_bf16", lambda device: native)
    chosen, words = choose_arithmetic("auto", "auto", torch.device("cpu"))
    assert chosen.dtype == (torch.bfloat16 if native else None)
    assert words.startswith("precision bf16 (the device" if native else "precision fp32 (no bfloat16")


@pytest.mark.parametrize(
    ("capability", "triton", "compiler", "expected"),
    [
        ((9, 0), True, True, "compile on"),
        ((6, 1), True, True, "compile off (a GPU before compute capability 7)"),
        ((9, 0), False, True, "compile off (no Triton)"),
        ((9, 0), True, False, "compile off (no C compiler)"),
    ],
)
def test_auto_compiles_on_a_gpu_that_can_and_says_what_another_lacks(
    monkeypatch, capability, triton, compiler, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("engine.fast.precision.find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr("engine.fast.precision.shutil.which", lambda name: name if compiler else None)
    chosen, words = choose_arithmetic("fp32", "auto", torch.device("cuda"))
    assert chosen.compiled is (expected == "compile on") and f", {expected}," in words
    assert choose_arithmetic("fp32", "on", torch.device("cuda"))[0].compiled


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_view_is_the_same_function_and_follows_the_network():
    net, x, _ = trained_on_stripes(n=20)
    view = FoldedModel(net, Arithmetic(compiled=True))
    for batch in (x[:8], x[:8], x[8:13]):  # the last of another shape
        batch = batch.clone().requires_grad_()
        torch.testing.assert_close(view(batch), net(batch), rtol=1e-4, atol=1e-4)
        gradients = [torch.autograd.grad(network(batch).square().sum(), batch)[0] for network in (view, net)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        net.linear.bias.add_(1)
    view.refresh()
    torch.testing.assert_close(view(x[:8]), net(x[:8]), rtol=1e-4, atol=1e-4)
