"""The command line: every official flag, its default, and one clear line for what cannot be."""

import json
from dataclasses import fields

import pytest

from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.errors import UserError
from utils.flags import parse, spelling

TRAIN_COMMANDS = [
    "--dataset CIFAR10 --model resnet18 --method DGAD --teacher_model wideresnet34_10 --epsilon 8 --num_steps 10 "
    "--step_size 2 --epochs 200 --bs 128 --lr_max 0.1 --lr_schedule piecewise --ALP_beta 5.0 --gpu_id 0",
    "--dataset Tiny_Image --model resnet18 --method DGAD --teacher_model presnet18 --epsilon 8 --num_steps 10 "
    "--step_size 2 --epochs 200 --bs 128 --lr_max 0.1 --lr_schedule piecewise --ALP_beta 15.0 --gpu_id 0",
]

# Official flag -> its official default, in main.py of DGAD; --method is Plain_Madry, which is our AT.
OFFICIAL_DEFAULTS = {
    "--dataset": "CIFAR10",
    "--model": "resnet18",
    "--method": "AT",
    "--teacher_model": "wideresnet34_10",
    "--AdaAD_alpha": 1.0,
    "--ALP_beta": 1.0,
    "--alp": "on",
    "--trades_beta": 6.0,
    "--epsilon": 8.0,
    "--num_steps": 10,
    "--step_size": 2.0,
    "--epochs": 200,
    "--bs": 128,
    "--optim": "SGD",
    "--lr_max": 0.1,
    "--lr_schedule": "piecewise",
    "--momentum": 0.9,
    "--weight_decay": 5e-4,
    "--warmup_lr": False,
    "--warmup_lr_epochs": 15,
    "--gpu_id": 0,
    "--root_path": "tuned_models",
    "--desc_str": "",
    "--resume": False,
    "--model_path": "",
    "--seed": 42,
}


def read(words, config_class=TrainConfig):
    return parse(config_class, words.split(), description="", choices={}).config


def test_the_papers_training_commands_parse():
    config = read(TRAIN_COMMANDS[0])
    assert (config.alp_beta, config.epsilon, config.bs, config.method) == (5.0, 8.0, 128, "DGAD")
    assert read(TRAIN_COMMANDS[1], TinyTrainConfig).teacher_model == "presnet18"


def test_official_flags_have_official_defaults():
    ours = {spelling(spec): spec.default for spec in fields(TrainConfig)}
    assert {flag: ours.get(flag, "absent") for flag in OFFICIAL_DEFAULTS} == OFFICIAL_DEFAULTS
    evaluation = {spelling(spec): spec.default for spec in fields(EvalConfig)}
    assert (evaluation["--bs"], evaluation["--eps"]) == (200, 8 / 255)


def test_tiny_configs_differ_by_defaults_alone():
    for base, tiny in ((TrainConfig, TinyTrainConfig), (EvalConfig, TinyEvalConfig)):
        assert [spec.name for spec in fields(base)] == [spec.name for spec in fields(tiny)]
        assert tiny().dataset == "Tiny_Image"


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--epsilon 8.5", "epsilon", 8.5),
        ("--trades_beta 6", "trades_beta", 6.0),
        ("--no-map", "map", False),
        ("--milestones 3 7", "milestones", (3, 7)),
        ("--optim sgd", "optim", "SGD"),
        ("--attack_bn train", "attack_bn", "train"),
        ("-r", "resume", True),
        ("--epsilon 0.25 --step_size 0.0625", "step_size", 0.0625),
        ("--data_root =odd --desc_str x", "data_root", "=odd"),
    ],
)
def test_values_are_read(words, field, value):
    assert getattr(read(words), field) == value


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--epsilon 0", "--epsilon 0.0"),
        ("--epsilon -1", "--epsilon -1.0"),
        ("--epsilon nan", "--epsilon nan"),
        ("--epsilon inf", "--epsilon inf"),
        ("--num_steps 0", "--num_steps 0"),
        ("--step_size 0", "--step_size 0.0"),
        ("--step_size 300", "--step_size 300.0: must be above 0 and at most 255"),
        ("--epsilon 0.03", "--epsilon 0.03: is in units of 1/255"),
        ("--step_size 0.003", "--step_size 0.003: is in units of 1/255: 0.003 in [0, 1] is 0.765 here"),
        ("--epochs 0", "--epochs 0"),
        ("--epochs two", "--epochs"),
        ("--bs 0", "--bs 0"),
        ("--lr_max 0", "--lr_max 0.0"),
        ("--lr_schedule linear", "--lr_schedule"),
        ("--alp maybe", "--alp"),
        ("--milestones 7 3", "--milestones 7 3"),
        ("--limit_train 0", "--limit_train 0"),
        ("--epsil 8", "--epsil"),
        ("--model", "--model"),
        ("--precision fp16", "--precision"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_flag(words, named):
    with pytest.raises(UserError) as raised:
        read(words)
    assert named in str(raised.value) and "\n" not in str(raised.value)


def test_help_groups_the_flags_and_gives_each_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(TrainConfig, ["--help"], description="Train.", choices={"method": "one of: AT, DGAD"})
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("networks:", "training:", "[default: 0.1]", "one of: AT, DGAD", "--ALP_beta"):
        assert part in text


def test_a_config_is_plain_data():
    config = TrainConfig()
    assert json.loads(json.dumps({spec.name: getattr(config, spec.name) for spec in fields(config)}))
    with pytest.raises(AttributeError):
        config.epochs = 1
