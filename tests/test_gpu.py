"""On a CUDA device: the same step as on the CPU, a whole run, and an evaluation."""

import pytest
import torch
from commands import SMALL, run_here
from tiny import tiny_problem, trained_on_stripes

from engine.fast.frozen import FoldedModel
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.training.trainer import Trainer
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from models import build
from scripts.benchmark import plain
from utils.config import TrainConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def one_step(name, device):
    student, teacher, x, y = tiny_problem(n=8)
    student, teacher, x, y = student.to(device), teacher.to(device), x.to(device), y.to(device)
    teachers = [teacher] * (0 if name in WITHOUT_TEACHER else 2 if name in WITH_TWO_TEACHERS else 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}
    trainer = Trainer(student, teachers, METHODS[name](TrainConfig()), optimizer, **settings)
    outcome = trainer.step(x, y, start_noise=torch.full_like(x, 0.001))
    return outcome.loss.item(), {key: value.cpu() for key, value in student.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_equals_the_one_on_the_cpu(name):
    loss, state = one_step(name, "cuda")
    expected_loss, expected = one_step(name, "cpu")
    # float64: only the order of sums differs between the devices.
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_views_on_the_gpu_read_what_the_network_reads(precision, compile):
    net, x, y = trained_on_stripes()
    net, x, y = net.cuda(), x.cuda(), y.cuda()
    arithmetic, _ = choose_arithmetic(precision, compile, torch.device("cuda"))
    view = FoldedModel(net, arithmetic)
    for batch, labels in ((x[:400], y[:400]), (x[400:], y[400:])):  # the second of another shape, as a last batch
        assert (view(batch).argmax(1) == labels).float().mean() > 0.98
        images = batch.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(torch.nn.functional.cross_entropy(network(images), labels), images)[0].flatten()
            for network in (view, net)
        ]
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("name", METHODS)
def test_the_fast_step_trains_in_bfloat16(name):
    student, teacher, x, y = tiny_problem(n=16, dtype=torch.float32)
    teachers = [teacher.cuda()] * (0 if name in WITHOUT_TEACHER else 2 if name in WITH_TWO_TEACHERS else 1)
    student, x, y = student.cuda(), x.cuda(), y.cuda()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=True)
    arithmetic, _ = choose_arithmetic("bf16", "off", torch.device("cuda"))
    ball = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 2}
    trainer = Trainer(student, teachers, METHODS[name](TrainConfig()), optimizer, **ball, arithmetic=arithmetic)
    losses = [trainer.step(x, y).loss.item() for _ in range(30)]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_step_leaves_no_more_on_the_gpu_than_the_reference():
    peaks = {}
    for kind in (plain.Trainer, Trainer):
        torch.manual_seed(0)
        student, teacher = (build("resnet18", 10).cuda() for _ in range(2))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
        ball = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}
        options = {"arithmetic": Arithmetic(torch.bfloat16, channels_last=True)} if kind is Trainer else {}
        trainer = kind(
            student,
            [teacher.eval().requires_grad_(False)],
            METHODS["DGAD"](TrainConfig()),
            optimizer,
            **ball,
            **options,
        )
        x, y = torch.rand(128, 3, 32, 32, device="cuda"), torch.randint(10, (128,), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            trainer.step(x, y)
        peaks[kind] = torch.cuda.max_memory_allocated()
        del trainer, student, teacher, optimizer
        torch.cuda.empty_cache()
    assert peaks[Trainer] <= peaks[plain.Trainer]


def test_a_run_and_its_evaluation(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    ended = run_here(monkeypatch, capsys, "main.py", f"{SMALL} --method AT --epochs 2 --device cuda")
    assert ended.status == 0, ended.err
    assert "device cuda" in ended.out
    (path,) = tmp_path.rglob("best_PGD10_acc_model.pth")
    words = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 20 --device cuda"
    ended = run_here(monkeypatch, capsys, "main_eval.py", f"{words} --attacks clean,pgd,cw,aa --limit_aa 3")
    assert ended.status == 0, ended.err
    torch.load(path, weights_only=True, map_location="cpu")
