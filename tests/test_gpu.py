"""On a CUDA device: the same step as on the CPU, the same attack as a graph, a run, and an evaluation."""

import pytest
import torch
import torch.nn.functional as F
from commands import SMALL, run_in_process
from tiny import make_trainer, tiny_problem, trained_on_stripes

from engine import evaluate
from engine.fast.frozen import FoldedModel, make_attack_model
from engine.fast.precision import Arithmetic, choose_arithmetic
from engine.training.averaging import Ema
from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS
from models import build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def trainer_of(name, device, dtype=torch.float64, *, pieces=False, **options):
    student, teacher, _, _ = tiny_problem(dtype=dtype)
    teacher.linear.weight.mul_(20)  # SAAD gives no weight to images of which the teacher is equally uncertain
    student = student.to(device)
    if pieces:
        options |= {"average": Ema(student, 0.9), "perturbation": WeightPerturbation(student, 0.01), "parts": 2}
    return make_trainer(name, student, [teacher.to(device)] * 2, **options)


def train(trainer, device, sizes):
    """Train on one batch of each size; return losses and the student's state on the CPU."""
    losses = []
    for seed, n in enumerate(sizes):
        _, _, x, y = tiny_problem(seed, n)
        x = x.to(device)
        losses.append(trainer.step(x, y.to(device), start_noise=torch.full_like(x, 0.001)).loss.item())
    return losses, {key: value.cpu() for key, value in trainer.network.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_equals_the_one_on_the_cpu(name):
    on_gpu, on_cpu = (train(trainer_of(name, device), device, (8,)) for device in ("cuda", "cpu"))
    # float64: only the order of sums differs between the devices.
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", ["AT", "TRADES", "RSLAD", "DGAD", "IAD-I"])
def test_training_with_cuda_graphs_equals_eager_training(name, pieces):
    graphed = trainer_of(name, "cuda", pieces=pieces, arithmetic=Arithmetic(graphs=True))
    sizes = (8, 8, 8, 5, 8)  # labels, weights and running statistics change; the fourth batch runs eagerly
    got, expected = (train(trainer, "cuda", sizes) for trainer in (graphed, trainer_of(name, "cuda", pieces=pieces)))
    assert len(graphed.pgd.func.graphs) == 1, "the capture failed"
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


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
    trainer = trainer_of(name, "cuda", torch.float32, arithmetic=arithmetic, steps=2)
    x, y = (value.cuda() for value in tiny_problem(n=16, dtype=torch.float32)[2:])
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
