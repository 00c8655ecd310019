"""The learning rate of every epoch."""

import pytest
import torch

from engine.training.schedule import epsilon_scale, learning_rate
from utils.config import TrainConfig


def rates(epochs, schedule="piecewise", **settings):
    config = TrainConfig(epochs=epochs, lr_schedule=schedule, **settings)
    return [learning_rate(epoch, config) for epoch in range(epochs)]


def test_official_schedules_of_200_epochs():
    assert rates(200) == pytest.approx([0.1] * 100 + [0.01] * 50 + [0.001] * 50)
    cosine = rates(200, "cosine")
    assert cosine[0] == 0.1 and cosine[100] == pytest.approx(0.05) and cosine[-1] == 1e-4


WARMUP = {"warmup_lr": True, "warmup_lr_epochs": 2}


SHORT = [
    ({}, [0.1]),
    ({}, [0.1, 0.01]),
    ({}, [0.1, 0.1, 0.01, 0.001]),
    ({"milestones": (1, 3)}, [0.1, 0.01, 0.01, 0.001]),
    ({"schedule": "constant"}, [0.1, 0.1, 0.1]),
    ({"schedule": "onecycle"}, [0.1]),
    (WARMUP, [0.001, 0.0505, 0.1, 0.1, 0.01, 0.01, 0.001]),
    (WARMUP | {"schedule": "cosine"}, [0.001, 0.0505, 0.1, 0.05]),
]


@pytest.mark.parametrize(("settings", "expected"), SHORT)
def test_short_runs(settings, expected):
    assert rates(len(expected), **settings) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [400, 80, 60])
def test_onecycle_is_that_of_pytorch(epochs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs, pct_start=0.025)
    expected = []
    for _ in range(epochs):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step() if len(expected) < epochs else None
    assert rates(epochs, "onecycle", lr_max=0.2) == pytest.approx(expected)


def test_cyclic_increases_for_two_fifths_of_the_run():
    config = TrainConfig(epochs=10, lr_schedule="cyclic", lr_max=0.2)
    result = [learning_rate(int(at), config, at % 1) for at in (0, 1, 3.5, 4, 7, 9.9, 10)]
    assert result == pytest.approx([0, 0.05, 0.175, 0.2, 0.1, 0.2 / 60, 0])
    config = TrainConfig(epochs=2, lr_schedule="cyclic", lr_max=0.1, **WARMUP)  # a run that is all warm-up
    assert [learning_rate(1, config, done) for done in (0.5, 1)] == pytest.approx([0.07525, 0.1])


def test_epsilon_grows_linearly_to_its_value():
    shares = [epsilon_scale(epoch, TrainConfig(epsilon_ramp=4)) for epoch in range(6)]
    assert shares == [0.25, 0.5, 0.75, 1, 1, 1]
    assert epsilon_scale(0, TrainConfig()) == 1
