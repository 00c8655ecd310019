"""The command line: official flags and defaults, --config FILE, and one error line for invalid input."""

import json
import re
import subprocess
from dataclasses import asdict, fields, replace

import pytest
from conftest import user_error

import utils.versions
from engine.training.settings import resolve
from scripts.compare import compare
from utils.config import EvalConfig, TinyEvalConfig, TinyTrainConfig, TrainConfig
from utils.fields import spelling
from utils.flags import parse

# Official flag -> its official default in main.py of DGAD; --method is Plain_Madry there, which is AT here.
OFFICIAL_DEFAULTS = {
    **{"--dataset": "CIFAR10", "--model": "resnet18", "--method": "AT", "--teacher_model": "wideresnet34_10"},
    **{"--AdaAD_alpha": 1.0, "--ALP_beta": 1.0, "--alp": "on", "--trades_beta": 6.0, "--epsilon": 8.0},
    **{"--num_steps": 10, "--step_size": 2.0, "--epochs": 200, "--bs": 128, "--optim": "SGD", "--lr_max": 0.1},
    **{"--lr_schedule": "piecewise", "--momentum": 0.9, "--weight_decay": 5e-4, "--warmup_lr": False},
    **{"--warmup_lr_epochs": 15, "--gpu_id": 0, "--root_path": "tuned_models", "--desc_str": "", "--resume": False},
    **{"--model_path": "", "--seed": 42},
}


def read(args, config_class=TrainConfig):
    return parse(config_class, args.split()).config


def test_official_flags_have_official_defaults():
    ours = {spelling(spec): spec.default for spec in fields(TrainConfig)}
    assert {flag: ours.get(flag, "absent") for flag in OFFICIAL_DEFAULTS} == OFFICIAL_DEFAULTS
    evaluation = {spelling(spec): spec.default for spec in fields(EvalConfig)}
    assert (evaluation["--bs"], evaluation["--eps"]) == (200, 8 / 255)
    for base, tiny in ((TrainConfig, TinyTrainConfig), (EvalConfig, TinyEvalConfig)):
        assert [spec.name for spec in fields(base)] == [spec.name for spec in fields(tiny)]
        assert tiny().dataset == "Tiny_Image"
    assert TinyTrainConfig().teacher_model == "presnet18"


def test_values_are_read():
    for args, field, value in (
        ("--epsilon 8.5", "epsilon", 8.5),
        ("--epsilon 8/3", "epsilon", 8 / 3),
        ("--ALP_beta 5", "alp_beta", 5.0),
        ("--no-map", "map", False),
        ("--milestones 3 7", "milestones", (3, 7)),
        ("--optim sgd", "optim", "SGD"),
        ("-r", "resume", True),
        ("--epsilon 0.25 --step_size 0.0625", "step_size", 0.0625),
        ("--data_root =odd --desc_str x", "data_root", "=odd"),
    ):
        assert getattr(read(args), field) == value


WRONG = {
    "--epsilon 8/255": "--epsilon 8/255: is in units of 1/255",
    "--momentum 1.5": "--momentum 1.5: must be between 0 and 0.999",
    "--awp 0.5": "--awp 0.5: must be above 0 and at most 0.1",
    "--epsilon nan": "--epsilon nan",
    "--step_size 300": "--step_size 300.0: must be above 0 and at most 255",
    "--epsilon 0.031": "--epsilon 0.031: is in units of 1/255; write 7.905",
    "--epochs x": "--epochs: 'x' is not a whole number (--help lists the flags)",
    "--lr_schedule linear": "--lr_schedule: invalid choice: 'linear' (choose from",
    "--milestones 7 3": "--milestones 7 3: must be positive and increasing",
    "--epsil=8.25/255": "--epsil=8.25/255 (did you mean --epsilon?)",
    "-- 8": "-- 8 (--help lists the flags)",
    "--iad_begin 8": "--iad_begin 8 (did you mean --IAD_begin?)",
    "--batch_size 8": "--batch_size 8 (--help lists the flags)",
    "--model": "--model",
    "--data_root=--": "--data_root=--: -- is not a value",
    "--cache_dir=~no-user/x": "--cache_dir ~no-user/x: there is no such user",
    "--IAD_coefficient -1": "--IAD_coefficient -1.0: must be a number of at least 0",
    "--desc_str \udcff": "has bytes that are not UTF-8",
}


def test_a_config_made_in_python_is_checked_too():
    for values, message in (({"precision": "fp16"}, "--precision fp16: must be one of auto,"), ({"bs": 0}, "--bs 0")):
        with user_error(message):
            TrainConfig(**values)


@pytest.mark.parametrize("args", WRONG)
def test_a_wrong_value_is_one_line_that_names_its_flag(args):
    with user_error(re.escape(WRONG[args])):
        read(args)


def test_the_home_folder_is_expanded_in_every_path_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "config.json").write_text('{"data_root": "~/data"}')
    config = read(f"--config {tmp_path}/config.json --root_path=~/runs --teacher_path=~/t.pth --model_path ~/m.pth")
    assert (config.data_root, config.root_path) == ("/home/me/data", "/home/me/runs")
    assert (config.teacher_path, config.model_path) == ("/home/me/t.pth", "/home/me/m.pth")
    assert read("--model_path=~/a.pth --out=~/o --state=~/s", EvalConfig).model_path == ("/home/me/a.pth",)
    assert read("--desc_str=~").desc_str == "~"
    with user_error("RUNS ~no-user/x: there is no such user"):
        compare(["~no-user/x"])


def test_the_version_of_a_copy_in_another_repository_is_unknown(monkeypatch, tmp_path):
    for command in ("init", "-c user.name=x -c user.email=x commit --allow-empty -m x"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "copy").mkdir()
    found = []
    for root in (tmp_path, tmp_path / "copy"):
        monkeypatch.setattr(utils.versions, "ROOT", root)
        found.append(utils.versions._revision())
    assert len(found[0]) == 40 and found[1] is None


def test_help_groups_the_flags_and_gives_each_default(capsys):
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit, match="0"):
            parse(TrainConfig, [flag], description="Train.", choices={"method": "one of: AT, DGAD"})
    text = capsys.readouterr().out
    for part in (
        "networks:",
        "training:",
        "[default: 0.1]",
        "cuda use [default: 0]",
        "one of: AT, DGAD",
        "--config FILE",
    ):
        assert part in text
    assert text.endswith(f"\n{utils.versions.project_version()}\n")


RUN = TrainConfig(method="MART", epochs=7, milestones=(3, 5), temp=None, map=False, root_path="a", resume=True)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(RUN), indent=2), encoding="utf-8-sig")  # as editors of Windows write it
    return path


def test_the_config_of_a_run_repeats_its_settings_but_not_resume(config_file):
    config, given = parse(TrainConfig, [f"--config={config_file}"])
    assert config == replace(RUN, resume=False)
    assert given == {spec.name: "config file" for spec in fields(TrainConfig) if spec.name != "resume"}


def test_flags_and_a_recipe_among_them_override_the_config_file(config_file, caplog):
    args = ["--seed", "7", "--config", str(config_file), "--epochs", "10"]
    config, sources = resolve(*parse(TrainConfig, args))
    assert (config.seed, config.epochs, config.lr_max) == (7, 10, RUN.lr_max)
    assert config.milestones is None  # those of the file belong to its 7 epochs
    assert "--epochs 10: the milestones of --config" in caplog.text
    assert (sources["seed"], sources["lr_max"], sources["milestones"]) == ("flag", "config file", "default")
    config, sources = resolve(*parse(TrainConfig, [*args, "--recipe", "paper"]))
    assert (config.lr_max, config.weight_decay, config.milestones) == (0.01, 3.5e-3, None)  # MART's, of 10 epochs
    assert (config.seed, config.epochs, sources["lr_max"]) == (7, 10, "recipe")


def test_a_published_increase_of_epsilon_lasts_the_whole_training():
    config, _ = resolve(*parse(TrainConfig, ["--method", "IKL", "--recipe", "paper", "--epochs", "50"]))
    assert config.epsilon_ramp == 50


INVALID = {
    "{": "not a JSON object",
    "[" * 100000: "not a JSON object",
    '{"epoch": 1, "ALP_beta": 2}': "unknown key epoch, ALP_beta (did you mean epochs, alp_beta?)",
    '{"x1": 1, "x2": 1, "x3": 1, "help": true}': "unknown key x1, x2, x3, ... (--help",
    '{"epochs": true}': "--epochs: expected one argument",
    '{"epochs": null}': "--epochs: None is not a value",
    '{"alp": "maybe"}': "--alp: invalid choice: 'maybe'",
    '{"milestones": ["a"]}': "--milestones: 'a' is not a whole number",
    '{"epsilon": 1' + "0" * 400 + "}": "--epsilon inf: must be",
    r'{"desc_str": "\u0000"}': "has bytes that are not UTF-8",
    '{"desc_str": 5, "nesterov": null}': "--nesterov: None is not a value",
    '{"milestones": ["--help"]}': "--milestones: ['--help'] is not a value",
    "": "No such file",
}


@pytest.mark.parametrize("content", INVALID, ids=lambda text: text[:30])
def test_an_invalid_config_file_is_one_line_that_names_file_or_key(tmp_path, content):
    path = tmp_path / "config.json"
    if content:
        path.write_text(content)
    with user_error(re.escape(INVALID[content])):
        read(f"--config {path}")
