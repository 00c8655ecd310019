"""Checkpoints: every layout is read, every other file is refused in one line; teachers are found or asked for."""

import os
import subprocess
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from torch import nn

from models import MODELS, build
from models.deepmind_wide_resnet import DeepMindWideResNet
from models.normalized import Normalized
from models.teachers import TEACHERS, load_teacher
from models.weights import load_network, load_weights, read_state_dict, recognise
from models.wide_resnet import WideResNet
from utils.errors import UserError

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    trained = build("small_resnet", 10)
    trained(IMAGES)  # running statistics of its own
    return trained.eval()


def same(one, other) -> bool:
    return torch.equal(one.eval()(IMAGES), other.eval()(IMAGES))


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


LAYOUTS = {
    "bare": lambda state: state,
    "net": lambda state: {"net": state, "clean_acc": 83.1, "PGD10_acc": 51.0, "epoch": 180},
    "state_dict": lambda state: {"state_dict": prefixed("module.", state), "optimizer": {"state": {}}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "model": lambda state: {"model": prefixed("model.", state)},
    "nested": lambda state: {"state_dict": {"model": state}},
    "student": lambda state: {"student": prefixed("module.", state), "optimizer": {}},
    "module.": lambda state: prefixed("module.", state),
    "_orig_mod.module.": lambda state: prefixed("_orig_mod.module.", state),
    "module.model.": lambda state: prefixed("module.model.", state),
    "student beside teacher": lambda state: prefixed("student.", state) | prefixed("teacher.", state),
    "weight average": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    "before num_batches_tracked": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "ours": lambda state: {
        "net": state,
        "clean_acc": 83.1,
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "rng": {"torch": torch.get_rng_state(), "python": (3, (1, 2, 3), None)},
        "config": {"dataset": "CIFAR10", "milestones": None, "epochs": 200},
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(network, layout, legacy, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    content = LAYOUTS[layout](network.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_weights(build("small_resnet", 10), path)
    assert same(loaded, network)


def test_safetensors(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    assert same(load_weights(build("small_resnet", 10), tmp_path / "model.safetensors"), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(network, dtype, tmp_path):
    torch.save(
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}, tmp_path / "h"
    )
    state = read_state_dict(tmp_path / "h")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(state["linear.weight"], network.linear.weight.detach(), rtol=0.01, atol=0.001)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("in_network", [False, True])
def test_sub_block1_may_be_on_either_side(in_file, in_network, tmp_path):
    saved = WideResNet(10, depth=10, width=1, sub_block1=in_file)
    torch.save(saved.state_dict(), tmp_path / "wide.pt")
    assert same(load_weights(WideResNet(10, depth=10, width=1, sub_block1=in_network), tmp_path / "wide.pt"), saved)


NORMALISING = {
    "mu and sigma beside": lambda s: {**s, "mu": MEAN.view(1, 3, 1, 1), "sigma": STD.view(1, 3, 1, 1)},
    "mean and std around": lambda s: {"mean": MEAN, "std": STD, **prefixed("model.", s)},
    "normalize": lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **prefixed("model.", s)},
    "normalize beside": lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **s},
    "sequential": lambda s: {"0.mean": MEAN, "0.std": STD, **prefixed("1.", s)},
    "parallel": lambda s: {"state_dict": prefixed("module.", {"0.mean": MEAN, "0.std": STD, **prefixed("1.", s)})},
}


@pytest.mark.parametrize("layout", NORMALISING)
def test_normalisation_in_the_file_is_honoured_and_kept(network, layout, tmp_path):
    torch.save(NORMALISING[layout](network.state_dict()), tmp_path / "normalised.pt")
    loaded = load_weights(build("small_resnet", 10), tmp_path / "normalised.pt").eval()
    with torch.no_grad():
        expected = network((IMAGES - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    torch.testing.assert_close(loaded(IMAGES), expected)

    torch.save({"net": loaded.state_dict()}, tmp_path / "again.pt")
    assert same(load_weights(build("small_resnet", 10), tmp_path / "again.pt"), loaded)
    assert same(load_weights(loaded, tmp_path / "again.pt"), loaded)


def test_a_file_without_normalisation_removes_it(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    assert same(load_weights(Normalized(build("small_resnet", 10), MEAN, STD), tmp_path / "plain.pt"), network)


def test_deepmind_file_under_the_common_name(monkeypatch, tmp_path):
    small = partial(DeepMindWideResNet, depth=10, width=1)
    monkeypatch.setitem(MODELS, "wideresnet70_16_deepmind", small)
    saved = small(100)
    torch.save(saved.state_dict(), tmp_path / "deepmind.pt")
    assert same(load_network("wideresnet70_16", 100, tmp_path / "deepmind.pt"), saved)


def test_deepmind_network_normalises_once_with_the_files_numbers(tmp_path):
    saved = DeepMindWideResNet(10, depth=10, width=1)
    saved.mean, saved.std = MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1)
    torch.save({**saved.state_dict(), "mean": saved.mean, "std": saved.std}, tmp_path / "first.pt")
    loaded = load_weights(DeepMindWideResNet(10, depth=10, width=1), tmp_path / "first.pt")
    assert same(loaded, saved)
    torch.save(loaded.state_dict(), tmp_path / "again.pt")
    assert same(load_weights(DeepMindWideResNet(10, depth=10, width=1), tmp_path / "again.pt"), saved)


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def refusal(call, path) -> str:
    with pytest.raises(UserError) as caught:
        call(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_and_not_run(network, legacy, tmp_path):
    content = {"net": network.state_dict(), "extra": Bomb(str(tmp_path / "ran"))}
    torch.save(content, tmp_path / "bomb.pth", _use_new_zipfile_serialization=not legacy)
    assert "mkdir" in refusal(read_state_dict, tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_network_is_refused_by_its_class(network, tmp_path):
    torch.save({"net": network}, tmp_path / "module.pth")
    assert "models.small.SmallResNet" in refusal(read_state_dict, tmp_path / "module.pth")


BYTES = {
    "empty": (b"", "empty"),
    "page.html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44\n", "git-lfs pointer"),
    "notes.txt": (b"accuracy 83.1\n", "not a PyTorch checkpoint"),
    "noise": (bytes(range(7, 250)) * 9, "not a PyTorch checkpoint"),
    "noise.safetensors": (bytes(range(7, 250)) * 9, "damaged"),
}


@pytest.mark.parametrize("name", BYTES)
def test_other_files_are_named_for_what_they_are(name, tmp_path):
    content, reason = BYTES[name]
    (tmp_path / name).write_bytes(content)
    assert reason in refusal(read_state_dict, tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in refusal(read_state_dict, tmp_path / "absent.pth")
    assert "directory" in refusal(read_state_dict, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_truncated_file(network, kind, kept, tmp_path):
    path = tmp_path / f"cut.{kind}"
    if kind == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    os.truncate(path, int(kept * path.stat().st_size))
    assert "truncated" in refusal(read_state_dict, path)


@pytest.mark.parametrize("content", [{"epoch": 3, "net": {}}, [torch.ones(2)], torch.ones(2), {"net": {0: 1}}])
def test_file_without_weights(content, tmp_path):
    torch.save(content, tmp_path / "log.pth")
    assert "no weights" in refusal(read_state_dict, tmp_path / "log.pth")


def test_half_a_normalisation_is_refused(network, tmp_path):
    torch.save({**network.state_dict(), "mean": MEAN}, tmp_path / "half.pth")
    assert "mean" in refusal(read_state_dict, tmp_path / "half.pth")


def test_another_network_is_refused_with_the_first_keys_that_differ(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "small.pth")
    text = refusal(partial(load_network, "resnet18", 10), tmp_path / "small.pth")
    assert "file has layers.0.conv1.weight" in text and "network has layer1.0.conv1.weight" in text
    torch.save(build("presnet18", 10, 64).state_dict(), tmp_path / "tiny.pth")
    text = refusal(partial(load_network, "presnet18", 10), tmp_path / "tiny.pth")
    assert "linear.weight" in text and "2048" in text and "512" in text


def test_another_class_count_is_refused_with_both(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "ten.pth")
    text = refusal(partial(load_network, "small_resnet", 100), tmp_path / "ten.pth")
    assert "10 classes" in text and "100" in text


@pytest.mark.parametrize("place", ["teacher_models/CIFAR10/small_resnet/robust_teacher.pth", "given.pth"])
def test_teacher_is_frozen_and_found(network, place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": network.state_dict()}, file)
    teacher = load_teacher("small_resnet", "CIFAR10", 10, "given.pth" if place == "given.pth" else None)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher(IMAGES), network(IMAGES))


@pytest.mark.parametrize(
    ("name", "dataset", "place", "classes"),
    [
        ("Chen2021LTD_WRD34_20", "CIFAR10", "teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt", 10),
        ("Chen2021WRN34_10", "CIFAR100", "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt", 100),
        ("Chen2021LTD_WRN34_10", "CIFAR10", "models/cifar10/Linf/Chen2021LTD_WRN34_10.pt", 10),
        ("Chen2021LTD_WRN34_10", "CIFAR100", "models/cifar100/Linf/Chen2021LTD_WRN34_10.pt", 100),
        ("wideresnet34_10", "CIFAR10", "teacher_models/CIFAR10/wideresnet34_10/robust_teacher.pth", 10),
        ("presnet18", "Tiny_Image", "teacher_models/TinyImageNet/TRADES/best_PGD10_acc_model.pth", 200),
    ],
)
def test_official_places_are_looked_at(name, dataset, place, classes, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()  # found, and refused for being empty: no need for 184 million parameters
    with pytest.raises(UserError, match=f"^{place}: the file is empty"):
        load_teacher(name, dataset, classes)


@pytest.mark.parametrize(
    ("name", "dataset", "place", "command"),
    [
        (
            "wideresnet34_10",
            "CIFAR10",
            "teacher_models/CIFAR10/wideresnet34_10/robust_teacher.pth",
            "python main.py --dataset CIFAR10 --method AT --model wideresnet34_10",
        ),
        (
            "Chen2021LTD_WRN34_20",
            "CIFAR100",
            "models/cifar100/Linf/Chen2021LTD_WRN34_20.pt",
            "python main.py --dataset CIFAR100 --method AT --model wideresnet34_20",
        ),
        (
            "presnet18",
            "Tiny_Image",
            "teacher_models/TinyImageNet/TRADES/best_PGD10_acc_model.pth",
            "python main_tiny.py --dataset Tiny_Image --method AT --model presnet18",
        ),
    ],
)
def test_missing_teacher_says_where_it_looked_and_how_to_train_one(
    name, dataset, place, command, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_teacher(name, dataset, 10)
    text = str(caught.value)
    assert text.startswith(f"--teacher_model {name}: ") and "\n" not in text
    assert place in text and f"{command} (then --teacher_path" in text and "--teacher_path FILE" in text


def test_unknown_teacher():
    with pytest.raises(UserError, match=r"--teacher_model wideresnet34_11: .*nearest: wideresnet34_10"):
        load_teacher("wideresnet34_11", "CIFAR10", 10)


def test_manifest_is_printed_with_what_is_present(tmp_path):
    present = tmp_path / "models/cifar10/Linf/Chen2021LTD_WRN34_20.pt"
    present.parent.mkdir(parents=True)
    present.touch()
    done = subprocess.run(
        [sys.executable, "-m", "models.teachers"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + sum(len(datasets) for datasets in TEACHERS.values())
    assert [line for line in lines if line.endswith("Linf/Chen2021LTD_WRN34_20.pt") and "absent" not in line]
    assert all(teacher.architecture in MODELS for datasets in TEACHERS.values() for teacher in datasets.values())


def test_a_wrapped_network_has_no_hidden_statistics():
    wrapped = Normalized(nn.Flatten(), MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1))
    assert list(wrapped.state_dict()) == ["mean", "std"]


def test_robustbench_network_from_its_cache_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "robustbench", None)  # as if it were not installed
    name = "robustbench:Chen2021LTD_WRN34_10"
    with pytest.raises(UserError, match=r"no file at models/cifar100/Linf/Chen2021LTD_WRN34_10.pt: put it there"):
        load_teacher(name, "CIFAR100", 100)
    other = tmp_path / "models/cifar10/Linf/Other.pt"
    other.parent.mkdir(parents=True)
    torch.save(nn.Linear(3, 10).state_dict(), other)
    with pytest.raises(UserError, match=r"robustbench:Other: .*Other.pt is none of the networks .*install"):
        load_teacher("robustbench:Other", "CIFAR10", 10)
    torch.manual_seed(0)
    published = build("wideresnet34_10", 100)
    place = tmp_path / "models/cifar100/Linf/Chen2021LTD_WRN34_10.pt"
    place.parent.mkdir(parents=True)
    torch.save({"state_dict": prefixed("model.", published.state_dict())}, place)
    assert same(load_teacher(name, "CIFAR100", 100), published)


def test_robustbench_network_through_the_package(monkeypatch):
    asked = []
    network = build("small_resnet", 10)

    def load_model(name, dataset, threat_model):
        asked.append((name, dataset, threat_model))
        return network

    package, module = ModuleType("robustbench"), ModuleType("robustbench.utils")
    module.load_model = load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", module)
    assert load_teacher("robustbench:Any2026Network", "CIFAR10", 10) is network
    assert asked == [("Any2026Network", "cifar10", "Linf")]


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenetV2", "vgg16", "wideresnet34_10", "presnet18"])
def test_a_network_is_recognised_by_its_keys_and_shapes(name, tmp_path):
    path = tmp_path / "some.pt"
    torch.save({"state_dict": prefixed("module.", build(name, 7).state_dict())}, path)
    assert recognise(path) == name
