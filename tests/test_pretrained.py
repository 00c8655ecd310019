"""The robust teacher that comes along: found from anywhere, small, robust, and its card says what the list says."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from small_sets import cifar_files
from torchvision.datasets import CIFAR10

from attacks.suite import pgd10
from data import Split
from data.loader import Batches
from engine.accuracy import evaluate
from models.teachers import PRETRAINED, TEACHERS, load_teacher
from utils.errors import UserError

REAL = Path(os.environ.get("CIFAR10_NPZ", ROOT.parent / "shared" / "data" / "cifar10_train5000_lossless.npz"))


def test_it_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logits = load_teacher("small_resnet", "CIFAR10", 10)(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10) and logits.isfinite().all()


def test_a_distillation_from_it_needs_no_path(nursery, tmp_path, monkeypatch):
    cifar_files(tmp_path, CIFAR10, monkeypatch, names=list("abcdefghij"), labels=range(10))
    words = "--dataset CIFAR10 --model small_resnet --method DGAD --teacher_model small_resnet --no_teacher_check"
    words += f" --data_root {tmp_path} --limit_train 32 --limit_test 20 --epochs 1 --num_steps 2 --bs 16"
    nursery.start(tmp_path, "tests/unsigned_cifar.py", f"{ROOT / 'main.py'} {words}")
    assert nursery.wait() == 0, (tmp_path / "output.txt").read_text()
    assert list(tmp_path.glob("tuned_models/CIFAR10/DGAD/*/best_PGD10_acc_model.pth"))


def test_on_other_data_the_line_says_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = PRETRAINED / "small_resnet_cifar10" / "model.safetensors"
    with pytest.raises(
        UserError, match=f"--teacher_path FILE .where the classes are those of CIFAR10: {file}., or train one"
    ):
        load_teacher("small_resnet", "Folder", 10)
    with pytest.raises(UserError, match="--teacher_path FILE, or train one"):  # its classes are never those
        load_teacher("small_resnet", "Digits", 10)
    with pytest.raises(UserError, match="a folder, not the checkpoint"):
        load_teacher("small_resnet", "Folder", 10, file.parent)
    assert load_teacher("small_resnet", "Folder", 10, file)


def test_each_that_comes_along_is_small_and_its_card_says_the_figures_of_the_list():
    shipped = [teacher for places in TEACHERS.values() for teacher in places.values() if teacher.shipped]
    assert {teacher.shipped for teacher in shipped} == {path.name for path in PRETRAINED.iterdir()}
    for teacher in shipped:
        folder = PRETRAINED / teacher.shipped
        assert (folder / "model.safetensors").stat().st_size <= 5e6
        card = (folder / "README.md").read_text()
        for title, figure in (("Clean", teacher.clean), ("AutoAttack", teacher.autoattack)):
            assert re.search(rf"\| {title} \| {figure:.2f} \|", card), title


@pytest.mark.skipif(not REAL.exists(), reason=f"real images are not at {REAL} (CIFAR10_NPZ)")
def test_it_withstands_attacks_on_real_images():
    with np.load(REAL) as kept:
        images = Split(torch.from_numpy(kept["x"][:256]), torch.from_numpy(kept["y"][:256]))
    batches = Batches(images, 128, device="cpu")
    teacher = load_teacher("small_resnet", "CIFAR10", 10)
    # Training images: a check of the file, not of the card. Chance is 10 %; a naturally trained network keeps far less.
    assert evaluate(teacher, batches).accuracy > 40
    assert evaluate(teacher, batches, pgd10(8 / 255)).accuracy > 20
