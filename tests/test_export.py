"""An export loads back in its target with the checkpoint's logits and results; a failed one changes nothing."""

import errno
import hashlib
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import user_error
from run_files import contents
from safetensors.torch import load_model
from small_sets import IMAGES

import engine.export
from engine.evaluation.records import results_path
from engine.export import ARCHITECTURES, ExportConfig, export
from models import MODELS, build, weights
from models.hub import load_folder
from models.weights import load_network

NAME = "Doe2026Distil"
FILES = {f"{NAME}.pt", f"model_info/cifar10/Linf/{NAME}.json"}
FILES |= {"hub/config.json", "hub/model.safetensors", "hub/README.md"}
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def checkpoint(network, tmp_path):
    metadata = {"model": "small_resnet", "dataset": "CIFAR10", "image_size": 32, "classes": CLASSES}
    torch.save({"net": network.state_dict(), **metadata}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(path, out, name=NAME, **flags):
    export(ExportConfig(str(path), name, str(out), **flags))
    return out


def evaluate(checkpoint, *evaluations):
    """Keep evaluations of (conditions, results) beside a checkpoint, as main_eval.py does."""
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    conditions = {"sha256": sha256, "dataset": "CIFAR10", "eps": 8 / 255}
    entries = [{"conditions": conditions | theirs, "figures": results} for theirs, results in evaluations]
    results_path(checkpoint).parent.mkdir(exist_ok=True)
    results_path(checkpoint).write_text(json.dumps({"evaluations": entries}))


def model_info(folder, dataset="cifar10"):
    return json.loads((folder / "model_info" / dataset / "Linf" / f"{NAME}.json").read_text())


def test_both_formats_return_the_checkpoints_logits(network, checkpoint, out, caplog):
    caplog.set_level("INFO")
    run(checkpoint, out)
    assert {file for file, content in contents(out).items() if content is not None} == FILES
    assert all(str(out / file) in caplog.text for file in FILES)
    strict = build("small_resnet", 10)
    strict.load_state_dict(torch.load(out / f"{NAME}.pt", weights_only=True))
    loaded = {
        "strictly": strict.eval(),
        "by our reader": load_network("small_resnet", 10, out / f"{NAME}.pt").eval(),
        "folder": load_folder(out / "hub"),
        "weights of the folder": load_network("small_resnet", 10, out / "hub" / "model.safetensors").eval(),
    }
    for name, model in loaded.items():
        assert torch.equal(model(IMAGES), network(IMAGES)), name


class PyTorchModelHubMixin:
    """What that of huggingface_hub does with a folder."""

    @classmethod
    def from_pretrained(cls, folder):
        model = cls(**json.loads(Path(folder, "config.json").read_text()))
        load_model(model, f"{folder}/model.safetensors", strict=True)
        return model.eval()


def test_the_model_card_loads_its_folder_with_huggingface_hub(network, checkpoint, out, monkeypatch):
    folder = run(checkpoint, out) / "hub"
    library = SimpleNamespace(PyTorchModelHubMixin=PyTorchModelHubMixin)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    card = (folder / "README.md").read_text()
    code = re.search("```python\n(.*?)```", card, re.DOTALL)[1]
    variables = {}
    exec(code.replace(f"USER/{NAME}", str(folder)), variables)
    assert torch.equal(variables["network"](IMAGES), network(IMAGES))
    assert ", ".join(CLASSES) in card and "None" not in card


def shrink(name, monkeypatch):
    """Make a wide network one of fewer and narrower blocks."""
    if name.startswith("wide"):
        make = MODELS[name]
        monkeypatch.setitem(MODELS, name, partial(make.func, **make.keywords | {"depth": 10, "width": 1}))
        monkeypatch.setattr(weights, "_layout", weights._layout.__wrapped__)  # not of the cache


def test_a_network_is_exported_with_its_public_name_or_its_own_and_its_size(out, tmp_path, monkeypatch):
    assert ARCHITECTURES.keys() <= MODELS.keys()
    saved, images = build("presnet18", 200, 64).eval(), torch.rand(2, 3, 64, 64)
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    assert torch.equal(load_folder(run(tmp_path / "net.pt", out, dataset="Tiny_Image") / "hub")(images), saved(images))
    assert model_info(out, "tiny_image")["architecture"] == "PreActResNet-18"
    monkeypatch.delitem(ARCHITECTURES, "presnet18")  # like a network that the user adds
    run(tmp_path / "net.pt", out, dataset="Tiny_Image")
    assert model_info(out, "tiny_image")["architecture"] == "presnet18"


@pytest.mark.parametrize(
    ("name", "model", "architecture"),
    [
        ("small_resnet", "small_resnet", "SmallResNet"),
        ("wideresnet70_16_deepmind", "wideresnet70_16", "WideResNet-70-16"),  # its layout under the common name
    ],
)
def test_normalization_in_the_file_is_exported(name, model, architecture, out, monkeypatch, tmp_path):
    shrink(name, monkeypatch)
    torch.save({"mean": MEAN, "std": STD, **build(name, 10).state_dict()}, tmp_path / "normalized.pt")
    expected = load_network(name, 10, tmp_path / "normalized.pt").eval()(IMAGES)
    run(tmp_path / "normalized.pt", out, model=model)
    assert torch.equal(load_network(name, 10, out / f"{NAME}.pt").eval()(IMAGES), expected)
    assert torch.equal(load_folder(out / "hub")(IMAGES), expected)
    assert model_info(out)["architecture"] == architecture


CLEAN, ROBUST = {"accuracy": 46.5, "n": 500}, {"accuracy": 21.0, "n": 100}
BOTH = {"Clean": CLEAN, "AutoAttack": ROBUST}
FOOTNOTE = "Clean on 500 test images, AutoAttack on 100 test images"


def test_model_info_has_the_fields_and_types_of_published_entries(checkpoint, out, caplog):
    results = {"Clean": {"accuracy": 87.5849, "n": 10_000}, "AutoAttack": {"accuracy": 51.3, "n": 10_000}}
    evaluate(checkpoint, ({}, results))
    paper = {"authors": "Doe", "venue": "ICML 2026", "link": "https://doe.org", "reported": "51"}
    run(checkpoint, out, title="Distillation", **paper)
    expected = {"additional_data": False, "number_forward_passes": 1, "dataset": "cifar10", "unreliable": False}
    expected |= {"architecture": "SmallResNet", "eps": "8/255", "clean_acc": "87.58", "autoattack_acc": "51.30"}
    assert model_info(out) == expected | paper | {"name": "Distillation", "footnote": ""}
    assert "main_eval" not in caplog.text
    card = (out / "hub" / "README.md").read_text()
    assert all(text in card for text in ("87.58", "51.30", "10000", "8/255", "Distillation", "https://doe.org"))


RESULTS = {
    "newest": ([({}, BOTH | {"Clean": ROBUST}), ({}, BOTH)], ("46.50", "21.00", "8/255", FOOTNOTE)),
    "with AutoAttack": ([({"eps": 4 / 255}, BOTH), ({}, {"Clean": CLEAN})], ("46.50", "21.00", "4/255", FOOTNOTE)),
    "only clean": ([({}, {"Clean": {"accuracy": 46.5, "n": 10_000}, "PGD-20": ROBUST})], ("46.50", "", "8/255", "")),
}
OTHER = {"sha256": "0" * 64, "dataset": "Digits", "image_size": 16, "weights": "raw", "normalize": "cifar10"}
RESULTS |= {f"another {key}": ([({key: value}, BOTH)], ("", "", "8/255", "")) for key, value in OTHER.items()}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_are_those_kept_beside_the_checkpoint(kind, checkpoint, out, caplog):
    caplog.set_level("INFO")
    evaluations, expected = RESULTS[kind]
    evaluate(checkpoint, *evaluations)
    run(checkpoint, out)
    info = model_info(run(checkpoint, out))  # replaces the first
    assert tuple(info[key] for key in ("clean_acc", "autoattack_acc", "eps", "footnote")) == expected
    hint = f"python main_eval.py --dataset CIFAR10 --model_path {checkpoint} --attacks clean,aa"
    assert caplog.text.count(hint) == 2 * ("" in expected[:2])


def refused(message, path, out, **options):
    with user_error(message):
        run(path, out, **options)
    assert not out.exists()


@pytest.mark.parametrize("content", [{}, {"model": "robustbench:Doe2020"}])
def test_networks_are_identified_by_their_keys(content, network, out, tmp_path):
    torch.save({"net": network.state_dict()} | content, tmp_path / "net.pt")
    assert model_info(run(tmp_path / "net.pt", out, dataset="Folder"), "folder")["architecture"] == "SmallResNet"


FLAGS = {
    "--model resnet18: .* contains a small_resnet": {"model": "resnet18"},
    "--model resnet81: unknown name; nearest: resnet18": {"model": "resnet81"},
    "--dataset CIFAR100: .*best.pth was trained on CIFAR10": {"dataset": "CIFAR100"},
    "--name: required": {"name": ""},
}
FLAGS |= {f"--name {re.escape(n)}: .*Name2026Word": {"name": n} for n in ("a/b", "../a", "..", ".a", "a\\b", "x" * 300)}


@pytest.mark.parametrize("message", FLAGS)
def test_invalid_flags_are_refused(message, checkpoint, out):
    refused(message, checkpoint, out, **FLAGS[message])


def test_files_that_cannot_be_exported(network, out, tmp_path):
    state, other = network.state_dict(), {"encoder.weight": torch.rand(3, 3)}
    cases = {
        "unknown": ({"net": other}, "--model: ", {}),
        "named": ({"net": other}, "another network", {"model": "small_resnet", "dataset": "Folder"}),
        "zoo": ({"net": other, "model": "robustbench:Doe2020"}, "zoo.pth: contains robustbench:Doe2020", {}),
        "classes": (state, "classes.pth: has 10 classes, not 100", {"dataset": "CIFAR100"}),
        "nan": (state | {"bn1.weight": torch.full((24,), float("nan"))}, "nan.pth: its logits are nan or inf", {}),
        "evil": ({"net": state, "dataset": "../../evil"}, "evil.pth: states the unknown dataset", {}),
    }
    for name, (content, message, flags) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        refused(message, tmp_path / f"{name}.pth", out, **flags)


BLOCKED = [(file, "Not a directory") for file in ("x", "model_info/cifar10/x")]
BLOCKED += [(f"{NAME}.pt", "is a folder"), ("hub/README.md", "is a folder"), ("hub/old", "No space left on device")]


@pytest.mark.parametrize(("path", "message"), BLOCKED)
def test_a_blocked_path_or_a_full_disk_is_an_error_and_nothing_is_written(path, message, checkpoint, out, monkeypatch):
    blocked = out / path
    if message == "Not a directory":
        blocked.parent.parent.mkdir(parents=True, exist_ok=True)
        blocked.parent.write_text("in the way")
    else:
        blocked.mkdir(parents=True)
    if message.startswith("No space"):
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, message)))
    before = contents(out)
    with user_error(f"--out .*({message}|File exists)"):
        run(checkpoint, out)
    assert contents(out) == before


def test_nothing_is_written_if_a_format_returns_other_logits(checkpoint, out, monkeypatch):
    monkeypatch.setattr(engine.export, "load_folder", lambda folder: build("small_resnet", 10).eval())
    with pytest.raises(RuntimeError, match=r"hub: the file returns other logits"):
        run(checkpoint, out)
    assert not out.exists() or not contents(out)
