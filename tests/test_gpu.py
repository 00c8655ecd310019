"""On a CUDA device: the same step as on the CPU, a whole run, and an evaluation."""

import pytest
import torch
from commands import SMALL, run_here
from tiny import tiny_problem

from engine.trainer import Trainer
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
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
