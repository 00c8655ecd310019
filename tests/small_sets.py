"""Small networks, datasets in the layouts of the published ones, and objects whose unpickling executes code."""

import hashlib
import pickle
import sys
from itertools import product

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from models import build

MARKER = "code-was-executed"
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Bomb:
    """Creates the file MARKER in the working directory when it is unpickled."""

    def __reduce__(self):
        return open, (MARKER, "x")


def save_network(path, seed=0, num_classes=10, size=16, **content):
    """Save a small network of random weights, with other content of its checkpoint; return the path."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": build("small_resnet", num_classes, size).state_dict(), **content}, path)
    return path


def cifar_files(root, dataset, monkeypatch, names=("plane", "car", "bird"), labels=(2, 0, 1)):
    """Write one image per label into each of the published pickles, and make torchvision expect their checksums."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if dataset is CIFAR10 else "fine_labels"

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for number, attribute in enumerate(("train_list", "test_list")):
        table = []
        for index, (name, _) in enumerate(getattr(dataset, attribute)):
            shape = (len(labels), 3072)
            pixels = np.random.default_rng(10 * number + index).integers(0, 256, shape, dtype=np.uint8)
            table.append([name, write(name, {"data": pixels, key: list(labels)})])
        monkeypatch.setattr(dataset, attribute, table)
    meta = write(dataset.meta["filename"], {dataset.meta["key"]: list(names)})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": meta})
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/no-server.tar.gz")
    return folder


def image_folder(root, names="abcd", parts=("train", "test"), size=(32, 32)):
    """Write the layout of ``--dataset Folder``: two images for each part and class."""
    for part, (k, name), n in product(parts, enumerate(names), range(2)):
        (root / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (60 * k, 90 * n, 0)).save(root / part / name / f"{n}.png")


def tiny_imagenet_files(root, classes=200):
    """Write the layout of Tiny-ImageNet with one training and one validation image per class; wnids.txt is unsorted."""
    noise = np.random.default_rng(0)
    wnids = [f"n{k:08d}" for k in reversed(range(classes))]
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for k, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for path in (folder / f"{wnid}_0.JPEG", root / "val" / "images" / f"val_{k}.JPEG"):
            Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63")
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return root


PACKAGE = {
    "robustbench/__init__.py": "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState\n",
    "robustbench/model_zoo/__init__.py": """from .enums import *
from models import build
def networks(classes):
    network = {"model": lambda: build("small_resnet", classes), "gdrive_id": "abc"}
    return {ThreatModel.Linf: {"Some2026Network": network}}
model_dicts = {BenchmarkDataset.cifar_10: networks(10), BenchmarkDataset.cifar_100: networks(100)}""",
    "robustbench/model_zoo/enums.py": """from enum import Enum
BenchmarkDataset = Enum("BenchmarkDataset", {"cifar_10": "cifar10", "cifar_100": "cifar100"})
ThreatModel = Enum("ThreatModel", {"Linf": "Linf"})""",
    "robustbench/utils.py": """import torch
from models import build
def load_model(name, dataset, threat_model):
    net = build("small_resnet", int(dataset[5:]))
    net.load_state_dict(torch.load(f"models/{dataset}/{threat_model}/{name}.pt"))
    return net""",
    "timm.py": "def is_model(name):\n    return False\n",
}


def robustbench_package(folder, monkeypatch):
    """Make a package with the modules of robustbench 1.1.1 importable, which has one network; return its folder."""
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("robustbench", "timm"):
            monkeypatch.delitem(sys.modules, name)
    return folder / "robustbench"


def extra_file(path, n=70, size=16, classes=10, **arrays):
    """Write an .npz file of random images whose first pixel is their label."""
    labels = np.arange(n) % classes
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    images[:, 0, 0] = labels[:, None]
    np.savez(path, **({"image": images, "label": labels} | arrays))
