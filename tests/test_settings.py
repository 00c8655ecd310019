"""Flags without effect, and settings that prevent a part of the training, are logged as warnings."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from data import Split
from engine.training.settings import config_warnings, log_config, resolve
from engine.unused_fields import unused_fields
from methods import METHODS
from utils.config import METHOD, TrainConfig
from utils.errors import UserError
from utils.flags import parse

# Another value for each type of a field.
OTHER = {bool: lambda value: not value, float: lambda value: 0.9 * value + 0.03, str: lambda value: "off"}


def altered(value):
    return 7 if value is None else OTHER[type(value)](value)


@pytest.mark.parametrize("method", METHODS)
def test_a_field_is_unused_if_another_value_changes_nothing_of_the_method(method):
    config = TrainConfig(method=method, dataset="Digits")

    def parameters(config):
        return getattr(METHODS[method](config), "keywords", {})

    for spec in fields(config):
        if spec.metadata["group"] == METHOD and spec.name != "method":
            other = replace(config, **{spec.name: altered(getattr(config, spec.name))})
            assert (parameters(other) == parameters(config)) == (spec.name in unused_fields(config)), spec.name


WARNINGS = {
    "--method IAD-I --epochs 60": "IAD-I starts introspection after epoch 60, so --epochs 60 has none",
    "--method IAD-II --epochs 6": "IAD-II starts introspection after epoch 40",
    "--method DGAD-IAD --epochs 6 --IAD_begin 5": None,
    "--method AdaIAD --epochs 61": None,
    "--method AT --epsilon 64": "--num_steps 10 with --step_size 2 reach 20, not --epsilon 64",
    "--method Natural --epsilon 64": None,
    "--method AT --epsilon 4 --step_size 1 --num_steps 4": None,
    "--method AT --warmup_lr --epochs 15": "--lr_max is not reached in --epochs 15",
    "--method AT --warmup_lr --lr_max 0.0001": "--warmup_lr starts at 0.001, above --lr_max 0.0001",
    "--method AT --warmup_lr": None,
    "--method AT --swa_start 9 --epochs 8": "--swa_start 9: is not reached in --epochs 8",
    "--method AT --epsilon_ramp 9 --epochs 8": "--epsilon_ramp 9: is not reached in --epochs 8",
    "--method Natural --epsilon_ramp 9 --awp_warmup 9 --epochs 8": None,  # both have no effect, which is another line
    "--method IKL --recipe paper --epochs 10": None,  # the increase of epsilon lasts 10 epochs, not the published 200
    "--method AT --milestones 5 7 --epochs 7": "--milestones 5 7: the last one is not reached in --epochs 7",
    "--method AT --milestones 5 6 --epochs 7": None,
    "--method AT --milestones 1 2 --epochs 2": None,  # the default, as in the config of a run
    "--method AT --recipe strong --epochs 8": "--awp_warmup 10: is not reached in --epochs 8",
}


@pytest.mark.parametrize("args", WARNINGS)
def test_settings_that_prevent_a_part_of_the_training_are_warnings(args):
    config, _ = resolve(*parse(TrainConfig, args.split()))
    warnings = config_warnings(config)
    assert len(warnings) == (WARNINGS[args] is not None)
    assert all(WARNINGS[args] in line for line in warnings)


IGNORED = {
    "--method AT --teacher_model resnet18 --temp 2": "AT ignores --teacher_model, --temp",
    "--method TRADES --mart_beta 3 --trades_beta 2": "TRADES ignores --mart_beta",
    "--method Natural --step_size 1 --no-els": "Natural ignores --els, --step_size",
    "--method TRADES --trades_beta 2 --temp 20 --label_smoothing 0.1 --nesterov": None,
    "--method AT --IAD_down --self_weight 1": "AT ignores --IAD_down, --self_weight",
    "--method MART --label_smoothing 0.1": "MART ignores --label_smoothing",
    "--method MTARD --robust_weight 0.9 --std_weight 0.9": "MTARD ignores --robust_weight, --std_weight",
    "--method TRADES --recipe paper": None,
    "--method AT --optim Adam --momentum 0.5 --nesterov": "--optim Adam ignores --momentum, --nesterov",
    "--method AT --awp_warmup 1": "training without --awp ignores --awp_warmup",
    "--method AT --lr_schedule cosine --milestones 1": "--lr_schedule cosine ignores --milestones",
    "--method AT --warmup_lr_epochs 2": "training without --warmup_lr ignores --warmup_lr_epochs",
    "--method AT --normalize cifar10 --weights raw": "training without a checkpoint ignores --weights, --normalize",
}


@pytest.mark.parametrize("args", IGNORED)
def test_the_log_names_flags_that_have_no_effect(caplog, args):
    config, sources = resolve(*parse(TrainConfig, args.split()))
    images = Split(torch.zeros(1), torch.zeros(1))
    config = replace(config, milestones=config.milestones or (1,), threads=1)
    log_config(config, sources, Path("runs"), (images, images), torch.device("cuda"))
    lines = [line for line in caplog.messages if " ignores " in line]
    assert lines == ([f"WARNING: {IGNORED[args]}"] if IGNORED[args] else [])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ("--ema 0.9 --swa_start 2", "--swa_start: cannot be combined with --ema"),
        ("--method AT --igdm 1", "--igdm: AT does not support this .* use it with RSLAD, AdaIAD, DGAD, IGDM, SAAD"),
        ("--method AT --log_reliability", "^--log_reliability: AT has no teacher; remove the flag$"),
        ("--nesterov --momentum 0", "--nesterov: requires --momentum above 0"),
        ("--bs 16 --accumulate 17", "--accumulate 17: must be at most --bs 16"),
        ("--method AKD2 --robust_weight 0.9 --std_weight 0.9", "0.9 .* 0.9: the sum must be at most 1"),
    ],
)
def test_pieces_that_exclude_each_other_are_one_line(args, error):
    with pytest.raises(UserError, match=error):
        resolve(*parse(TrainConfig, args.split()))


@pytest.mark.parametrize(
    "field", ["ema", "awp", "label_smoothing", "clip_grad", "epsilon_ramp", "swa_start", "accumulate"]
)
def test_pieces_out_of_range_are_refused(field):
    for value in (-1, float("nan")):
        with pytest.raises(UserError, match=f"--{field}"):
            TrainConfig(**{field: value})


def test_the_strong_recipe_fills_in_what_is_not_given():
    config, sources = resolve(*parse(TrainConfig, ["--recipe", "strong", "--awp", "0.01"]))
    assert (config.ema, config.awp, config.augment) == (0.995, 0.01, "idbh-weak")
    assert (sources["ema"], sources["awp"]) == ("recipe", "flag")
    config, _ = resolve(*parse(TrainConfig, ["--recipe", "strong", "--swa_start", "2"]))  # one average at most
    assert (config.ema, config.swa_start, config.awp) == (None, 2, 0.005)
