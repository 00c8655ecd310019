"""Checkpoints: every layout is loaded, every other file is refused in one line; teachers are found or reported."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import re
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from conftest import user_error
from safetensors.torch import save_file
from small_sets import IMAGES, MARKER, Bomb, robustbench_package
from torch import nn

from models import MODELS, build, robustbench, teachers
from models.checkpoint_file import decode
from models.deepmind_wide_resnet import DeepMindWideResNet
from models.pickle_protocol import in_protocol_2
from models.teachers import load_teacher
from models.weights import Checkpoint, identify, load_network, load_weights
from models.wide_resnet import WideResNet

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def same(one, other) -> bool:
    return torch.equal(one.eval()(IMAGES), other.eval()(IMAGES))


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def changed(state):
    """Other weights of the same network."""
    return {key: value + 1 if key == "linear.weight" else value for key, value in state.items()}


def parameters(state):
    return {key: value for key, value in state.items() if "running" not in key and "num_batches" not in key}


LAYOUTS = {
    "bare": lambda state: state,
    "net": lambda state: {"net": state, "clean_acc": 83.1, "PGD10_acc": 51.0, "epoch": 180},
    "state_dict": lambda state: {"state_dict": prefixed("module.", state), "optimizer": {"state": {}}},
    "nested": lambda state: {"state_dict": {"model": state}},
    "one in a list": lambda state: {"models": [state]},
    "teacher beside it": lambda state: {"student": prefixed("module.", state), "teacher": changed(state)},
    "student and teacher": lambda state: prefixed("student.", state) | prefixed("teacher.", changed(state)),
    "teacher by its letter": lambda state: {"model_s": state, "model_t": changed(state)},
    "classifier of another name": lambda s: {k.replace("linear.", "fc."): v for k, v in s.items()},
    "classifier outside": lambda s: {k if "linear" in k else f"encoder.{k}": v for k, v in s.items()},
    "profiled": lambda s: s | {f"{k.rpartition('.')[0]}.total_ops": torch.zeros(1) for k in s},
    "arrays": lambda s: {"net": {key: value.numpy() for key, value in s.items()}},
    "model and attacker": lambda s: {"model": prefixed("module.model.", s) | prefixed("module.attacker.", changed(s))},
    "first known key": lambda state: {"net": state, "peer": changed(state)},
    "weight average": lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
    "PyTorch 0.4.0": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "scalars of one dimension": lambda state: {k: v if v.ndim else v.view(1) for k, v in state.items()},
    "copies that share their values": lambda s: {f"{copy}.{k}": v for copy in "abcdefgh" for k, v in s.items()},
    "criterion and metrics": lambda state: {
        "state_dict": prefixed("net.model.", state)
        | {"criterion.weight": torch.ones(10), "train_acc.total": torch.tensor(5), "val_metric.mean": torch.ones(1)}
    },
    "average and raw": lambda s: {"net": s, "net_raw": changed(s)},
    "ADR": lambda s: {"net": s, "method_state": {"average": changed(s), "steps": 3}},
    "ADR, average and raw": lambda s: {"net": s, "net_raw": changed(s), "method_state": {"average": changed(s)}},
    "unaveraged": lambda s: {
        "model_state_dict": prefixed("module.0.", s),
        "unaveraged_model_state_dict": prefixed("module.0.", changed(s)),
    },
    "EMA of a module": lambda s: {"state_dict": prefixed("model.", changed(s)) | prefixed("ema_model.module.", s)},
    "EMA of timm": lambda s: {"state_dict": changed(s), "state_dict_ema": s, "optimizer": {"momentum": changed(s)}},
    "EMA of parameters": lambda s: {"state_dict": changed(s), "ema": {"shadow": parameters(s), "decay": 0.999}},
    **{
        f"{prefix}*": partial(prefixed, prefix)
        for prefix in ("module.", "_orig_mod.module.", "backbone.", "module.0.", "a.b.c.", "_fsdp_wrapped_module.")
    },
    "compiled block": lambda s: {key.replace("layers.", "layers._orig_mod."): value for key, value in s.items()},
}
PLAIN_VALUES = {
    "acc": np.float64(98.0),
    "history": np.arange(3.0),
    "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
    "when": datetime.datetime(2024, 1, 1),
    "counts": collections.defaultdict(list, a=[1]),
    "space": types.SimpleNamespace(a=1, b=range(3)),
    "bytes": b"\x00\xff",
    "sets": [{1, 2}, set(), (3,)],
    "torch": torch.__version__,
    "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": (3, (1, 2, 3), None)},
    "names": ["same", "same", "caf\u00e9"],
}


def write(content, path, file_format="zip", protocol=2):
    if file_format == "safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=file_format == "zip")
    return path


CASES = [*((layout, "zip") for layout in LAYOUTS), *(("bare", kind) for kind in ("legacy", "safetensors"))]


@pytest.mark.parametrize(("layout", "file_format"), CASES)
def test_every_layout_is_loaded(network, layout, file_format, tmp_path):
    suffix = "pth" if file_format == "safetensors" else "safetensors"  # the content decides
    path = write(LAYOUTS[layout](network.state_dict()), tmp_path / f"checkpoint.{suffix}", file_format)
    assert same(load_weights(build("small_resnet", 10), path), network)
    assert identify(path) == ("small_resnet", 10, 32)


@pytest.mark.parametrize("protocol", [1, 2, 3, 5])
@pytest.mark.parametrize("file_format", ["zip", "legacy"])
def test_plain_values_of_training_codes_are_loaded_in_every_protocol(network, protocol, file_format, tmp_path):
    objects = {"args", "torch"} if protocol == 1 else set()  # made by a function that could make anything
    values = {key: value for key, value in PLAIN_VALUES.items() if key not in objects}
    content = {"state_dict": network.state_dict(), **values}
    write(content, tmp_path / "some.pth", file_format, protocol)
    assert same(load_weights(build("small_resnet", 10), tmp_path / "some.pth"), network)
    read = decode((tmp_path / "some.pth").read_bytes(), "some.pth")
    for key in values.keys() - {"rng", "history"} - ({"sets"} if protocol > 3 else set()):  # lists in protocol 4
        assert read[key] == PLAIN_VALUES[key], key
    assert read["history"].tolist() == [0, 1, 2] and read["rng"]["python"] == (3, (1, 2, 3), None)


@pytest.mark.parametrize("file_format", ["zip", "legacy"])
def test_protocol_0_which_pytorch_writes_and_cannot_load_is_named(network, file_format, tmp_path):
    with user_error("some.pth: written in pickle protocol 0, which loses the tensors"):
        identify(write(network.state_dict(), tmp_path / "some.pth", file_format, 0))


def test_a_pickle_of_protocol_4_may_be_in_frames_and_repeat_a_long_string(tmp_path):
    path = write({"args": argparse.Namespace(lr=0.1)}, tmp_path / "some.pth", "legacy", protocol=4)
    framed = path.read_bytes().replace(b"\x94", b"\x95" + bytes(8) + b"\x94")  # before each opcode of the memo
    assert decode(framed, "some.pth") == {"args": argparse.Namespace(lr=0.1)}
    data = write({"names": ["x" * 10**5] * 99}, tmp_path / "some.pth", protocol=4).read_bytes()
    assert len(in_protocol_2(data)) < 2 * len(data) and decode(data, "some.pth")["names"][98] == "x" * 10**5


@pytest.mark.parametrize(
    "layout", ["average and raw", "unaveraged", "EMA of a module", "EMA of timm", "EMA of parameters"]
)
def test_weights_chooses_between_average_and_raw_and_the_log_names_what_is_used(network, tmp_path, caplog, layout):
    caplog.set_level("INFO")
    path = write(LAYOUTS[layout](network.state_dict()), tmp_path / "both.pth")
    for weights, used, other in ((None, "average", "raw"), ("ema", "average", "raw"), ("raw", "raw weights", "ema")):
        caplog.clear()
        loaded = load_weights(build("small_resnet", 10), Checkpoint(path, weights))
        assert torch.equal(loaded.linear.weight, network.linear.weight + (weights == "raw"))
        assert f"using the {used} (" in caplog.text and f"--weights {other} selects the latter" in caplog.text
    for weights, absent in (("ema", "bare"), ("raw", "weight average")):
        path = write(LAYOUTS[absent](network.state_dict()), tmp_path / "one.pth")
        with user_error(f"--weights {weights}: .* has no "):
            load_weights(build("small_resnet", 10), Checkpoint(path, weights))


def test_what_is_not_used_is_reported(network, tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(LAYOUTS["criterion and metrics"](network.state_dict()), tmp_path / "some.pth")
    load_weights(build("small_resnet", 10), path)
    assert f"{path}: not used: criterion, train_acc" in caplog.text
    last, best = ({key: value + k for key, value in network.state_dict().items()} for k in (1, 2))
    load_weights(build("small_resnet", 10), write({"net": last, "best_net": best}, tmp_path / "two.pth"))
    assert "two.pth: not used: best_net" in caplog.text


def test_layers_that_the_network_does_not_have_are_not_dropped(network, tmp_path):
    state = network.state_dict()
    for content, message in (
        *((state | {key: torch.ones(10, 10)}, f"unexpected {key}") for key in ("head.weight", "layers.3.conv1.weight")),
        ([state, changed(state)], r"contains several such networks \(0, 1\)"),
        ({"a": state, "b": changed(state)}, r"contains several such networks \(a, b\)"),
    ):
        torch.save(content, tmp_path / "more.pth")
        with user_error(message):
            load_network("small_resnet", 10, tmp_path / "more.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(network, dtype, tmp_path):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "other.pt")
    loaded = load_weights(build("small_resnet", 10), tmp_path / "other.pt")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(loaded.linear.weight, network.linear.weight, rtol=0.01, atol=0.001)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("in_network", [False, True])
def test_sub_block1_is_optional_in_file_and_network(in_file, in_network, tmp_path):
    saved = WideResNet(10, depth=10, width=1, sub_block1=in_file)
    torch.save(saved.state_dict(), tmp_path / "wide.pt")
    assert same(load_weights(WideResNet(10, depth=10, width=1, sub_block1=in_network), tmp_path / "wide.pt"), saved)


NORMALIZED = {
    "mu and sigma": lambda s: {**s, "mu": MEAN.view(1, 3, 1, 1), "sigma": STD.view(1, 3, 1, 1)},
    "pixel mean of images in [0, 255]": lambda s: {**s, "pixel_mean": 255 * MEAN, "pixel_std": 255 * STD},
    "lists beside the weights": lambda s: {"net": s, "mean": MEAN.tolist(), "std": tuple(STD.tolist())},
    "dict beside the weights": lambda s: {"net": s, "normalizer": {"mean": MEAN.tolist(), "std": STD.tolist()}},
    "mean and std of a wrapper": lambda s: {"mean": MEAN, "std": STD, **prefixed("model.", s)},
    "normalize of a wrapper": lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **prefixed("model.", s)},
    "normalize": lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **s},
    "sequential": lambda s: {"0.mean": MEAN, "0.std": STD, **prefixed("1.", s)},
    "parallel": lambda s: {"state_dict": prefixed("module.", {"0.mean": MEAN, "0.std": STD, **prefixed("1.", s)})},
    "robustness": lambda s: {
        "model": prefixed("module.model.", s)
        | {"module.normalizer.new_mean": MEAN.view(3, 1, 1), "module.normalizer.new_std": STD.view(3, 1, 1)}
        | prefixed("module.attacker.model.", s)
    },
    "beside a teacher's": lambda s: {
        **{f"{net}.0.{key}": value for net in ("teacher", "student") for key, value in (("mean", MEAN), ("std", STD))},
        **prefixed("teacher.1.", changed(s)),
        **prefixed("student.1.", s),
    },
}


def normalized(network):
    with torch.no_grad():
        return network((IMAGES - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))


@pytest.mark.parametrize("layout", NORMALIZED)
def test_normalization_in_a_file_is_applied_and_saved_again(network, layout, tmp_path):
    torch.save(NORMALIZED[layout](network.state_dict()), tmp_path / "normalized.pt")
    loaded = load_weights(build("small_resnet", 10), tmp_path / "normalized.pt").eval()
    assert list(loaded.state_dict())[:2] == ["mean", "std"]
    torch.testing.assert_close(loaded(IMAGES), normalized(network))

    torch.save({"net": loaded.state_dict()}, tmp_path / "again.pt")
    for target in (build("small_resnet", 10), loaded):
        assert same(load_weights(target, tmp_path / "again.pt"), loaded)
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    assert same(load_weights(loaded, tmp_path / "plain.pt"), network)


def test_a_lost_normalization_is_reported_and_normalize_adds_it(network, tmp_path, caplog):
    path = write({"model_state_dict": prefixed("module.1.", network.state_dict())}, tmp_path / "lost.pt")
    load_weights(build("small_resnet", 10), path)
    assert 'keys begin with "1."' in caplog.text and "--normalize" in caplog.text
    caplog.clear()
    values = ",".join(str(float(value)) for value in (*MEAN, *STD))
    loaded = load_weights(build("small_resnet", 10), Checkpoint(path, normalize=values)).eval()
    torch.testing.assert_close(loaded(IMAGES), normalized(network))
    assert not caplog.text
    loaded = load_weights(build("small_resnet", 10), Checkpoint(path, normalize="CIFAR10"))
    assert torch.allclose(loaded.mean.flatten(), torch.tensor([0.4914, 0.4822, 0.4465]))
    for value in ("mnist", "0.5,0.5", "0,0,0,1,1,0", "125,123,114,63,62,67", "nan,0,0,1,1,1"):
        with user_error(f"--normalize {value}: "):
            Checkpoint(path, normalize=value)


def test_deepmind_network_takes_and_saves_the_statistics_of_a_file(tmp_path):
    saved = DeepMindWideResNet(10, depth=10, width=1)
    saved.mean, saved.std = MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1)
    state = {**saved.state_dict(), "mean": saved.mean, "std": saved.std}
    for _ in range(2):  # the second file is saved by the network itself
        torch.save(state, tmp_path / "some.pt")
        loaded = load_weights(DeepMindWideResNet(10, depth=10, width=1), tmp_path / "some.pt")
        assert same(loaded, saved)
        state = loaded.state_dict()


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenetV2", "vgg16", "presnet18"])
def test_an_architecture_is_identified_by_keys_and_shapes(name, tmp_path):
    torch.save({"state_dict": prefixed("module.", build(name, 7).state_dict())}, tmp_path / "some.pt")
    assert identify(tmp_path / "some.pt")[:2] == (name, 7)


# ---- files that are refused ----


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "name"), [(Bomb(), "io.open"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear")]
)
def test_code_in_a_file_is_refused_by_name_and_not_executed(content, name, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"net": content}, "bomb.pth", _use_new_zipfile_serialization=not legacy)
    with user_error(f"^bomb.pth: .*{name}"):
        Checkpoint("bomb.pth")
    assert not (tmp_path / MARKER).exists()


NOISE, ZIP = bytes(range(7, 250)) * 9, io.BytesIO()
np.savez(ZIP, weights=np.ones(3))
CHANGED_ZIP = bytearray(ZIP.getvalue())
CHANGED_ZIP[CHANGED_ZIP.rindex(b"PK\x01\x02") + 6] = 255  # the version that it requires


OTHER_FILES = {
    "empty": (b"", "empty"),
    "page.html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44\n", "git-lfs pointer"),
    "notes.txt": (b"accuracy 83.1\n", "not a PyTorch checkpoint"),
    "noise": (NOISE, "not a PyTorch checkpoint"),
    "weights.pth.gz": (b"\x1f\x8b\x08" + NOISE, "an archive"),
    "arrays.npz": (ZIP.getvalue(), "an archive"),
    "weights.pth.tar": (bytes(257) + b"ustar" + NOISE, "an archive"),
    "state.pkl": (pickle.dumps({"net": {}}), "a pickle that torch.save did not write"),
    "torn.zip": (ZIP.getvalue().replace(b"PK\x01", b"PKx"), "damaged"),
    "version.zip": (CHANGED_ZIP, "damaged"),
    "noise.safetensors": (NOISE, "damaged"),
    "pipe.pth": (None, "not a file"),
    "missing.pth": (None, "No such file"),
    ".": (None, "directory"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_described(name, tmp_path):
    content, reason = OTHER_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.pth")  # reading it would never return
    with user_error(f"^{tmp_path / name}: .*{reason}"):
        Checkpoint(tmp_path / name)


def test_a_changed_byte_is_found_unless_the_file_has_no_checksums(network, tmp_path):
    path = write(network.state_dict(), tmp_path / "some.pth")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with user_error("some.pth: .*damaged"):
        Checkpoint(path)
    torch.serialization.set_crc32_options(False)
    write(network.state_dict(), path)
    torch.serialization.set_crc32_options(True)
    assert same(load_weights(build("small_resnet", 10), path), network)


@pytest.mark.parametrize("file_format", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.999])
def test_truncated_file(network, file_format, fraction, tmp_path):
    path = write(network.state_dict(), tmp_path / f"truncated.{file_format}", file_format)
    os.truncate(path, int(fraction * path.stat().st_size))
    with user_error(f"^{path}: .*truncated"):
        Checkpoint(path)


STATE = build("small_resnet", 10).state_dict()
UNSUITABLE = [
    *((content, "no weights") for content in ({"epoch": 3, "net": {}}, [MEAN], MEAN, {"net": {0: 1}})),
    (torch.optim.SGD([nn.Parameter(MEAN)], 0.1).state_dict(), "no weights"),
    (STATE | {"mean": MEAN}, "only one of the mean and std"),
    (build("small_resnet", 100).state_dict(), "has 100 classes, not 10"),
    (STATE | {"conv1.weight": torch.ones(24, 3, 5, 5)}, r"conv1.weight is \(24, 3, 5, 5\), not \(24, 3, 3, 3\)"),
    (build("presnet18", 10).state_dict(), "contains presnet18; use --model presnet18"),
    *(
        (STATE | {"linear.weight": value}, r"linear.weight is torch\..*save it as float32 on the CPU")
        for value in (torch.ones(10, 72).char(), torch.ones(10, 72).to_sparse(), torch.empty(10, 72, device="meta"))
    ),
]


@pytest.mark.parametrize(("content", "reason"), UNSUITABLE)
def test_other_weights_are_refused_with_the_difference(content, reason, tmp_path):
    torch.save(content, tmp_path / "some.pth")
    with user_error(f"some.pth.*{reason}"):
        load_network("small_resnet", 10, tmp_path / "some.pth")


# ---- teachers ----


@pytest.mark.parametrize("path", [None, "given.pth"])
def test_teacher_is_found_and_frozen(network, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / (path or "teacher_models/CIFAR10/small_resnet/robust_teacher.pth")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": network.state_dict()}, file)
    teacher = load_teacher("small_resnet", "CIFAR10", 10, path)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(teacher(IMAGES), network(IMAGES))
    with user_error(r"--teacher_model small_resent: .*nearest: small_resnet"):
        load_teacher("small_resent", "CIFAR10", 10)


OFFICIAL = [
    ("Chen2021LTD_WRD34_20", "CIFAR10", "teacher_models/CIFAR10/wideresnet34_20/Chen2021LTD_34_20.pt"),
    ("Chen2021WRN34_10", "CIFAR100", "teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt"),
    ("Chen2021LTD_WRN34_10", "CIFAR10", "models/cifar10/Linf/Chen2021LTD_WRN34_10.pt"),
    ("Chen2021LTD_WRN34_10", "CIFAR100", "models/cifar100/Linf/Chen2021LTD_WRN34_10.pt"),
    ("wideresnet34_10", "CIFAR10", "teacher_models/CIFAR10/wideresnet34_10/robust_teacher.pth"),
    ("presnet18", "Tiny_Image", "teacher_models/TinyImageNet/TRADES/best_PGD10_acc_model.pth"),
]


@pytest.mark.parametrize(("name", "dataset", "path"), OFFICIAL)
def test_official_paths_are_tried_and_a_missing_teacher_names_them(name, dataset, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = "main_tiny.py" if dataset == "Tiny_Image" else "main.py"
    command = rf"python {script} --dataset {dataset} --method AT --model {teachers.architecture_of(name)} \(then"
    with user_error(f"^--teacher_model (?=.*{path}).*{command}"):
        load_teacher(name, dataset, 10)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()  # empty: loading it would take up to 184 million parameters
    with user_error(f"^{path}: the file is empty"):
        load_teacher(name, dataset, 10)


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return robustbench_package(tmp_path, monkeypatch)


def test_the_table_of_teachers_shows_existing_files_and_the_zoo(package, tmp_path, monkeypatch):
    file = tmp_path / "models/cifar10/Linf/Chen2021LTD_WRN34_20.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    lines = teachers._table().splitlines()
    assert len(lines) >= 2 + len(teachers.TEACHERS)
    assert sum("Linf/Chen2021LTD_WRN34_20.pt" in line and "missing" not in line for line in lines) == 1
    assert {teachers.architecture_of(teacher.name) for teacher in teachers.TEACHERS} <= MODELS.keys()
    assert lines[-1] == "robustbench:NAME for CIFAR100: Some2026Network"
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)  # as if it were not installed
    assert "pip install -r requirements-zoo.txt" in teachers._table().splitlines()[-1]


def test_the_zoo_needs_only_packages_of_pypi_and_names_what_is_missing(package, network, tmp_path):
    with user_error(r"robustbench: Some206Network: unknown name; nearest: Some2026Network"):
        robustbench.find("robustbench:Some206Network", "CIFAR10")
    assert robustbench.find("robustbench:some2026network", "CIFAR10") == "robustbench:Some2026Network"
    assert "autoattack" not in sys.modules
    with user_error(r"save https://drive\.google\.com/uc\?id=abc as models/cifar10/Linf/Some2026Network"):
        load_teacher("robustbench:Some2026Network", "CIFAR10", 10)
    write(network.state_dict(), tmp_path / "own.pth")
    assert same(load_teacher("robustbench:Some2026Network", "CIFAR10", 10, "own.pth"), network)
    (tmp_path / "models/cifar10/Linf").mkdir(parents=True)
    write(network.state_dict(), tmp_path / "models/cifar10/Linf/Some2026Network.pt")
    assert same(load_teacher("robustbench:Some2026Network", "CIFAR10", 10), network)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        *(("pkg_resources", '"setuptools<81"'), ("pandas", "-r requirements-zoo.txt"), ("autoattack", "pyautoattack")),
        ("robustbench", "-r requirements-zoo.txt"),
    ],
)
def test_a_missing_piece_of_the_zoo_is_named_with_the_command_that_installs_it(package, monkeypatch, module, command):
    (package / "__init__.py").write_text(f"import {module}")
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.setattr(robustbench, "find_spec", lambda name: None)
    with user_error(re.escape(f"pip install {command} (no module {module})")):
        robustbench.find("robustbench:Some2026Network", "CIFAR10")


def test_the_included_teacher_needs_a_path_for_other_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    included = teachers.INCLUDED["small_resnet", "CIFAR10"]
    assert teachers.find_teacher("small_resnet", "CIFAR10") == included
    with user_error("--teacher_path FILE, or train one"):
        load_teacher("small_resnet", "Folder", 10)
    with user_error("is a folder; give a checkpoint"):
        load_teacher("small_resnet", "Folder", 10, tmp_path)
    teacher = load_teacher("small_resnet", "Folder", 10, included.parent)
    logits = teacher(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(logits[0, :3], torch.tensor([0.0062, -0.7039, 0.1685]), rtol=0, atol=1e-3)
