"""The learning rate of every epoch."""

import pytest

from engine.training.schedule import learning_rate
from utils.config import TrainConfig


def rates(epochs, schedule="piecewise", **settings):
    config = TrainConfig(epochs=epochs, lr_schedule=schedule, **settings)
    return [learning_rate(epoch, config) for epoch in range(epochs)]


def test_piecewise_drops_after_100_and_150_of_200_epochs():
    result = rates(200)
    assert result[0] == result[99] == 0.1
    assert result[100] == result[149] == pytest.approx(0.01)
    assert result[150] == result[199] == pytest.approx(0.001)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [0.1]), (2, [0.1, 0.01]), (4, [0.1, 0.1, 0.01, 0.001])])
def test_default_milestones_fit_any_number_of_epochs(epochs, expected):
    assert rates(epochs) == pytest.approx(expected)


def test_milestones_can_be_set():
    assert rates(4, milestones=(1, 3)) == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_cosine_decreases_to_its_floor():
    result = rates(200, "cosine")
    assert result[0] == 0.1 and result[100] == pytest.approx(0.05) and result[-1] == 1e-4
    assert result == sorted(result, reverse=True)


def test_constant():
    assert rates(3, "constant") == [0.1] * 3


def test_warmup_increases_linearly_from_a_thousandth():
    warmup = {"warmup_lr": True, "warmup_lr_epochs": 4}
    assert rates(20, **warmup)[:5] == pytest.approx([0.001, 0.02575, 0.0505, 0.07525, 0.1])
    assert rates(20, "cosine", **warmup)[4] == 0.1
