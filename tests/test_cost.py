"""What a training costs: counts that agree with the papers' algorithms, and hours that follow from them alone."""

import re

import pytest
import torch
from commands import run_here

from data import Split
from data.loader import Batches
from engine.training.validation import Validator
from methods import METHODS
from models import build
from scripts.measure import gflop

SMALL = "--model small_resnet --teacher_model small_resnet --std_teacher_model small_resnet --num_steps 10"
NUMBER = r"([\d.e+]+)"


@pytest.fixture
def cost(monkeypatch, capsys):
    return lambda words: run_here(monkeypatch, capsys, "scripts/cost.py", f"{SMALL} {words}")


@pytest.fixture(scope="module")
def forward():
    """GFLOP of the small network's forward pass for one CIFAR image."""
    network = build("small_resnet", 10, 32).eval()
    return gflop(lambda: network(torch.rand(1, 3, 32, 32)))


def number(pattern, text):
    return float(re.search(pattern, text)[1])


@pytest.mark.parametrize(
    # Forwards of the step outside the student's update: attack and teachers; a backward to the input costs as much.
    ("method", "updates", "others"),
    [("Natural", 1, 0), ("AT", 1, 20), ("RSLAD", 2, 21), ("DGAD", 2, 42), ("AdaIAD", 2, 41)],
)
def test_a_step_costs_what_its_passes_cost(cost, forward, method, updates, others):
    out = cost(f"--method {method}").out
    # An update is a forward and two backward passes. The first layer's gradient to the image is not needed: 2 % of
    # the network at most.
    assert number(rf"a training image: .*; {NUMBER} GFLOP", out) == pytest.approx(
        (3 * updates + others) * forward, rel=0.02
    )


def test_an_image_that_nothing_fools_is_judged_at_the_cost_that_is_counted(cost):
    network = build("small_resnet", 10, 32).eval()
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = network(images / 255).argmax(1)
    ball = 0.0  # without extent, so that what is classified correctly stays so
    judge = Validator(network, Batches(Split(images, labels), 4, device=torch.device("cpu")), ball, seed=0)
    work = gflop(judge) / 4
    assert number(rf"judged image, at most: {NUMBER} GFLOP", cost("").out) == pytest.approx(work, rel=1e-3)  # 4 digits


def test_a_run_is_its_images_times_its_epochs_and_hours_are_work_over_rate(cost):
    # Four digits are printed.
    sizes = "--train_images 1000 --test_images 100 --epochs 7"
    out = cost(f"--method AT {sizes} --runs 3 --rate 50").out
    trained, judged = number(rf"training image: .*; {NUMBER} GFLOP", out), number(rf"at most: {NUMBER} GFLOP", out)
    total = number(rf"judged images: at most {NUMBER} GFLOP", out)
    assert total == pytest.approx(3 * 7 * (1000 * trained + 100 * judged), rel=2e-3)
    assert number(rf"at 50 GFLOP/s: {NUMBER} hours", out) == pytest.approx(total / 50 / 3600, rel=2e-3)
    assert "hours" in cost(f"--method AT {sizes}").out and "GFLOP/s:" not in cost(f"--method AT {sizes}").out


def test_introspection_is_counted_from_the_epoch_on_in_which_it_begins(cost):
    ended = {
        epochs: cost(f"--method IAD-I --train_images 1000 --test_images 1 --epochs {epochs}") for epochs in (60, 70)
    }
    first = number(rf"training image: .*; {NUMBER} GFLOP", ended[60].out)
    later = number(rf"from epoch 60 on: .*; {NUMBER} GFLOP", ended[60].out)
    totals = {epochs: number(rf"judged images: at most {NUMBER} GFLOP", one.out) for epochs, one in ended.items()}
    assert later > first
    assert totals[60] == pytest.approx(60 * 1000 * first, rel=2e-3)
    assert totals[70] == pytest.approx(60 * 1000 * first + 10 * 1000 * later, rel=2e-3)


def test_introspection_begins_where_it_is_asked_to(cost):
    words = "--method IAD-I --train_images 1000 --test_images 1 --epochs 10"
    never, always = (cost(f"{words} --IAD_begin {begin}").out for begin in (10, 0))
    totals = [number(rf"judged images: at most {NUMBER} GFLOP", out) for out in (never, always)]
    assert totals[0] < totals[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_counted(cost, method):
    ended = cost(f"--method {method} --num_steps 1 --image_size 16 --rate 100")
    assert ended.status == 0 and "hours" in ended.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--method DGADD", "--method DGADD"),
        ("--dataset Folder --classes 5", "give --train_images --test_images --image_size"),
        ("--rate 0", "--rate 0.0"),
        ("--teacher_model wide", "--model wide"),
    ],
)
def test_bad_input_is_one_line(cost, words, named):
    ended = cost(words)
    assert ended.status == 2 and named in ended.err and len(ended.err.splitlines()) == 1


def test_each_network_of_a_step_is_counted_alone(cost, forward):
    out = cost("--method DGAD --teacher_model mobilenetV2").out
    assert number(rf"small_resnet, one forward pass of an image: {NUMBER} GFLOP", out) == pytest.approx(
        forward, rel=1e-3
    )
    assert out.count("one forward pass") == 2 and "mobilenetV2, one forward pass" in out
