"""Every benchmark runs and writes what it measured; how fast anything is, is for no test to say."""

import json

import pytest
from commands import run_here

import scripts.bench_evaluation
import scripts.bench_training
from data import load, subset

TINY = "--model small_resnet --bs 4 --image_size 16 --pairs 1"


@pytest.fixture
def benchmark(monkeypatch, capsys, tmp_path):
    def few_digits(*about, **options):
        splits = load("Digits", image_size=16)
        return splits._replace(train=subset(splits.train, 64, 0), test=subset(splits.test, 40, 0))

    monkeypatch.setattr(scripts.bench_evaluation, "load", few_digits)  # trained on all of them for half a minute
    monkeypatch.setattr(scripts.bench_training, "ceilings", lambda device: {"fp32": 1.0, "bf16": 1.0, "copy": 1.0})

    def run(words):
        ended = run_here(monkeypatch, capsys, "scripts/benchmark.py", f"{words} --json {tmp_path / 'figures.json'}")
        assert ended.status == 0, ended.err
        return json.loads((tmp_path / "figures.json").read_text())

    return run


@pytest.mark.parametrize(
    "words",
    [
        f"step --method DGAD --teacher_model small_resnet {TINY}",
        f"step --method AKD2 --teacher_model small_resnet {TINY} --precision fp32",
        f"epoch --method AT --images 8 {TINY}",
        f"watching --teacher_model small_resnet {TINY}",
        "data --images 64 --bs 16 --workers 0 --pairs 1",
        "judging --images 20 --pairs 1",
    ],
)
def test_a_benchmark_writes_both_rates_and_their_ratio(benchmark, words):
    figures = benchmark(words)
    assert figures["benchmark"] == words.split()[0] and figures["ratio"] > 0
    assert all(rate > 0 for rate in figures["images_per_second"].values())


def test_evaluation_is_timed_against_both_references(benchmark):
    figures = benchmark("evaluate --limit_test 20 --pairs 1")
    assert all(value["ratio"] > 0 for key, value in figures.items() if key.startswith("ours against"))


def test_views_are_timed_each(benchmark):
    assert all(view["ratio"] > 0 for view in benchmark(f"views {TINY}")["views"].values())
