"""On a CUDA device: training in bfloat16, a run, and an evaluation; test_graphs.py compares a step with the CPU's."""

import pytest
import torch
import torch.nn.functional as F
from commands import SMALL, run_in_process
from tiny import NO_CUDA, make_trainer, tiny_problem, trained_on_stripes

from engine import evaluate
from engine.fast.frozen import FoldedModel, make_attack_model
from engine.fast.precision import choose_arithmetic
from methods import METHODS
from models import build

pytestmark = [pytest.mark.gpu, NO_CUDA]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_folded_models_classify_like_the_network(precision, compile):
    net, x, y = trained_on_stripes()
    net, x, y = net.cuda(), x.cuda(), y.cuda()
    arithmetic, _ = choose_arithmetic(precision, compile, torch.device("cuda"))
    folded = FoldedModel(net, arithmetic)
    for images, labels in ((x[:400], y[:400]), (x[400:], y[400:])):  # the second has another shape, as a last batch
        assert (folded(images).argmax(1) == labels).float().mean() > 0.98
        images = images.clone().requires_grad_()
        losses = (F.cross_entropy(network(images), labels) for network in (folded, net))
        gradients = [torch.autograd.grad(loss, images)[0].flatten() for loss in losses]
        assert F.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("compile", ["off", "graphs"])
@pytest.mark.parametrize("name", METHODS)
def test_training_in_bfloat16_reduces_the_loss_and_never_waits(name, compile, request):
    arithmetic, _ = choose_arithmetic("bf16", compile, torch.device("cuda"))
    arithmetic = arithmetic._replace(compiled=arithmetic.compiled and name == "DGAD")  # compiling takes seconds
    student, teacher, x, y = tiny_problem(n=16, dtype=torch.float32)
    teacher.linear.weight.mul_(20)  # SAAD gives no weight to images of which the teacher is equally uncertain
    student, teacher, x, y = student.cuda(), teacher.cuda(), x.cuda(), y.cuda()
    trainer = make_trainer(name, student, [teacher] * 2, arithmetic=arithmetic, steps=2)
    losses = [trainer.step(x, y).loss]  # captures
    request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
    torch.cuda.set_sync_debug_mode("error")
    losses += [trainer.step(x, y).loss for _ in range(29)]
    torch.cuda.set_sync_debug_mode("default")
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_python_api_evaluates_on_the_gpu():
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    model = build("small_resnet", 10, 16).cuda().eval()
    layouts = [make_attack_model(model, images.cuda(), precision).memory_format for precision in ("fp32", "tf32")]
    assert layouts == [torch.contiguous_format, torch.channels_last]
    assert evaluate(model, images, labels, attacks="clean,pgd", steps=2)["PGD-2"].n == 8


def test_a_run_and_its_evaluation(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = "--method AT --epochs 2 --device cuda --compile graphs"
    ended = run_in_process(monkeypatch, capsys, "main.py", f"{SMALL} {options}")
    assert ended.status == 0, ended.err
    assert "device cuda" in ended.out and "compile graphs" in ended.out
    (path,) = tmp_path.rglob("best_PGD10_acc_model.pth")
    options = f"--dataset Digits --image_size 16 --model small_resnet --model_path {path} --limit_test 20 --device cuda"
    ended = run_in_process(monkeypatch, capsys, "main_eval.py", f"{options} --attacks clean,pgd,cw,aa --limit_aa 3")
    assert ended.status == 0, ended.err
    torch.load(path, weights_only=True, map_location="cpu")
