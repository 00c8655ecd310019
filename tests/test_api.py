"""The Python API: what it loads, that it evaluates as the command line does, what it refuses, its page's snippets."""

import json
import re
import subprocess
import sys
import threading
from copy import deepcopy
from dataclasses import asdict
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, user_error
from small_sets import save_network
from tiny import Function, TinyNet, trained_on_stripes
from torch import Tensor, nn

from data import TEST_SUBSET_SEED, load, subset
from engine import evaluate, load_model, train
from engine.evaluation.records import read_evaluations, results_path
from models import MODELS, build
from models.teachers import load_teacher
from utils.config import TrainConfig

INCLUDED = "models/pretrained/small_resnet_cifar10"


def test_importing_engine_is_cheap():
    code = "import sys, engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Loading.


def test_the_included_teacher_loads_from_any_folder(tmp_path, monkeypatch):
    x = torch.rand(2, 3, 32, 32)
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        model = load_model(INCLUDED)
        assert not model.training
        assert torch.equal(model(x), load_teacher("small_resnet", "CIFAR10", 10)(x))


def test_a_bare_state_dict_loads_and_says_its_number_of_classes_and_image_size(tmp_path):
    for name, size in (("small_resnet", 32), ("presnet18", 64)):
        network, x = build(name, 7, size).eval(), torch.rand(2, 3, size, size)
        torch.save(network.state_dict(), tmp_path / "bare.pt")
        assert torch.equal(load_model(tmp_path / "bare.pt")(x), network(x))
    assert load_model(tmp_path / "bare.pt", model="presnet18", num_classes=7)(x).shape == (2, 7)


def test_networks_of_the_user_load_and_do_not_prevent_that_of_others(tmp_path, monkeypatch):
    class HeadFirst(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]  # impossible without memory
            self.head = nn.Linear(4, classes)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    def unbiased(classes):
        return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, classes, bias=False))

    networks = {"first": HeadFirst, "unbiased": unbiased}
    monkeypatch.setattr("models.MODELS", networks | MODELS)
    monkeypatch.setattr("models.weights.MODELS", networks | MODELS)
    monkeypatch.setattr("engine.networks.MODELS", networks | MODELS)
    for name, make in networks.items():
        network = make(3).eval()
        content = {"net": network.state_dict(), "model": name, "image_size": 8, "classes": ["a", "b", "c"]}
        torch.save(content, tmp_path / "own.pth")
        assert torch.equal(load_model(tmp_path / "own.pth")(X), network(X))
    torch.save(build("small_resnet", 7).state_dict(), tmp_path / "other.pth")
    assert load_model(tmp_path / "other.pth")(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_a_file_that_does_not_fit_is_one_clear_error(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "strange.pth")
    for arguments, message in (
        ((tmp_path / "none.pth",), "cannot be read"),
        ((tmp_path / "strange.pth",), "model: required"),
        ((INCLUDED, "resnet18"), "model resnet18: .* contains small_resnet"),
        ((INCLUDED, None, 7), "has 10 classes, not 7"),
    ):
        with user_error(message):
            load_model(*arguments)


# Evaluating.


@pytest.mark.parametrize("judge", ["every", "last"])
def test_it_gives_the_accuracies_of_the_command_line(judge, tmp_path, run):
    save_network(tmp_path / "net.pth")
    flags = "--dataset Digits --image_size 16 --limit_test 40 --bs 16 --seed 3 --eps 0.02 --no-pictures"
    attacks = "clean,fgsm,pgd,pgd_trades,cw"
    run("main_eval.py", f"{flags} --attacks {attacks} --judge {judge} --model_path net.pth")
    (evaluation,) = read_evaluations(results_path("net.pth"))
    test = subset(load("Digits", image_size=16).test, 40, TEST_SUBSET_SEED)
    images = test.images.float() / 255
    options = {"eps": 0.02, "attacks": attacks, "batch_size": 16, "seed": 3, "judge": judge}
    report = evaluate(load_model("net.pth"), images, test.labels, **options)
    assert list(report) == list(evaluation["figures"]) and len(report) == 6
    for title, result in evaluation["figures"].items():
        assert report[title].accuracy == result["accuracy"] and report[title].correct == result.get("correct", "")
    assert report.to_dict()["PGD-20"]["parameters"] == evaluation["figures"]["PGD-20"]["parameters"]
    assert re.search(r"^PGD-20 +\d+\.\d\d %  \(n 40; epsilon 5.1/255, 20 steps, ", str(report), re.M)


def test_the_model_and_the_state_of_pytorch_are_restored_and_the_result_is_plain(monkeypatch):
    monkeypatch.setattr("attacks.libraries.STANDARD", {"APGD-CE": "apgd-ce"})  # the others are slow
    net, x, y = trained_on_stripes(n=40)
    net.train().requires_grad_(True).zero_grad()
    net.bn1.eval()
    net.conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random_state, x = torch.get_rng_state(), x.to(memory_format=torch.channels_last)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    report = evaluate(net, x, y, eps=np.float32(0.02), attacks=["clean", "pgd", "aa"], steps=3, restarts=2)
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.float64, "medium")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report["PGD-3"].n == 40 and "2 restarts" in report["PGD-3"].settings
    assert net.training and net.bn2.training and not net.bn1.training
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["conv1.weight"]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_interruption_and_the_context_of_the_caller_change_nothing(monkeypatch):
    model, dtype = linear(10), torch.get_default_dtype()
    with torch.inference_mode(), torch.device("meta"):
        assert evaluate(model, X, Y, eps=0.5, attacks="fgsm,pgd")["PGD-20"].n == 4
    monkeypatch.setattr("engine.evaluation.evaluate.run_attacks", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, X, Y)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert torch.get_default_dtype() is dtype and torch.is_grad_enabled()


def linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


X, Y = torch.rand(4, 3, 8, 8), torch.arange(4)
CONSTANT = Function(lambda x: torch.eye(10)[:1] + 0 * x.detach().flatten(1)[:, :10])  # predicts class 0


@pytest.mark.parametrize("attack", ["pgd", pytest.param("aa", marks=pytest.mark.slow)])
def test_attacks_in_bfloat16_find_what_attacks_in_float32_find(attack, monkeypatch):
    monkeypatch.setattr("attacks.libraries.STANDARD", {"APGD-CE": "apgd-ce"})  # the others are slow
    net, x, y = trained_on_stripes(n=500)
    correct = []
    for precision in ("fp32", "bf16"):
        result, *_ = evaluate(net, x, y, attacks=attack, precision=precision).values()
        correct.append(result.correct.count("1"))
    # Other seeds of the starts give 206 to 214 under PGD in float32.
    assert 100 < correct[0] < 400 and abs(correct[0] - correct[1]) <= 5


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_model_that_cannot_be_copied_is_attacked_itself(monkeypatch, caplog):
    monkeypatch.setattr("attacks.libraries.STANDARD", {"APGD-CE": "apgd-ce"})
    model = linear(10)
    y = model(X).argmax(1)
    types = map(Function, (Tensor.float, Tensor.double, Tensor.bfloat16))
    others = [nn.Sequential(deepcopy(model), each) for each in types]
    others[0].lock, others[1].features = threading.Lock(), [model(X)]
    expected = evaluate(model, X, y, eps=0.02, attacks="pgd,aa")
    for other in (*others, torch.jit.script(model)):
        report = evaluate(other, X, y, eps=0.02, attacks="pgd,aa")
        assert [row.correct for row in report.values()] == [row.correct for row in expected.values()]
        assert other.training
    assert caplog.text.count("attacks cannot use a folded copy") >= 2


def test_a_model_whose_copy_fails_in_bfloat16_is_attacked_in_float32(caplog):
    normed, stems = TinyNet(), nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)])
    stems.forward = lambda x: sum(stem(x) for stem in stems)
    nn.utils.parametrizations.weight_norm(normed.conv1)
    for model, failures in ((normed, 0), (nn.Sequential(stems, nn.Flatten(), nn.Linear(144, 10)), 1)):
        y = model.eval()(X).argmax(1)
        expected, report = (evaluate(model, X, y, attacks="pgd", precision=name) for name in ("fp32", "bf16"))
        assert report["PGD-20"].correct == expected["PGD-20"].correct
        assert caplog.text.count("attacks cannot use a folded bfloat16 copy") == failures


def test_gradients_of_nan_and_logits_that_are_random_or_depend_on_the_batch_are_reported(caplog):
    evaluate(nn.Sequential(Function(lambda x: x + (0 * x).sqrt()), linear(10)), X, Y, attacks="clean")
    assert "gradients of the loss are nan" in caplog.text
    evaluate(net := TinyNet(), X, Y, attacks="clean")
    net.bn1 = nn.BatchNorm2d(4, track_running_stats=False)
    for count, model in enumerate((net, nn.Sequential(linear(10), Function(nn.functional.dropout)))):
        assert caplog.text.count("the logits of an image are random or change with the other images") == count
        evaluate(model, X, Y, attacks="clean")
    assert caplog.text.count("the logits of an image are random or change with the other images") == 2


REFUSED = {
    "images: must be in [0, 1], not in [0, 255]": {"images": torch.tensor([0.0, 255.0]).expand(4, 3, 8, 2)},
    "images: must be float32, not torch.uint8": {"images": X.byte()},
    "images: must be a tensor, not a ndarray": {"images": X.numpy()},
    "images: must have shape (N, C, H, W) with N > 0, not (3, 8, 8)": {"images": X[0]},
    "images: must have shape (N, C, H, W) with N > 0, not (4, 3, 0, 8)": {"images": X[:, :, :0]},
    "images: must be in [0, 1], not in [nan, nan]": {"images": X * torch.nan},
    "labels: must be a tensor, not a list": {"labels": Y.tolist()},
    "labels: must be an integer tensor of shape (4,)": {"labels": Y[:3]},
    "labels: must be between 0 and 9; the model has 10 classes": {"labels": Y + 7},
    "--eps 8.0: must be between 0 and 1, for example 8/255": {"eps": 8},
    "--restarts 0: must be between 1 and 1000": {"restarts": 0},
    "attacks pgdd: unknown name; nearest: pgd": {"attacks": "pgdd"},
    "model: the network's logits are nan or inf": {"model": nn.Sequential(linear(10), nn.Threshold(9, torch.nan))},
    "model: must return one tensor of logits": {"model": nn.Sequential(nn.Flatten(), nn.LSTM(192, 10))},
    "model: must return one tensor of logits, of shape (N, classes)": {
        "model": nn.Sequential(linear(1), nn.Flatten(0))
    },
    "--precision tf32: requires a GPU": {"precision": "tf32"},
    "--precision half: must be one of auto, fp32, tf32, bf16": {"precision": "half"},
    "model: must be an nn.Module, not a function": {"model": lambda x: x},
    "model: fails on a float32 image of shape (1, 3, 8, 8): mat1 and mat2": {"model": linear(10).double()},
    "model: is on the device meta, without weights": {"model": linear(10).to("meta")},
    "model: changes its images in place": {"model": nn.Sequential(nn.Threshold(0.9, 0.0, inplace=True), linear(10))},
    "model: its logits have no gradient in the images": {"model": CONSTANT, "labels": 0 * Y, "attacks": "pgd"},
    "attacks: AutoAttack requires at least 4 classes, not 2": {"model": linear(2), "labels": Y % 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_argument_is_a_value_error_of_one_sentence(message):
    arguments = {"model": linear(10), "images": X, "labels": Y}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        evaluate(**arguments | REFUSED[message])
    assert "\n" not in str(error.value)


# Training, and the page.


def test_a_recipe_keeps_the_fields_that_are_set(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("engine.training.run.train", lambda config, given: seen.update(given=given) or tmp_path)
    assert train(TrainConfig(method="TRADES", recipe="paper", epochs=3)) == tmp_path
    assert seen["given"] == dict.fromkeys(("method", "recipe", "epochs"), "flag")


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(snippets) == 3
    small = {"(20": "(4", "epochs=1": "epochs=1, limit_train=32, limit_test=20"}
    names = {}
    for snippet in snippets:
        for text, replacement in small.items():
            snippet = snippet.replace(text, replacement)
        exec(compile(snippet, "docs/api.md", "exec"), names)
    assert set(names["saved"]) == {"Clean", "PGD-20", "AutoAttack", "worst case"}
    log = (names["folder"] / "log.txt").read_bytes()
    names["train"](TrainConfig(**asdict(names["config"]) | {"desc_str": "again", "limit_train": 32, "limit_test": 20}))
    assert (names["folder"] / "log.txt").read_bytes() == log, "each run has its own log"
    assert names["folder"].is_dir() and names["model"](torch.rand(1, 3, 16, 16)).shape == (1, 10)
