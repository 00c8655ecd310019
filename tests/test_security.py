"""Files that came from elsewhere: no code of theirs runs, none leads out of its folder, none ends in a traceback."""

import ast
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import SMALL, run_here
from conftest import ROOT
from PIL import Image
from small_sets import cifar_files, tiny_imagenet_files
from torchvision.datasets import CIFAR10

from engine.evaluation.records import results_path
from models import build

RUN = Path("runs/Digits/Natural/small_resnet_seed42")
TRAINED = f"{SMALL} --method Natural --epochs 1 --root_path runs"
BEST = RUN / "best_PGD10_acc_model.pth"
EVALUATED = f"--model_path {BEST} --limit_test 10 --attacks clean,fgsm --no-pictures"
MARKER = "the-bomb-went-off"


class Bomb:
    """Unpickling it makes a file named MARKER in the working folder."""

    def __reduce__(self):
        return open, (MARKER, "x")


def plant(path):
    """Put a bomb where a file is, or where none is yet; torch's own format where the name asks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".pth", ".pt"):
        torch.save({"net": build("small_resnet", 10, 16).state_dict(), "extra": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"net": Bomb(), "evaluations": Bomb(), "data": Bomb()}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a run of one epoch, its evaluation and the state of that, a network, and images."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        capture = _NoCapture()
        for script, words in (("main.py", TRAINED), ("main_eval.py", f"{EVALUATED} --state state")):
            assert run_here(patch, capture, script, words).status == 0
    shutil.copy(folder / BEST, folder / "net.pth")
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        (folder / "images" / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "images" / name)
    return folder


class _NoCapture:
    """Stands for capsys, which no fixture of a module may have."""

    def readouterr(self):
        return SimpleNamespace(out="", err="")


@pytest.fixture
def run(monkeypatch, capsys, prepared, tmp_path):
    """Run a script inside a copy of the prepared folder, which has another folder beside it."""
    shutil.copytree(prepared, tmp_path / "inside")
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    return lambda script, words: run_here(monkeypatch, capsys, script, words)


def tree(folder):
    """Every file's bytes, links and folders under a folder; a folder's key ends in a slash."""
    places = Path(folder).rglob("*")
    return {str(place): place.read_bytes() if place.is_file() else place.is_dir() for place in places}


def refused(run, script, words, named):
    """Run a script; see that it ends in one line that names a file, that nothing ran and nothing was written."""
    before = tree(".")
    ended = run(script, words)
    assert ended.status == 2, ended.out + ended.err
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert str(named) in ended.err
    assert not Path(MARKER).exists()
    assert tree(".") == before
    return ended


# No code runs.


def test_the_bomb_is_live(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plant(Path("bomb.pth"))
    torch.load("bomb.pth", weights_only=False)
    assert Path(MARKER).exists()


STATED = "--dataset Digits --image_size 16 --model small_resnet"
DISTILL = f"{SMALL} --method DGAD --no_teacher_check --teacher_model small_resnet --epochs 1"
# What is read -> where the bomb lies, script, its words. ``*`` in a place stands for any name.
REFUSED = {
    "teacher": ("bomb.pth", "main.py", f"{DISTILL} --teacher_path bomb.pth"),
    "teacher in its usual place": ("teacher_models/Digits/small_resnet/robust_teacher.pth", "main.py", DISTILL),
    "second teacher": (
        "bomb.pth",
        "main.py",
        f"{DISTILL} --method AKD2 --teacher_path net.pth --std_teacher_model small_resnet --std_teacher_path bomb.pth",
    ),
    "student": ("bomb.pth", "main.py", f"{SMALL} --method AT --epochs 1 --model_path bomb.pth"),
    "student as safetensors": (
        "b.safetensors",
        "main.py",
        f"{SMALL} --method AT --epochs 1 --model_path b.safetensors",
    ),
    "evaluated": ("bomb.pth", "main_eval.py", "--dataset Digits --model_path bomb.pth --attacks clean"),
    "evaluated, network named": (
        "bomb.pth",
        "main_eval.py",
        f"{STATED} --model_path bomb.pth --attacks clean",
    ),
    "evaluated in a folder": (BEST, "main_eval.py", "--model_path runs --attacks clean"),
    "surrogate": (
        "bomb.pth",
        "main_eval.py",
        "--model_path net.pth --protocol blackbox --attacks transfer_pgd --surrogate_path bomb.pth",
    ),
    "natural": ("bomb.pth", "main_eval.py", "--model_path net.pth --attacks clean,pgd --natural_path bomb.pth"),
    "state": ("state/*/conditions.json", "main_eval.py", f"{EVALUATED} --state state"),
    "kept figures": (results_path(BEST), "main_eval.py", EVALUATED),
    "compared figures": (results_path(BEST), "scripts/compare.py", "runs"),
    "compared settings": (RUN / "config.json", "scripts/compare.py", "runs"),
    "summarized figures": (results_path(BEST), "scripts/summarize.py", f"out.png a={BEST}"),
    "summarized settings": (RUN / "config.json", "scripts/summarize.py", f"out.png a={BEST}"),
    "summarized epochs": (RUN / "results.csv", "scripts/summarize.py", f"out.png a={BEST}"),
    "summarized network": (BEST, "scripts/summarize.py", f"out.png a={BEST}"),
    "exported": ("bomb.pth", "scripts/export.py", "--model_path bomb.pth --name Doe2026Bomb --out out"),
    "exported figures": (
        results_path(BEST),
        "scripts/export.py",
        f"--model_path {BEST} --name Doe2026Bomb --out out --format robustbench",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_with_code_is_refused_by_name_and_its_code_does_not_run(run, what):
    place, script, words = REFUSED[what]
    (place,) = Path().glob(str(place)) if "*" in str(place) else [Path(place)]
    plant(place)
    refused(run, script, words, place.parent if what == "state" else place)


def test_no_file_that_a_run_resumes_from_runs_code(run):
    for place in RUN.rglob("*.pth"):  # whichever of them it is
        plant(place)
    refused(run, "main.py", f"{TRAINED} --resume --epochs 2".replace("--epochs 1", ""), RUN)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_cifar_pickle_of_another_checksum_is_not_opened(run, monkeypatch, name):
    folder = cifar_files(Path("cifar"), CIFAR10, monkeypatch)
    plant(folder / name)
    refused(run, "main.py", "--dataset CIFAR10 --model small_resnet --epochs 1 --data_root cifar", "cifar")


def test_decoded_images_with_code_are_decoded_again(run):
    words = "--dataset Folder --data_root images --model small_resnet --method Natural --epochs 1 --num_steps 1"
    assert run("main.py", f"{words} --root_path first").status == 0
    (cache,) = Path("images").glob(".decoded-*.pt")
    whole = torch.load(cache, weights_only=True)["images"]
    plant(cache)
    ended = run("main.py", f"{words} --root_path second")
    assert ended.status == 0, ended.err
    assert f"{cache} is damaged" in ended.out and not Path(MARKER).exists()
    assert torch.equal(torch.load(cache, weights_only=True)["images"], whole)


def test_a_piece_of_a_state_with_code_is_done_again(run):
    (piece,) = Path("state").glob("*/FGSM*")
    whole = piece.read_bytes()
    plant(piece)
    ended = run("main_eval.py", f"{EVALUATED} --state state")
    assert ended.status == 0, ended.err
    assert f"{piece} is damaged" in ended.out and not Path(MARKER).exists()
    assert piece.read_bytes() == whole


# No name leads out of its folder.


def edit(path, change):
    """Rewrite a JSON file by a function of its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


OUTSIDE = ["../../../../../outside/secret.pth", "{outside}/secret.pth", "sub/secret.pth", ".."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("script", ["scripts/compare.py", "main_eval.py"])
def test_figures_name_no_checkpoint_elsewhere(run, tmp_path, monkeypatch, script, name):
    name = name.format(outside=tmp_path / "outside")
    edit(results_path(BEST), lambda kept: kept["evaluations"][0]["conditions"].update(checkpoint=name))
    (tmp_path / "outside" / "secret.pth").write_text("")
    (tmp_path / "outside" / "config.json").write_text("{}")
    opened, plain = [], open
    monkeypatch.setattr("builtins.open", lambda file, *rest, **more: opened.append(file) or plain(file, *rest, **more))
    words = "runs" if script == "scripts/compare.py" else EVALUATED
    refused(run, script, words, results_path(BEST))
    assert not any("outside" in str(file) for file in opened)


def test_a_line_break_in_a_name_makes_no_row_of_a_table(run):
    place = results_path(BEST)
    edit(place, lambda kept: kept["evaluations"][0]["conditions"].update(checkpoint="a\nb", model="| x |\n| y |"))
    (RUN / "config.json").unlink()
    ended = run("scripts/compare.py", "runs")
    assert ended.status == 0, ended.err
    lines = Path("comparison/comparison.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 3


@pytest.mark.parametrize("name", ["../../../outside", "{outside}", "train", "nested/name"])
def test_tiny_imagenets_classes_are_names_of_its_own_folders(run, tmp_path, name):
    root = tiny_imagenet_files(Path("tiny-imagenet-200"), classes=3)
    (tmp_path / "outside" / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "outside" / "images" / "0.png")
    (root / "wnids.txt").write_text(f"{name.format(outside=tmp_path / 'outside')}\nn00000001\nn00000002")
    named = root if name == "train" else root / "wnids.txt"
    refused(run, "main_tiny.py", "--data_root . --model small_resnet --epochs 1 --method AT", named)


@pytest.mark.parametrize("name", ["../../../../outside/0.png", "{outside}/0.png", "../../train/n00000000/images/x.png"])
def test_tiny_imagenets_annotations_name_its_own_images(run, tmp_path, name):
    root = tiny_imagenet_files(Path("tiny-imagenet-200"), classes=3)
    Image.new("RGB", (64, 64)).save(tmp_path / "outside" / "0.png")
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text(f"{name.format(outside=tmp_path / 'outside')}\tn00000000\n")
    refused(run, "main_tiny.py", "--data_root . --model small_resnet --epochs 1 --method AT", annotations)


def test_an_archive_of_another_checksum_is_not_unpacked(run, tmp_path, monkeypatch):
    cifar_files(Path("other"), CIFAR10, monkeypatch)  # so that the address is one where nothing listens
    Path("datasets").mkdir()
    with tarfile.open(Path("datasets") / CIFAR10.filename, "w:gz") as archive:
        for name in ("../escaped", f"{tmp_path}/outside/escaped", "cifar-10-batches-py/data_batch_1"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(run, "main.py", "--dataset CIFAR10 --model small_resnet --epochs 1", "datasets")
    assert not list(tmp_path.rglob("escaped")) and list(Path("datasets").iterdir()) == [
        Path("datasets") / CIFAR10.filename
    ]


def altered(path, **metadata):
    """Write net.pth with other metadata."""
    torch.save(torch.load("net.pth", weights_only=True) | metadata, path)
    return path


@pytest.mark.parametrize("dataset", ["../../../outside/evil", "{outside}/evil", "Digits\n"])
def test_a_checkpoints_data_set_names_no_folder_of_an_export(run, tmp_path, dataset):
    altered("evil.pth", dataset=dataset.format(outside=tmp_path / "outside"))
    words = "--model_path evil.pth --name Doe2026Evil --out out --format robustbench"
    refused(run, "scripts/export.py", words, "evil.pth")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", ["robustbench:../../../../outside/net", "robustbench:a\nb", "../net", "robustbench:"])
def test_a_checkpoints_network_is_no_file_elsewhere(run, tmp_path, name):
    shutil.copy("net.pth", tmp_path / "outside" / "net.pt")
    altered("evil.pth", model=name)
    refused(run, "main_eval.py", "--model_path evil.pth --attacks clean", "--model")


FROM_ELSEWHERE = [
    "log.txt",
    "config.json",
    "results.csv",
    "curves.png",
    "best_clean_acc_model.pth",
    ".lock",
]


@pytest.mark.parametrize("name", FROM_ELSEWHERE)
def test_a_link_in_a_runs_folder_leads_no_writing_elsewhere(run, tmp_path, name):
    target = tmp_path / "outside" / "precious"
    target.write_text("as it was")
    (RUN / name).unlink()
    (RUN / name).symlink_to(target)
    ended = run("main.py", f"{TRAINED.replace('--epochs 1', '--epochs 2')} --milestones 1 --resume")
    assert ended.status in (0, 2), ended.err
    assert target.read_text() == "as it was"


@pytest.mark.parametrize("name", ["eval.json", "eval.csv", "eval.md"])
def test_a_link_among_figures_leads_no_writing_elsewhere(run, tmp_path, name):
    place = results_path(BEST).with_name(name)
    target = tmp_path / "outside" / "precious"
    target.write_bytes(before := place.read_bytes())
    place.unlink()
    place.symlink_to(target)
    assert run("main_eval.py", EVALUATED.replace("fgsm", "pgd")).status == 0
    assert target.read_bytes() == before


# No content ends in a traceback.

NESTED = "[" * 300 + "]" * 300
TEXTS = {
    "deep list": "[" * 100_000,
    "deep object": '{"evaluations":' * 100_000,
    "a little deep": '{"evaluations": ' + "[" * 400 + "]" * 400 + "}",
    "deep value": f'{{"evaluations": [{{"conditions": {{"x": {NESTED}}}, "figures": {{}}}}], "method": {NESTED}}}',
    "long": '{"evaluations": [' + "0," * 300_000 + "0]}",
    "long number": '{"evaluations": ' + "1" * 10_000 + "}",
    "not a number": '{"evaluations": [{"conditions": {}, "figures": {"Clean": {"accuracy": NaN, "n": 1}}}]}',
    "endless": '{"evaluations": [{"conditions": {}, "figures": {"Clean": {"accuracy": 1e999, "n": 1}}}]}',
    "no figures": '{"evaluations": []}',
    "bytes": "\ufeff\x00",
    "nothing": "null",
}
READERS = {
    "main_eval": ("main_eval.py", EVALUATED, results_path(BEST)),
    "compare": ("scripts/compare.py", "runs", results_path(BEST)),
    "summarize": ("scripts/summarize.py", f"out.png a={BEST}", results_path(BEST)),
    "summarize settings": ("scripts/summarize.py", f"out.png a={BEST}", RUN / "config.json"),
    "export": ("scripts/export.py", f"--model_path {BEST} --name Doe2026Deep --out out", results_path(BEST)),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_strange_json_is_one_line(run, reader, text):
    script, words, place = READERS[reader]
    place.write_text(TEXTS[text], encoding="utf-8")
    refused(run, script, words, place)


@pytest.mark.parametrize("text", ["deep list", "deep object", "deep value", "a little deep", "long number", "bytes"])
def test_strange_settings_beside_compared_figures_are_one_line(run, text):
    (RUN / "config.json").write_text(TEXTS[text], encoding="utf-8")
    refused(run, "scripts/compare.py", "runs", RUN / "config.json")


@pytest.mark.parametrize("text", TEXTS)
def test_a_strange_state_is_one_line_or_done_again(run, text):
    (about,), (piece,) = Path("state").glob("*/conditions.json"), Path("state").glob("*/FGSM*")
    whole = about.read_bytes()
    about.write_text(TEXTS[text], encoding="utf-8")
    refused(run, "main_eval.py", f"{EVALUATED} --state state", about.parent)
    about.write_bytes(whole)
    piece.write_text(TEXTS[text], encoding="utf-8")
    ended = run("main_eval.py", f"{EVALUATED} --state state")
    assert ended.status == 0 and f"{piece} is damaged" in ended.out


def cyclic():
    content = {}
    content["net"] = content
    return content


STRANGE = {
    "holds itself": cyclic,
    "a view of one number": lambda: {"net": {"conv1.weight": torch.zeros(1).half().expand(10**6, 10**6)}},
    "sparse": lambda: {"net": {"conv1.weight": torch.eye(3).to_sparse()}},
    "without numbers": lambda: {"net": {"conv1.weight": torch.empty(24, 3, 3, 3, device="meta")}},
}


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("script", ["main.py", "main_eval.py", "scripts/export.py"])
def test_a_strange_checkpoint_is_one_line(run, script, what):
    torch.save(STRANGE[what](), "strange.pth")
    words = {
        "main.py": f"{SMALL} --method AT --epochs 1 --model_path strange.pth",
        "main_eval.py": f"{STATED} --model_path strange.pth --attacks clean",
        "scripts/export.py": "--model_path strange.pth --name Doe2026Strange --out out --dataset Digits",
    }
    refused(run, script, words[script], "strange.pth")


@pytest.mark.parametrize("metadata", [{"image_size": 10**9}, {"image_size": -3}, {"classes": [1, None]}, {"model": 5}])
def test_facts_that_cannot_be_are_none(run, metadata):
    altered("net.pth", **metadata)
    ended = run("main_eval.py", "--model_path net.pth --image_size 16 --limit_test 10 --attacks clean")
    assert ended.status == 0, ended.err


def test_an_image_that_is_no_image_starts_no_program(run, monkeypatch):
    place = Path("images/train/a/0.png")
    place.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    words = "--dataset Folder --data_root images --model small_resnet --method Natural --epochs 1"
    refused(run, "main.py", words, place)


def test_an_error_line_moves_no_cursor(run):
    words = "--dataset \x1b[2JDigits --model_path net.pth"
    ended = refused(run, "main_eval.py", words, "--dataset")
    assert ended.err.strip().isprintable()


# Our own sources.

RUNS_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"}


def faults(source: str) -> list[str]:
    """What of a source could run code that came in a file or a word, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {name.name}" for name in node.names if name.name.split(".")[0] in RUNS_CODE]
        elif isinstance(node, ast.ImportFrom):
            taken = {(node.module, name.name) for name in node.names}
            bad = (node.module or "").split(".")[0] in RUNS_CODE or taken & {("torch", "load"), ("yaml", "load")}
            found += [f"{node.lineno}: {node.module}"] * bool(bad)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            bad = (
                name in CALLS
                or (name == "torch.load" and given.get("weights_only") != "True")
                or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
                or (name == "yaml.load" and "Safe" not in given.get("Loader", ""))
                or given.get("shell", "False") != "False"
            )
            found += [f"{node.lineno}: {name}"] * bad
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch, marshal",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds(line):
    assert faults(line)


def test_nothing_of_ours_runs_what_a_file_or_a_word_says():
    sources = [path for path in ROOT.glob("*.py")]
    for room in ("attacks", "data", "engine", "methods", "models", "scripts", "utils"):
        sources += (ROOT / room).rglob("*.py")
    assert len(sources) > 50
    assert {str(path): found for path in sources if (found := faults(path.read_text(encoding="utf-8")))} == {}
