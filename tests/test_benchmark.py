"""Every benchmark runs and writes its results; no test asserts a speed."""

import json

import pytest
import torch
import torch.nn.functional as F

import scripts.benchmark.evaluation
import scripts.benchmark.step
from data import load, subset
from scripts.benchmark.__main__ import benchmark
from scripts.benchmark.measure import gflop
from utils.errors import UserError

STEP = "step --model small_resnet --teacher_model small_resnet --bs 4 --image_size 16 --pairs 1"


@pytest.fixture
def run(monkeypatch, tmp_path):
    splits = load("Digits", image_size=16)
    splits = splits._replace(train=subset(splits.train, 64, 0), test=subset(splits.test, 40, 0))
    monkeypatch.setattr(scripts.benchmark.evaluation, "load", lambda *_, **__: splits)
    monkeypatch.setattr(scripts.benchmark.step, "product_speeds", lambda device: {"fp32": 1.0, "bf16": 1.0})

    def run(args):
        benchmark([*args.split(), "--json", str(tmp_path / "result.json")])
        return json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.mark.parametrize(
    "args",
    [
        f"{STEP} --method AKD2 --precision fp32",
        f"{STEP} --method AT --piece awp",
        f"{STEP} --method RSLAD --piece cutmix --profile TRACE",
        "evaluation --limit_test 20 --pairs 1",
    ],
)
def test_a_benchmark_writes_both_rates_and_their_ratio(run, tmp_path, args):
    trace = tmp_path / "trace.json"
    result = run(args.replace("TRACE", str(trace)))
    assert result["benchmark"] == args.split()[0] and result["ratio"] > 0
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert trace.exists() == ("TRACE" in args) and (not trace.exists() or "traceEvents" in trace.read_text())


@pytest.mark.parametrize("groups", [1, 4])
def test_both_gradients_of_a_strided_convolution_cost_as_much_as_its_forward(groups):
    x, weight = torch.rand(2, 8, 9, 9, requires_grad=True), torch.rand(12, 8 // groups, 3, 3, requires_grad=True)
    definition = 2 * (2 * 12 * 4 * 4) * (8 // groups * 9) / 1e9
    assert gflop(lambda: F.conv2d(x, weight, stride=2, groups=groups)) == definition
    y = F.conv2d(x, weight, stride=2, groups=groups).sum()
    assert gflop(lambda: torch.autograd.grad(y, x, retain_graph=True)) == definition
    assert gflop(y.backward) == 2 * definition


@pytest.mark.parametrize("args", [[], ["steps"], ["step", "--pairs", "0"]])
def test_bad_input_is_a_user_error(args):
    with pytest.raises(UserError, match=r"no benchmark given|nearest: step|--pairs 0"):
        benchmark(args)
