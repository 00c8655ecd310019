"""Every benchmark runs and writes its results; no test asserts a speed."""

import json

import pytest
from conftest import user_error

import scripts.benchmark.step
from scripts.benchmark.__main__ import benchmark

STEP = "step --model small_resnet --teacher_model small_resnet --bs 4 --image_size 16 --pairs 1"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(scripts.benchmark.step, "product_speed", lambda device, dtype: 1.0)

    def run(args):
        benchmark([*args.split(), "--json", str(tmp_path / "new/result.json")])
        return json.loads((tmp_path / "new/result.json").read_text())

    return run


@pytest.mark.parametrize(
    "args",
    [
        f"{STEP} --method AKD2 --precision fp32",
        f"{STEP} --method AT --piece awp",
        f"{STEP} --method RSLAD --piece cutmix --profile TRACE",
    ],
)
def test_a_benchmark_writes_both_rates_and_their_ratio(run, tmp_path, args):
    trace = tmp_path / "traces/trace.json"
    result = run(args.replace("TRACE", str(trace)))
    assert result["benchmark"] == args.split()[0] and result["ratio"] > 0
    assert all(rate > 0 for rate in result["images_per_second"].values())
    assert trace.exists() == ("TRACE" in args) and (not trace.exists() or "traceEvents" in trace.read_text())


BAD = {
    "": "no benchmark given",
    "steps": "nearest: step",
    "step --pairs 0": "--pairs 0",
    "step --threads 99999999999": "--threads 99999999999: must be between",
    "step --precision fp8": "--precision: invalid choice: 'fp8'",
    "step --compile max": "--compile: invalid choice: 'max'",
    "step --teacher_model other": "--teacher_model other: unknown name",
    "step --json .": "--json .: cannot be written .is a folder",
    f"step --profile {__file__}/x": "--profile .*: cannot be written",
}


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_a_user_error(args):
    with user_error(BAD[args]):
        benchmark(args.split())
