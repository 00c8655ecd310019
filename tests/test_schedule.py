"""The learning rate of every epoch."""

import pytest

from engine.training.schedule import learning_rate


def rates(epochs, **options):
    return [learning_rate(epoch, epochs=epochs, lr_max=0.1, **options) for epoch in range(epochs)]


def test_piecewise_of_200_epochs_drops_at_100_and_150():
    got = rates(200)
    assert got[0] == got[99] == 0.1
    assert got[100] == got[149] == pytest.approx(0.01)
    assert got[150] == got[199] == pytest.approx(0.001)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [0.1]), (2, [0.1, 0.01]), (4, [0.1, 0.1, 0.01, 0.001])])
def test_piecewise_works_for_any_number_of_epochs(epochs, expected):
    assert rates(epochs) == pytest.approx(expected)


def test_milestones_can_be_set():
    assert rates(4, milestones=(1, 3)) == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_cosine_falls_to_its_floor():
    got = rates(200, schedule="cosine")
    assert got[0] == 0.1 and got[100] == pytest.approx(0.05)
    assert got[-1] == 1e-4
    assert got == sorted(got, reverse=True)


def test_constant():
    assert rates(3, schedule="constant") == [0.1] * 3


def test_warmup_rises_linearly_from_a_thousandth():
    got = rates(20, warmup_epochs=4)
    assert got[:5] == pytest.approx([0.001, 0.02575, 0.0505, 0.07525, 0.1])
    assert rates(20, schedule="cosine", warmup_epochs=4)[4] == 0.1
