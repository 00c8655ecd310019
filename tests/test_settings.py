"""Flags that a method makes no use of are named, and no others; so is what settings keep from happening."""

from dataclasses import fields, replace

import pytest
import torch
from commands import SMALL, run_here
from tiny import tiny_problem

from engine.training.settings import config_warnings, resolve
from engine.unused_fields import INNER_ATTACK, unused_fields
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_ATTACK, WITHOUT_TEACHER
from utils.config import METHOD, TrainConfig
from utils.flags import parse

# Another value for each type of a field.
OTHER = {bool: lambda value: not value, float: lambda value: value + 0.5, str: lambda value: "off"}
UNSET = 7  # for a field that is left open


def altered(value):
    return UNSET if value is None else OTHER[type(value)](value)


@pytest.mark.parametrize("method", METHODS)
def test_a_flag_is_ignored_where_another_value_changes_nothing_of_the_method(method):
    config = TrainConfig(method=method, dataset="Digits")

    def terms(config):
        return getattr(METHODS[method](config), "keywords", {})

    for spec in fields(config):
        if spec.metadata["group"] == METHOD and spec.name != "method":
            another = replace(config, **{spec.name: altered(getattr(config, spec.name))})
            assert (terms(another) == terms(config)) == (spec.name in unused_fields(config)), spec.name


@pytest.mark.parametrize("method", METHODS)
def test_the_attacks_flags_are_ignored_where_no_attack_is_made(method):
    student, teacher, x, y = tiny_problem(dtype=torch.float32)
    attacked = []

    def attack(objective, x, **_):
        attacked.append(x)
        return x

    teachers = [] if method in WITHOUT_TEACHER else [teacher] * (1 + (method in WITH_TWO_TEACHERS))
    METHODS[method](replace(TrainConfig(), kl_weight=1.0))(student, *teachers, attack, x, y, 0)
    assert bool(attacked) == (method not in WITHOUT_ATTACK)
    assert (unused_fields(TrainConfig(method=method)) >= INNER_ATTACK) == (method in WITHOUT_ATTACK)


DOUBTS = {
    "--method IAD-I --epochs 60": "IAD-I's introspection begins at epoch 60 (from 0), never in --epochs 60",
    "--method IAD-II --epochs 6": "IAD-II's introspection begins at epoch 40",
    "--method DGAD-IAD --epochs 6 --IAD_begin 5": None,
    "--method AdaIAD --epochs 61": None,
    "--method AT --epsilon 64": "--num_steps 10 of --step_size 2 reach 20 of --epsilon 64",
    "--method Natural --epsilon 64": None,
    "--method AT --epsilon 4 --step_size 1 --num_steps 4": None,
    "--method AT --warmup_lr --epochs 15": "--epochs 15 never reach --lr_max",
    "--method AT --warmup_lr --lr_max 0.0001": "--warmup_lr begins at 0.001 and falls to --lr_max 0.0001",
    "--method AT --warmup_lr": None,
}


@pytest.mark.parametrize("words", DOUBTS)
def test_settings_that_keep_something_from_happening_are_told(words):
    parsed = parse(TrainConfig, words.split(), description="", choices={})
    config, _ = resolve(*parsed)
    told = config_warnings(config)
    assert len(told) == (DOUBTS[words] is not None)
    assert all(DOUBTS[words] in line for line in told)


def test_a_run_tells_what_its_settings_keep_from_happening(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    ended = run_here(monkeypatch, capsys, "main.py", f"{SMALL} --method AT --epochs 1 --num_steps 1 --epsilon 8")
    assert ended.status == 0 and "WARNING: --num_steps 1 of --step_size 2 reach 2 of --epsilon 8" in ended.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--method AT --teacher_model resnet18 --temp 2", ["AT", "--teacher_model, --temp"]),
        ("--method TRADES --mart_beta 3 --trades_beta 2", ["TRADES", "--mart_beta"]),
        ("--method Natural --step_size 1 --no-els", ["Natural", "--num_steps, --step_size, --els"]),
        ("--method TRADES --trades_beta 2", None),
        ("--method TRADES --recipe paper", None),
    ],
)
def test_flags_that_the_method_ignores_are_named_in_one_line_of_the_log(monkeypatch, capsys, tmp_path, words, named):
    monkeypatch.chdir(tmp_path)
    ended = run_here(monkeypatch, capsys, "main.py", f"{SMALL} {words} --epochs 1")
    assert ended.status == 0, ended.err
    (log,) = tmp_path.rglob("log.txt")
    for text in (ended.out, log.read_text()):
        warnings = [line for line in text.splitlines() if "makes no use of" in line]
        assert len(warnings) == (named is not None)
        if named:
            method, flags = named
            said = warnings[0].split("WARNING: ")[1]
            assert said.startswith(f"{method} makes no use of ")
            assert set(said.partition("use of ")[2].split(", ")) == set(flags.split(", "))
