"""Training and validation on the fast path against the plain reference: the same images, losses and gradients."""

import gc
import shutil
import weakref
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from tiny import make_trainer, tiny_problem, trained_on_stripes

from attacks.objectives import cross_entropy
from attacks.pgd import gaussian, pgd
from data import Split
from data.loader import Batches
from engine.fast.frozen import FoldedModel
from engine.fast.precision import PLAIN, Arithmetic, choose_arithmetic
from engine.training.trainer import Trainer
from engine.training.validation import Validator
from methods import METHODS
from methods.losses import kl
from models import build
from scripts.benchmark import plain
from utils.config import TrainConfig
from utils.errors import UserError

EPSILON = 8 / 255
BALL = {"epsilon": EPSILON, "step_size": 2 / 255, "steps": 10}
BF16 = Arithmetic(torch.bfloat16, channels_last=True)
CPU = torch.device("cpu")
OBJECTIVES = {
    "CE": lambda s, t, x, y: lambda z: cross_entropy(s(z), y),
    "AdaAD": lambda s, t, x, y: lambda z: kl(t(z), s(z)),
    "RSLAD": lambda s, t, x, y: lambda z: kl(t(x).detach(), s(z)),
    "TRADES": lambda s, t, x, y: lambda z: kl(s(x).detach(), s(z)),
}


@pytest.mark.parametrize("name", ["DGAD", "TRADES", "IAD-II"])
def test_a_step_of_a_residual_network_equals_that_of_the_plain_loop(name):
    student, *teachers = (build("small_resnet", 10, 16).double() for _ in range(3))
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    x = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    y = (teachers[0](x).argmax(1) + torch.tensor([1, 0, 0, 1, 0, 0])) % 10
    students = student, deepcopy(student)
    for kind, each, options in (
        (plain.Trainer, students[0], {}),
        (Trainer, students[1], {"arithmetic": Arithmetic(channels_last=True)}),
    ):
        torch.manual_seed(1)
        make_trainer(name, each, teachers, kind=kind, **options).step(x, y, 100)
    # Sums in another order; float64 rounds at 1e-16, which grows in some twenty layers and passes.
    torch.testing.assert_close(*(each.state_dict() for each in students), rtol=1e-9, atol=1e-12)
    gradients = ([parameter.grad for parameter in each.parameters()] for each in students)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def trained():
    """A trained student and a teacher, images, labels."""
    student, x, y = trained_on_stripes()
    return student, trained_on_stripes(seed=1)[0], x, y


def attack(trained, name, arithmetic, seed=0):
    """Return adversarial images of a training attack and the mean objective there in float32."""
    student, teacher, x, y = trained
    objective, noise = OBJECTIVES[name], gaussian(x, EPSILON, torch.Generator().manual_seed(seed))
    x_adv = pgd(objective(*(FoldedModel(net, arithmetic) for net in trained[:2]), x, y), x, x + noise, **BALL)
    return x_adv, float(objective(student, teacher, x, y)(x_adv).mean())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_attack_in_bfloat16_is_as_strong_as_in_float32(trained, name):
    student, _, _, y = trained
    x_float32, in_float32 = attack(trained, name, PLAIN)
    x_bf16, in_bf16 = attack(trained, name, BF16)
    if name == "TRADES":  # starts at the minimum of its objective: the noise decides the direction
        seeds = [attack(trained, name, PLAIN, seed)[1] for seed in range(5)]
        assert abs(in_bf16 - in_float32) <= max(seeds) - min(seeds) + 0.005 * in_float32
        return
    assert in_bf16 == pytest.approx(in_float32, rel=0.005)
    robust = [int((student(x_adv).argmax(1) == y).sum()) for x_adv in (x_float32, x_bf16)]
    assert abs(robust[0] - robust[1]) <= 2 * len(y) // 200


def test_in_bfloat16_weights_losses_and_logits_stay_float32():
    student, teacher, x, y = tiny_problem(dtype=torch.float32)
    logits = []

    def method(s, t, attack, x, y, epoch):
        logits.extend([s(x), t(x)])
        return METHODS["DGAD"](TrainConfig())(s, t, attack, x, y, epoch)

    before = student.conv1.weight.clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    outcome = Trainer(student, [teacher], method, optimizer, **BALL, arithmetic=BF16).step(x, y)
    assert {z.dtype for z in logits} == {outcome.loss.dtype} == {student.conv1.weight.dtype} == {torch.float32}
    assert not torch.equal(student.conv1.weight, before)
    assert torch.equal(logits[0].detach().bfloat16().float(), logits[0].detach())  # computed in bfloat16


@pytest.mark.parametrize("winograd", [False, True])
def test_training_keeps_no_teacher_besides_its_folded_model(winograd):
    student, teacher = build("vgg16", 10), build("vgg16", 10).eval().requires_grad_(False)
    references = [weakref.ref(module) for module in teacher.modules()]
    optimizer, arithmetic = torch.optim.SGD(student.parameters(), lr=0.1), Arithmetic(None, True, winograd=winograd)
    trainer = Trainer(student, [teacher], METHODS["RSLAD"](TrainConfig()), optimizer, **BALL, arithmetic=arithmetic)
    del teacher
    gc.collect()
    assert not any(reference() for reference in references)
    trainer.step(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))


def plain_robust_accuracy(net, batches, noise):
    """Accuracy in % under PGD-10 with every step on every image; one that is misclassified at any step is fooled."""
    robust = []
    for (x, y), start in zip(batches, noise, strict=True):
        x_adv, correct = (x + EPSILON * start).clamp(0, 1), [net(x).argmax(1) == y]
        for _ in range(10):
            logits = net(x_adv.requires_grad_())
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x_adv)
            x_adv = x_adv.detach() + EPSILON / 4 * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
            correct.append(logits.argmax(1) == y)
        robust.append(torch.stack([*correct, net(x_adv).argmax(1) == y]).all(0))
    return 100 * torch.cat(robust).float().mean().item()


def test_validation_counts_images_that_pgd10_misclassifies_at_any_step():
    net, x, y = trained_on_stripes()
    batches = Batches(Split((255 * x).round().byte(), y), 128, device="cpu")
    before = deepcopy(net.state_dict())
    clean, robust = Validator(net.train(), batches, EPSILON, seed=1)()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert clean.accuracy == pytest.approx(100 * float((net.eval()(x).argmax(1) == y).float().mean()), abs=100 / len(y))
    generator = torch.Generator().manual_seed(1)
    noise = [2 * torch.rand(z.shape, generator=generator) - 1 for z, _ in batches]
    expected = plain_robust_accuracy(net, batches, noise)
    # The folded model sums in another order: one image near the decision boundary may be classified differently.
    assert robust.accuracy == pytest.approx(expected, abs=100 / len(y))
    assert 20 < robust.accuracy < clean.accuracy and robust.loss > clean.loss
    in_bf16 = Validator(net, batches, EPSILON, seed=1, arithmetic=BF16)()
    assert in_bf16[0] == clean  # without attack: the float32 network
    assert in_bf16[1].accuracy == pytest.approx(robust.accuracy, abs=200 / len(y))


@pytest.mark.parametrize(
    ("precision", "compile", "cpu", "expected", "line"),
    [
        ("fp32", "auto", {"avx512_bf16"}, Arithmetic(None, True), "fp32, compile off"),
        ("auto", "auto", set(), Arithmetic(None, True), "fp32 (no native bfloat16 on this device), compile off"),
        ("auto", "off", {"amx_bf16"}, BF16, "bf16 (native on this device), compile off"),  # AMX is faster than Winograd
        ("bf16", "auto", set(), BF16._replace(winograd=True), "bf16, compile off"),
        ("bf16", "on", {"avx512_bf16"}, BF16._replace(compiled=True), "bf16, compile on"),
    ],
)
def test_flags_choose_the_arithmetic_on_a_cpu(monkeypatch, precision, compile, cpu, expected, line):
    monkeypatch.setattr("engine.fast.precision._cpu_flags", lambda: cpu)
    arithmetic, description = choose_arithmetic(precision, compile, CPU)
    assert arithmetic == expected
    assert description == f"precision {line}, channels-last" + ", Winograd" * expected.winograd


def test_flags_that_need_a_gpu_are_refused_on_a_cpu():
    for precision, compile, flag in (("tf32", "auto", "--precision tf32"), ("fp32", "graphs", "--compile graphs")):
        with pytest.raises(UserError, match=f"^{flag}: requires a GPU"):
            choose_arithmetic(precision, compile, CPU)


@pytest.mark.parametrize(
    ("capability", "triton", "compiler", "expected"),
    [
        ((9, 0), True, True, "compile graphs"),
        ((6, 1), True, True, "compile graphs (without torch.compile: compute capability below 7)"),
        ((9, 0), False, True, "compile graphs (without torch.compile: no Triton)"),
        ((9, 0), True, False, "compile graphs (without torch.compile: no C compiler)"),
    ],
)
def test_flags_choose_the_arithmetic_on_a_gpu(monkeypatch, capability, triton, compiler, expected):
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("engine.fast.precision.find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr("engine.fast.precision.shutil.which", lambda name: name if compiler else None)
    cuda = torch.device("cuda")
    for compile in ("auto", "graphs"):
        chosen, description = choose_arithmetic("tf32", compile, cuda)
        assert chosen.graphs and f", {expected}," in description
        assert chosen.compiled is (expected == "compile graphs")
    chosen, _ = choose_arithmetic("tf32", "on", cuda)
    assert chosen.compiled and not chosen.graphs
    assert all(switch.allow_tf32 for switch in switches) and torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    choose_arithmetic("fp32", "off", cuda)
    assert not any(switch.allow_tf32 for switch in switches) and not torch.backends.cudnn.benchmark


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_compiled_model_is_the_same_function_and_follows_the_network():
    net, x, _ = trained_on_stripes(n=20)
    folded = FoldedModel(net, Arithmetic(compiled=True))
    for batch in (x[:8], x[:8], x[8:13]):  # the last has another shape
        batch = batch.clone().requires_grad_()
        torch.testing.assert_close(folded(batch), net(batch), rtol=1e-4, atol=1e-4)
        gradients = [torch.autograd.grad(network(batch).square().sum(), batch)[0] for network in (folded, net)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        net.linear.bias.add_(1)
    folded.refresh()
    torch.testing.assert_close(folded(x[:8]), net(x[:8]), rtol=1e-4, atol=1e-4)
