"""Extra training images from an .npz file: batches, labels, errors and resume."""

import json
import re

import numpy as np
import pytest
import torch
from commands import SMALL
from conftest import ROOT, user_error
from small_sets import extra_file

from data import Batches, Split
from data.augment import AUGMENTATIONS
from data.extra import open_extra
from engine.training.trainer import Trainer
from models.weights import load_network
from utils.config import TrainConfig

RUN = f"{SMALL} --epochs 2 --extra_data extra.npz"


def opened(path, size=16, classes=10, **fields):
    return open_extra(TrainConfig(extra_data=str(path), **fields), size, classes)


# Training images, extra images, batch size, fraction -> training images in a batch. The same of the recorded sampler.
SIZES = [(20, 50, 8, 0.7, 3), (21, 5, 10, 0.5, 5), (17, 9, 8, 0.13, 7), (6, 5, 8, 0.5, 4)]
SAMPLER = ROOT.parent / "shared" / "golden2" / "sampler_DM.json"
for row in json.loads(SAMPLER.read_text())["rows"] if SAMPLER.exists() else ():
    if row["unsup_fraction"] > 0:
        values = (row[key] for key in ("n_sup", "n_unsup", "batch_size", "unsup_fraction", "sup_batch_size"))
        SIZES.append(tuple(values))


@pytest.mark.parametrize(("own", "others", "batch_size", "fraction", "own_per_batch"), SIZES)
def test_batches_are_full_and_take_a_permutation_of_the_training_images(
    tmp_path, own, others, batch_size, fraction, own_per_batch
):
    others = min(others, 2_000)
    extra_file(tmp_path / "extra.npz", n=others, size=2)
    extra = opened(tmp_path / "extra.npz", 2, min(others, 10), extra_fraction=fraction)
    split = Split(torch.full((own, 3, 2, 2), 255, dtype=torch.uint8), torch.arange(own) + 10)
    generator = torch.Generator().manual_seed(0)
    batches = Batches(split, batch_size, device="cpu", shuffle=True, extra=extra, generator=generator)
    used = [torch.cat([y[y >= 10] for _, y in batches]) for _ in range(2)]
    generator.manual_seed(0)
    epoch = [*batches]
    assert len(epoch) == len(batches) == -(-own // batch_size)
    assert all(len(y) == batch_size for _, y in epoch)
    assert all((y >= 10).sum() == own_per_batch for _, y in epoch[:-1])
    assert any(mask != sorted(mask) for mask in ((y < 10).tolist() for _, y in epoch))  # shuffled
    for x, y in epoch:  # the first pixel of an extra image is its label
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), torch.where(y < 10, y, 255))
    assert len(used[0].unique()) == len(used[0]) == min(own, own_per_batch * len(batches))
    assert f"{len(used[0]):,} of {own:,} training images" in extra.describe(own, batch_size)
    assert not torch.equal(*used)
    generator.manual_seed(0)
    assert all(torch.equal(x, again) for (x, _), (again, _) in zip(epoch[1:], batches.skip(1), strict=True))


@pytest.mark.parametrize("fortran", [False, True])
def test_a_file_is_mapped_where_its_arrays_lie(tmp_path, fortran):
    images = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    images = np.asfortranarray(images) if fortran else images
    extra_file(tmp_path / "extra.npz", image=images, label=(np.arange(30) % 10).astype(">i2"), other=np.ones(9))
    extra = opened(tmp_path / "extra.npz")
    assert isinstance(extra.images, np.memmap) and isinstance(extra.labels, np.memmap)
    pixels, labels = extra.at(rows := torch.tensor([29, 3, 3]))
    assert torch.equal(pixels, torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2))
    assert labels.tolist() == [9, 3, 3]


INVALID = {
    "another size": ({"size": 32}, "image is uint8 (70, 32, 32, 3); it must be an uncompressed .npz file with image"),
    "channels first": ({"image": np.zeros((70, 3, 16, 16), np.uint8)}, "image is uint8 (70, 3, 16, 16)"),
    "float images": ({"image": np.zeros((70, 16, 16, 3), np.float32)}, "image is float32"),
    "no images": ({"image": np.zeros((0, 16, 16, 3), np.uint8)}, "image is uint8 (0,"),
    "a scalar": ({"image": np.uint8(1)}, "image is uint8 ()"),
    "objects": ({"image": np.array([{}] * 70)}, "image.npy holds Python objects"),
    "few labels": ({"label": np.arange(69) % 10}, "label is int64 (69,) for 70 images"),
    "probabilities": ({"label": np.ones((70, 10))}, "label is float64"),
    "more classes": ({"classes": 12}, "has the label 11; it must be"),
    "negative labels": ({"label": np.arange(70) % 10 - 1}, "has the label -1"),
    "fewer classes": ({"classes": 7}, "has images of 7 classes, not 10"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_arrays_that_do_not_fit_the_dataset_are_one_line(tmp_path, kind):
    arrays, message = INVALID[kind]
    extra_file(tmp_path / "extra.npz", **arrays)
    with user_error(re.escape(f"--extra_data {tmp_path}/extra.npz: {message}")):
        opened(tmp_path / "extra.npz")


def test_files_that_cannot_be_mapped_are_one_line(tmp_path):
    extra_file(good := tmp_path / "good.npz")
    images = np.load(good)["image"]
    np.savez_compressed(tmp_path / "small.npz", image=images, label=np.zeros(70, int))
    np.savez(tmp_path / "unlabelled.npz", image=images)
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-60])
    (tmp_path / "header.npz").write_bytes(good.read_bytes().replace(b"16, 16, 3)", b"16, 16, 3,"))
    messages = {"small.npz": "zip -0", "unlabelled.npz": "no array 'label.npy'", "text.npz": "not a zip file"}
    messages |= {"cut.npz": "not a zip file", "none.npz": "No such file", ".": "Is a directory", "header.npz": "EOF in"}
    for name, message in messages.items():
        with user_error(f"^--extra_data {tmp_path}.*{message}"):
            opened(tmp_path / name)
    assert opened(tmp_path / "unlabelled.npz", extra_labels="teacher").labels is None


def test_flags_that_cannot_work_are_refused(train, tmp_path):
    extra_file(tmp_path / "extra.npz")
    for flags, message in {
        "--extra_labels teacher": "--extra_labels teacher: AT has no teacher",
        "--extra_fraction 0.01": "--extra_fraction 0.01: 0 of 16 images per batch",
        "--extra_fraction 1": "--extra_fraction 1: 16 of 16 images",
    }.items():
        train(f"{RUN} --method AT {flags}", error=message)


def test_the_teacher_labels_extra_images_before_they_are_augmented(distill, tmp_path, monkeypatch):
    extra_file(tmp_path / "extra.npz", label=np.full(70, 99))  # not used
    seen, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x, y, *args: seen.append((x, y)) or step(self, x, y, *args))
    monkeypatch.setitem(AUGMENTATIONS, "crop", ((), ""))
    distill("RSLAD", "--epochs 2 --precision fp32 --extra_data extra.npz --extra_labels teacher")
    extra = torch.from_numpy(np.load(tmp_path / "extra.npz")["image"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        predicted = load_network("small_resnet", 10, tmp_path / "teacher.pth").eval()(extra).argmax(1)
    labels = {x.numpy().tobytes(): label for x, label in zip(extra, predicted, strict=True)}
    pairs = [(x.numpy().tobytes(), label) for images, y in seen for x, label in zip(images, y, strict=True)]
    extra_pairs = [(labels[image], label) for image, label in pairs if image in labels]
    assert len(extra_pairs) == 6 * 11 and all(expected == label for expected, label in extra_pairs)
