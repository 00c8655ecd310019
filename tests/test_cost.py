"""What a training costs: counts that agree with the papers' algorithms, and totals that follow from them."""

import io

import pytest
import torch
import torch.nn.functional as F

from data import Split
from data.loader import Batches
from engine.training.validation import Validator
from methods import METHODS
from models import build
from scripts.benchmark.measure import gflop
from scripts.cost import VALIDATION_PASSES, cost, count_step, training_cost
from utils.config import TrainConfig
from utils.errors import UserError


def config_of(method="AT", **fields):
    networks = dict.fromkeys(("model", "teacher_model", "std_teacher_model"), "small_resnet")
    return TrainConfig(method=method, **(networks | fields))


def step_of(method="AT", **fields):
    """GFLOP per CIFAR image of a step before and with introspection, and the epoch of its begin."""
    return count_step(config_of(method, **fields), 10, 32)[1:]


@pytest.fixture(scope="module")
def forward():
    """GFLOP of the small network's forward pass per CIFAR image."""
    network = build("small_resnet", 10, 32).eval()
    return gflop(lambda: network(torch.rand(1, 3, 32, 32)))


@pytest.mark.parametrize(
    # Forwards of the step outside the student's update: attack and teachers; a backward to the input costs as much.
    ("method", "updates", "others"),
    [("Natural", 1, 0), ("AT", 1, 20), ("RSLAD", 2, 21), ("DGAD", 2, 42), ("AdaIAD", 2, 41)],
)
def test_a_step_costs_what_its_passes_cost(forward, method, updates, others):
    # An update is a forward and two backward passes. The first layer's gradient to the image is not needed: 2 % of
    # the network at most.
    assert step_of(method)[0] == pytest.approx((3 * updates + others) * forward, rel=0.02)
    assert count_step(config_of(method), 10, 32)[0] == pytest.approx(forward)


@pytest.mark.parametrize("groups", [1, 4])
def test_both_gradients_of_a_strided_convolution_cost_as_much_as_its_forward(groups):
    x, weight = torch.rand(2, 8, 9, 9, requires_grad=True), torch.rand(12, 8 // groups, 3, 3, requires_grad=True)
    definition = 2 * (2 * 12 * 4 * 4) * (8 // groups * 9) / 1e9
    assert gflop(lambda: F.conv2d(x, weight, stride=2, groups=groups)) == definition
    y = F.conv2d(x, weight, stride=2, groups=groups).sum()
    assert gflop(lambda: torch.autograd.grad(y, x, retain_graph=True)) == definition
    assert gflop(y.backward) == 2 * definition


def test_an_image_that_is_never_fooled_costs_the_counted_validation(forward):
    network = build("small_resnet", 10, 32).eval()
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = network(images / 255).argmax(1)
    validator = Validator(network, Batches(Split(images, labels), 4, device=torch.device("cpu")), 0.0, seed=0)
    assert VALIDATION_PASSES * forward == pytest.approx(gflop(validator) / 4)


def test_a_total_is_images_times_epochs(forward):
    step, validation = step_of()[0], VALIDATION_PASSES * forward
    total = training_cost(config_of(limit_train=1000, limit_test=100, epochs=7))
    assert total == pytest.approx(7 * (1000 * step + 100 * validation))
    fewer = training_cost(config_of(limit_train=1000, val_size=50, epochs=7, eval_every=3))  # epochs 3, 6 and 7
    assert fewer == pytest.approx(7 * 1000 * step + 3 * 50 * validation)


def test_introspection_is_counted_from_its_first_epoch_on(forward):
    first, later, begin = step_of("IAD-I")
    assert begin == 60 and later > first
    total = training_cost(config_of("IAD-I", limit_train=1000, limit_test=1, epochs=70))
    assert total == pytest.approx(1000 * (60 * first + 10 * later) + 70 * VALIDATION_PASSES * forward)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_counted(method):
    assert training_cost(config_of(method, num_steps=1, image_size=16)) > 0


def test_commands_of_standard_input_are_added_up(monkeypatch, caplog):
    caplog.set_level("INFO")
    flags = "--dataset Digits --image_size 16 --model small_resnet --method AT --epochs 2"
    lines = f"# a comment\npython main.py {flags}\n.venv/bin/python /a/main_tiny.py {flags} --seed 2 --resume\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines + "python main_eval.py --model_path x\n"))
    cost(["-", "--rate", "50"])
    total = 2 * training_cost(config_of(dataset="Digits", image_size=16, epochs=2))
    assert f"2 trainings: at most {total:.4g} GFLOP" in caplog.text
    assert f"at 50 GFLOP/s: {total / 50 / 3600:.4g} hours" in caplog.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--method DGADD", "--method DGADD"),
        ("--dataset Folder --classes 5", "give --limit_train --limit_test --image_size"),
        ("--rate 0", "--rate 0.0"),
        ("--teacher_model wide", "--teacher_model wide"),
        ("-", "standard input: has no command"),
    ],
)
def test_bad_input_is_a_user_error(monkeypatch, args, message):
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing\n"))
    with pytest.raises(UserError, match=message):
        cost(args.split())
