"""An export is read by those it is made for, with the logits and the figures of the checkpoint, or is not there."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pyautoattack
import pytest
import torch
from commands import run_here
from conftest import ROOT
from safetensors.torch import load_model

import engine.export.formats
from engine.evaluation.records import results_path
from engine.export.formats import ARCHITECTURES
from models import MODELS, build
from models.deepmind_wide_resnet import DeepMindWideResNet
from models.hub import load_folder, save_folder
from models.normalized import Normalized
from models.weights import load_network

NAME = "Doe2026Distil"
FILES = (
    f"{NAME}.pt",
    f"{NAME}.pt2",
    f"model_info/cifar10/Linf/{NAME}.json",
    "hub/config.json",
    "hub/model.safetensors",
    "hub/README.md",
)
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    trained = build("small_resnet", 10)
    trained(IMAGES)  # running statistics of its own
    return trained.eval()


@pytest.fixture
def checkpoint(network, tmp_path):
    metadata = {"model": "small_resnet", "dataset": "CIFAR10", "image_size": 32, "classes": CLASSES}
    torch.save({"net": network.state_dict(), **metadata}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


@pytest.fixture
def export(monkeypatch, capsys, tmp_path):
    def run(path, flags="--format robustbench", name=NAME, out="out"):
        return run_here(
            monkeypatch,
            capsys,
            "scripts/export.py",
            f"--model_path {path} --name {shlex.quote(name)} --out {tmp_path / out} {flags}",
        )

    return run


def evaluate(checkpoint, *evaluations):
    """Keep evaluations of (conditions, figures) beside a checkpoint, as main_eval.py does."""
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    conditions = {"sha256": digest, "dataset": "CIFAR10", "eps": 8 / 255}
    kept = [{"conditions": conditions | theirs, "figures": figures} for theirs, figures in evaluations]
    results_path(checkpoint).parent.mkdir(exist_ok=True)
    results_path(checkpoint).write_text(json.dumps({"evaluations": kept}))


def info_in(folder, dataset="cifar10", name=NAME):
    return json.loads((folder / "model_info" / dataset / "Linf" / f"{name}.json").read_text())


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_every_form_gives_the_logits_of_the_checkpoint(network, checkpoint, export, tmp_path):
    ended = export(checkpoint, "")
    out = tmp_path / "out"
    assert ended.status == 0
    assert files_in(out) == set(FILES)
    assert {path.name for path in out.iterdir()} == {f"{NAME}.pt", f"{NAME}.pt2", "model_info", "hub"}
    assert all(str(out / file) in ended.out for file in files_in(out))
    strict = build("small_resnet", 10)
    strict.load_state_dict(torch.load(out / f"{NAME}.pt", weights_only=True))
    loaded = {
        "strictly": strict.eval(),
        "by our reader": load_network("small_resnet", 10, out / f"{NAME}.pt").eval(),
        "folder": load_folder(out / "hub"),
        "folder's weights alone": load_network("small_resnet", 10, out / "hub" / "model.safetensors").eval(),
    }
    program = torch.export.load(out / f"{NAME}.pt2").module()
    for images in (IMAGES[:1], IMAGES[:2], IMAGES[:5], IMAGES):
        for way, found in loaded.items():
            # One machine, the same operations in the same order: nothing is left to rounding.
            assert torch.equal(found(images), network(images)), way
        # A program may write an operation as several: PyTorch's own tolerance for float32.
        torch.testing.assert_close(program(images), network(images))


def test_a_program_can_be_attacked(network, checkpoint, export, tmp_path):
    export(checkpoint, "--format torch_export")
    assert files_in(tmp_path / "out") == {f"{NAME}.pt2"}
    gradients = []
    for one in (network, torch.export.load(tmp_path / "out" / f"{NAME}.pt2").module()):
        images = IMAGES.clone().requires_grad_()
        gradients.append(torch.autograd.grad(one(images)[:, 0].sum(), images)[0])
    torch.testing.assert_close(*gradients)


class Mixin:
    """What huggingface_hub's PyTorchModelHubMixin does with a folder."""

    @classmethod
    def from_pretrained(cls, folder):
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            model = cls(**json.load(file))
        load_model(model, f"{folder}/model.safetensors", strict=True)
        model.eval()
        return model


def test_the_model_card_loads_its_folder_with_huggingface_hub(network, checkpoint, export, monkeypatch, tmp_path):
    export(checkpoint, "--format hub")
    folder = tmp_path / "out" / "hub"
    library = ModuleType("huggingface_hub")
    library.PyTorchModelHubMixin = Mixin
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    card = (folder / "README.md").read_text()
    code = re.search("```python\n(.*?)```", card, re.DOTALL)[1]
    assert f"USER/{NAME}" in code
    said = {}
    exec(code.replace(f"USER/{NAME}", str(folder)), said)
    assert said["logits"].shape == (1, 10)
    assert torch.equal(said["network"](IMAGES), network(IMAGES))
    assert not said["network"].training
    assert ", ".join(CLASSES) in card


def shrunk(name):
    """The constructor of a network, with fewer and narrower blocks where it is a wide one."""
    make = MODELS[name]
    return partial(make.func, **make.keywords | {"depth": 10, "width": 1}) if name.startswith("wide") else make


@pytest.mark.parametrize("name", MODELS)
def test_every_network_returns_from_its_folder(name, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, name, shrunk(name))
    torch.manual_seed(2)
    saved = build(name, 3).eval()
    save_folder(saved, tmp_path / "hub", name, 3, 32)
    assert torch.equal(load_folder(tmp_path / "hub")(IMAGES), saved(IMAGES))


def test_presnet18_keeps_its_image_size(tmp_path):
    torch.manual_seed(2)
    saved = build("presnet18", 3, 64).eval()
    save_folder(saved, tmp_path / "hub", "presnet18", 3, 64)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(load_folder(tmp_path / "hub")(images), saved(images))


def test_a_single_mean_and_std_for_all_channels(network, tmp_path):
    saved = Normalized(network, torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25))
    save_folder(saved, tmp_path / "hub", "small_resnet", 10, 32)
    assert torch.equal(load_folder(tmp_path / "hub")(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("kind", ["ours", "deepmind"])
def test_a_file_that_normalises_is_exported_with_its_numbers(kind, network, export, monkeypatch, tmp_path):
    if kind == "ours":
        name, small = "small_resnet", network
    else:
        name = "wideresnet70_16_deepmind"
        monkeypatch.setitem(MODELS, name, shrunk(name))
        small = DeepMindWideResNet(10, depth=10, width=1).eval()
    torch.save({"mean": MEAN, "std": STD, **small.state_dict()}, tmp_path / "normalised.pt")
    expected = load_network(name, 10, tmp_path / "normalised.pt").eval()(IMAGES)
    ended = export(tmp_path / "normalised.pt", flags="")
    out = tmp_path / "out"
    assert ended.status == 0
    assert torch.equal(load_network(name, 10, out / f"{NAME}.pt").eval()(IMAGES), expected)
    assert torch.equal(load_folder(out / "hub")(IMAGES), expected)
    torch.testing.assert_close(torch.export.load(out / f"{NAME}.pt2").module()(IMAGES), expected)


def test_deepminds_layout_under_the_common_name(export, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "wideresnet70_16_deepmind", shrunk("wideresnet70_16_deepmind"))
    saved = build("wideresnet70_16_deepmind", 100).eval()
    torch.save(saved.state_dict(), tmp_path / "deepmind.pt")
    ended = export(tmp_path / "deepmind.pt", "--model wideresnet70_16 --dataset CIFAR100 --format hub robustbench")
    assert ended.status == 0
    assert torch.equal(load_folder(tmp_path / "out" / "hub")(IMAGES), saved(IMAGES))
    assert info_in(tmp_path / "out", "cifar100")["architecture"] == "WideResNet-70-16"


def test_every_network_has_its_architecture_in_words():
    assert ARCHITECTURES.keys() == MODELS.keys()


def test_model_info_has_the_fields_and_types_of_published_entries(checkpoint, export, tmp_path):
    figures = {"Clean": {"accuracy": 87.5849, "n": 10_000}, "AutoAttack": {"accuracy": 51.3, "n": 10_000}}
    evaluate(checkpoint, ({}, figures))
    paper = "--title Distillation --authors Doe --venue ICML-2026 --link https://doe.org --reported 51.30"
    ended = export(checkpoint, f"{paper} --format robustbench hub")
    assert info_in(tmp_path / "out") == {
        "link": "https://doe.org",
        "name": "Distillation",
        "authors": "Doe",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "ICML-2026",
        "architecture": "SmallResNet",
        "eps": "8/255",
        "clean_acc": "87.58",
        "reported": "51.30",
        "autoattack_acc": "51.30",
        "footnote": "",
        "unreliable": False,
    }
    assert "main_eval" not in ended.out
    card = (tmp_path / "out" / "hub" / "README.md").read_text()
    assert all(text in card for text in ("87.58", "51.30", "10000", "8/255", "Distillation", "https://doe.org"))


CLEAN, ROBUST = {"accuracy": 46.5, "n": 500}, {"accuracy": 21.0, "n": 100}
KEPT = {
    "of a part of the test set": (
        [({}, {"Clean": CLEAN, "AutoAttack": ROBUST})],
        ("46.50", "21.00", "8/255", "Clean accuracy on 500 test images, AutoAttack on 100 test images."),
    ),
    "the newest": (
        [
            ({}, {"Clean": {"accuracy": 1.0, "n": 500}, "AutoAttack": ROBUST}),
            ({}, {"Clean": CLEAN, "AutoAttack": ROBUST}),
        ],
        ("46.50", "21.00", "8/255", "Clean accuracy on 500 test images, AutoAttack on 100 test images."),
    ),
    "the newest with AutoAttack": (
        [({"eps": 4 / 255}, {"Clean": CLEAN, "AutoAttack": ROBUST}), ({"protocol": "blackbox"}, {"Clean": CLEAN})],
        ("46.50", "21.00", "4/255", "Clean accuracy on 500 test images, AutoAttack on 100 test images."),
    ),
    "without AutoAttack": (
        [({}, {"Clean": {"accuracy": 46.5, "n": 10_000}, "PGD-20": ROBUST})],
        ("46.50", "", "8/255", ""),
    ),
    "of another file": ([({"sha256": "0" * 64}, {"Clean": CLEAN, "AutoAttack": ROBUST})], ("", "", "8/255", "")),
    "on another data set": ([({"dataset": "Digits"}, {"Clean": CLEAN, "AutoAttack": ROBUST})], ("", "", "8/255", "")),
    "of other attacks": ([({"eps": 4 / 255}, {"PGD-20": ROBUST})], ("", "", "8/255", "")),
    "none": ([], ("", "", "8/255", "")),
}


@pytest.mark.parametrize("kind", KEPT)
def test_figures_are_those_kept_beside_the_checkpoint(kind, checkpoint, export, tmp_path):
    evaluations, expected = KEPT[kind]
    if evaluations:
        evaluate(checkpoint, *evaluations)
    ended = export(checkpoint)
    info = info_in(tmp_path / "out")
    assert tuple(info[key] for key in ("clean_acc", "autoattack_acc", "eps", "footnote")) == expected
    hint = f"python main_eval.py --dataset CIFAR10 --model_path {checkpoint} --attacks clean,aa"
    assert ended.out.count(hint) == ("" in expected[:2])


@pytest.mark.parametrize("text", ['{"evaluations": [{}]}', '{"evaluations": 5}', "[]", '{"evaluations"', ""])
def test_a_damaged_file_of_figures_is_not_passed_over(text, checkpoint, export, tmp_path):
    place = results_path(checkpoint)
    place.parent.mkdir()
    place.write_text(text)
    refused(export(checkpoint), tmp_path, f"{re.escape(str(place))}: damaged")


@pytest.mark.parametrize(
    "evaluation",
    [({"eps": None}, {"Clean": CLEAN}), ({}, {"Clean": {"accuracy": "half", "n": 500}})],
    ids=["epsilon", "accuracy"],
)
def test_a_figure_that_is_no_number_is_not_passed_over(evaluation, checkpoint, export, tmp_path):
    evaluate(checkpoint, evaluation)
    refused(export(checkpoint), tmp_path, f"{re.escape(str(results_path(checkpoint)))}: damaged")


def benchmark(model, images, labels, batch_size, eps):
    """What robustbench.eval.benchmark asks of a model, with one short attack in the place of AutoAttack's four."""
    assert not model.training
    assert images.min() >= 0 and images.max() <= 1

    def accuracy(x):
        with torch.no_grad():
            right = [
                (model(x[k : k + batch_size]).max(1)[1] == labels[k : k + batch_size]).float().sum().item()
                for k in range(0, len(x), batch_size)
            ]
        return sum(right) / len(x)

    adversary = pyautoattack.AutoAttack(
        model, norm="Linf", eps=eps, version="custom", attacks=["apgd-ce"], seed=0, device="cpu"
    )
    adversary.apgd.n_iter, adversary.apgd.n_restarts = 5, 1
    adversarial = adversary.run_standard_evaluation(images, labels, batch_size=batch_size)
    adversarial = adversarial[0] if isinstance(adversarial, tuple) else adversarial
    assert (adversarial - images).abs().max() <= eps + 1e-6  # rounding of x + 8/255 - x in float32
    return accuracy(images), accuracy(adversarial)


def test_robustbench_measures_the_exported_pair_as_the_checkpoint(network, checkpoint, export, tmp_path):
    labels = network(IMAGES).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    expected = benchmark(network, IMAGES, labels, batch_size=4, eps=8 / 255)
    export(checkpoint)
    exported = load_network("small_resnet", 10, tmp_path / "out" / f"{NAME}.pt").eval()
    clean, robust = benchmark(exported, IMAGES, labels, batch_size=4, eps=8 / 255)
    assert (clean, robust) == expected
    assert clean == pytest.approx(5 / 6)
    assert robust <= clean


def test_the_same_export_has_the_same_bytes(export, monkeypatch, tmp_path):
    # The unused stage that the file lacks is drawn anew at each export, from one seed.
    monkeypatch.setitem(MODELS, "wideresnet34_10", shrunk("wideresnet34_10"))
    state = build("wideresnet34_10", 10).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("sub_block1.")}, tmp_path / "wide.pt")
    flags = "--model wideresnet34_10 --format robustbench hub"
    for out in ("one", "other"):
        assert export(tmp_path / "wide.pt", flags, out=out).status == 0
    assert files_in(tmp_path / "one") == files_in(tmp_path / "other")
    for file in files_in(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_another_export_takes_the_place_of_the_first(checkpoint, export, tmp_path):
    export(checkpoint)
    evaluate(checkpoint, ({}, {"Clean": CLEAN, "AutoAttack": ROBUST}))
    assert export(checkpoint).status == 0
    assert info_in(tmp_path / "out")["autoattack_acc"] == "21.00"


def test_a_foreign_file_is_recognised_and_other_data_keep_their_name(network, export, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    assert export(tmp_path / "bare.pt", "--dataset Folder --format robustbench hub").status == 0
    assert info_in(tmp_path / "out", "folder")["architecture"] == "SmallResNet"
    assert "None" not in (tmp_path / "out" / "hub" / "README.md").read_text()


def test_a_student_that_started_from_the_zoo_is_recognised_by_its_keys(network, export, tmp_path):
    torch.save({"net": network.state_dict(), "model": "robustbench:Doe2020"}, tmp_path / "student.pth")
    assert export(tmp_path / "student.pth").status == 0
    assert info_in(tmp_path / "out")["architecture"] == "SmallResNet"


def refused(ended, tmp_path, text):
    assert ended.status == 2
    assert re.search(text, ended.err) and len(ended.err.splitlines()) == 1, ended.err
    assert not (tmp_path / "out").exists()


FLAGS = {
    "--model resnet18": "--model resnet18: .* holds a small_resnet",
    "--model resnet81": "--model resnet81: unknown name; nearest: resnet18",
    "--dataset CIFAR100": "--dataset CIFAR100: .* was trained on CIFAR10",
    "--format onnx": "--format onnx: unknown name",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_contradict_the_checkpoint_or_name_nothing(flags, checkpoint, export, tmp_path):
    refused(export(checkpoint, flags), tmp_path, FLAGS[flags])


@pytest.mark.parametrize("name", ["a/b", "../a", "..", ".hidden", "a\\b", "x" * 300])
def test_a_name_that_would_leave_the_folder(name, checkpoint, export, tmp_path):
    refused(export(checkpoint, name=name), tmp_path, "--name .*Name2026Word")


@pytest.mark.parametrize("left", ["absent", "empty"])
@pytest.mark.parametrize("needed", ["--model_path", "--name", "--out"])
def test_what_is_needed_is_asked_for(needed, left, checkpoint, monkeypatch, capsys, tmp_path):
    given = {"--model_path": checkpoint, "--name": NAME, "--out": tmp_path / "out"}
    words = [f"{flag}={value}" for flag, value in given.items() if flag != needed]
    words += [f"{needed}="] if left == "empty" else []
    ended = run_here(monkeypatch, capsys, "scripts/export.py", " ".join(words))
    refused(ended, tmp_path, f"{needed}: needed")


def test_files_that_cannot_be_exported(network, export, tmp_path):
    refused(export(tmp_path / "absent.pth"), tmp_path, r"absent.pth: cannot be read \(No such file")
    (tmp_path / "text.pth").write_text("no checkpoint")
    refused(export(tmp_path / "text.pth"), tmp_path, "not a PyTorch checkpoint")
    torch.save({"net": {"encoder.weight": torch.rand(3, 3)}}, tmp_path / "unknown.pth")
    refused(export(tmp_path / "unknown.pth"), tmp_path, "--model: needed: .*unknown.pth")
    refused(export(tmp_path / "unknown.pth", "--model small_resnet --dataset Folder"), tmp_path, "another network")
    torch.save({"net": {"encoder.weight": torch.rand(3, 3)}, "model": "robustbench:Doe2020"}, tmp_path / "zoo.pth")
    refused(export(tmp_path / "zoo.pth"), tmp_path, "zoo.pth: holds robustbench:Doe2020")
    torch.save({"bias": torch.rand(3)}, tmp_path / "flat.pth")
    refused(export(tmp_path / "flat.pth", "--model resnet18"), tmp_path, "flat.pth: has no linear classifier")
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    refused(export(tmp_path / "bare.pth", "--model resnet18"), tmp_path, "bare.pth: weights of another network")
    refused(export(tmp_path / "bare.pth", "--dataset CIFAR100"), tmp_path, "--dataset CIFAR100: has 100 classes")
    torch.save(network.state_dict() | {"bn1.weight": torch.full((24,), float("nan"))}, tmp_path / "nan.pth")
    refused(export(tmp_path / "nan.pth"), tmp_path, "nan.pth: its logits are nan or inf")


def test_a_folder_that_cannot_be_written(checkpoint, export, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = files_in(tmp_path)
    for out in ("file", "file/below"):
        refused(export(checkpoint, out=out), tmp_path, "--out .*file.*: cannot be written to")
    assert files_in(tmp_path) == before


def everything_in(folder):
    return {str(place.relative_to(folder)) for place in folder.rglob("*")}


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_the_way_of_a_file(file, checkpoint, export, tmp_path):
    out = tmp_path / "out"
    (out / file).mkdir(parents=True)
    before = everything_in(out)
    ended = export(checkpoint, "")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert re.search(f"--out .*{re.escape(file)} is a folder", ended.err)
    assert everything_in(out) == before


@pytest.mark.parametrize("folder", ["hub", "model_info", "model_info/cifar10"])
def test_a_file_in_the_way_of_a_folder(folder, checkpoint, export, tmp_path):
    out = tmp_path / "out"
    (out / folder).parent.mkdir(parents=True)
    (out / folder).write_text("in the way")
    before = everything_in(out)
    ended = export(checkpoint, "--format robustbench hub")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert re.search(rf"--out .*/{folder}.*\(Not a directory\)", ended.err)
    assert everything_in(out) == before
    assert (out / folder).read_text() == "in the way"


# Files of the network's 800 kB end earlier, as if the disk were full there. torch has two kinds of errors for it: one
# while it hands a small file to the system, another in the middle of a large one.
ON_A_FULL_DISK = """
import resource, runpy, sys
script, *words = sys.argv[1:]
import torch
for form, limit in (("robustbench", 100_000), ("robustbench", 300_000), ("hub", 300_000), ("torch_export", 300_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sys.argv = [script, *words, "--format", form]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        print("status", ended.code)
"""


def test_a_full_disk_takes_none_of_any_form(checkpoint, export, tmp_path):
    export(checkpoint)
    before = {file: (tmp_path / "out" / file).read_bytes() for file in files_in(tmp_path / "out")}
    words = ["--model_path", checkpoint, "--name", NAME, "--out", tmp_path / "out"]
    # In a process of its own: torch may end the one that writes to a full disk.
    ended = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, ROOT / "scripts" / "export.py", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout.split() == ["status", "2"] * 4, ended.stderr[-2000:]
    lines = ended.stderr.splitlines()
    assert len(lines) == 4 and all(re.match("error: --out .*: cannot be written to", line) for line in lines), lines
    assert {file: (tmp_path / "out" / file).read_bytes() for file in files_in(tmp_path / "out")} == before
    assert not list((tmp_path / "out").glob(".*"))


def test_a_move_that_fails_leaves_whole_files_and_says_how_many(checkpoint, export, monkeypatch, tmp_path):
    export(checkpoint, "--format robustbench hub")
    out = tmp_path / "out"
    before = {file: (out / file).read_bytes() for file in files_in(out)}
    evaluate(checkpoint, ({}, {"Clean": CLEAN, "AutoAttack": ROBUST}))
    replace = Path.replace

    def failing(file, place):
        if place == out / "hub" / "model.safetensors":
            raise OSError(5, "Input/output error")
        return replace(file, place)

    monkeypatch.setattr(Path, "replace", failing)
    ended = export(checkpoint, "--format robustbench hub")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert re.search(r"model.safetensors cannot be put in place \(Input/output error\); (\d) of 5 files are", ended.err)
    assert everything_in(out) == before.keys() | {"hub", "model_info", "model_info/cifar10", "model_info/cifar10/Linf"}
    assert (out / "hub" / "model.safetensors").read_bytes() == before["hub/model.safetensors"]
    assert (out / f"{NAME}.pt").read_bytes() == before[f"{NAME}.pt"]


def test_nothing_is_written_where_a_form_does_not_return(checkpoint, export, monkeypatch, tmp_path):
    def another(folder):
        torch.manual_seed(5)
        return build("small_resnet", 10).eval()

    monkeypatch.setattr(engine.export.formats, "load_folder", another)
    with pytest.raises(RuntimeError, match=r"hub: .* other logits"):
        export(checkpoint, "--format robustbench hub")
    assert not files_in(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
