"""Extra training images from an .npz file: batches, labels, errors, resume and torchrun."""

import json

import numpy as np
import pytest
import torch
from commands import SMALL
from conftest import ROOT
from run_files import files_of
from small_sets import extra_file
from test_resume import Killed, kill_at

from data import Batches, Split
from data.extra import open_extra
from engine.training.trainer import Trainer
from models import build
from utils.errors import UserError

RUN = f"{SMALL} --epochs 2 --extra_data extra.npz"


def sampler_rows():
    """Rows of the recorded sampler of Wang et al. (2023) that mix labelled and extra images."""
    path = ROOT.parent / "shared" / "golden2" / "sampler_DM.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["unsup_fraction"] > 0]


SIZES = [(20, 50, 8, 0.7, 3, 3), (21, 5, 10, 0.5, 3, 5), (16, 9, 8, 0.9, 2, 1)]  # of the split, extra, batch, ...
SIZES += [
    (row["n_sup"], row["n_unsup"], row["batch_size"], row["unsup_fraction"], None, row["sup_batch_size"])
    for row in sampler_rows()
]


@pytest.mark.parametrize(("own", "others", "batch_size", "fraction", "length", "own_per_batch"), SIZES)
def test_batches_are_full_and_take_a_permutation_of_the_training_images(
    tmp_path, own, others, batch_size, fraction, length, own_per_batch
):
    others = min(others, 2_000)
    path = tmp_path / "extra.npz"
    np.savez(path, image=np.zeros((others, 2, 2, 3), np.uint8), label=np.arange(others))
    extra = open_extra(str(path), fraction, 2, others, labels=True)
    split = Split(torch.full((own, 3, 2, 2), 255, dtype=torch.uint8), torch.arange(own))
    batches = Batches(
        split, batch_size, device="cpu", shuffle=True, extra=extra, generator=torch.Generator().manual_seed(0)
    )
    assert len(batches) == (length or -(-own // batch_size))
    epochs = [[*batches] for _ in range(2)]
    for epoch in epochs:
        masks = [x[:, 0, 0, 0] == 1 for x, _ in epoch]
        used = torch.cat([y[mask] for mask, (_, y) in zip(masks, epoch, strict=True)])
        assert all(len(y) == batch_size for _, y in epoch) and len(epoch) == len(batches)
        assert all(mask.sum() == own_per_batch for mask in masks[:-1])
        assert len(used.unique()) == len(used) == extra.own_images(own, batch_size)
        assert f"{len(used):,} of {own:,} training images" in batches.describe()
        assert any(mask.tolist() != sorted(mask.tolist(), reverse=True) for mask in masks)  # shuffled
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])


def test_an_epoch_of_more_own_images_than_the_split_has_is_filled_with_extra_ones(tmp_path):
    extra_file(tmp_path / "extra.npz", size=4)
    extra = open_extra(str(tmp_path / "extra.npz"), 0.13, 4, 10, labels=True)  # 1 of 8
    split = Split(torch.zeros(17, 3, 4, 4, dtype=torch.uint8), torch.full((17,), -1))
    batches = Batches(split, 8, device="cpu", shuffle=True, extra=extra, generator=torch.Generator())
    assert [(y == -1).sum().item() for _, y in batches] == [7, 7, 3]
    assert [len(y) for _, y in batches] == [8, 8, 8]


def test_images_keep_their_labels_and_skipped_batches_change_nothing(tmp_path):
    extra_file(tmp_path / "extra.npz", size=4)
    extra = open_extra(str(tmp_path / "extra.npz"), 0.5, 4, 10, labels=True)
    split = Split(torch.full((30, 3, 4, 4), 99, dtype=torch.uint8), torch.full((30,), 99))
    generator = torch.Generator()
    batches = Batches(split, 8, device="cpu", shuffle=True, extra=extra, generator=generator)
    state = generator.get_state()
    whole = [*batches]
    for x, y in whole:
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y)
    generator.set_state(state)
    for (x, y), (x_again, y_again) in zip(whole[2:], batches.skip(2), strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)


def opened(path, size=16, classes=10, labels=True):
    return open_extra(str(path), 0.5, size, classes, labels=labels)


@pytest.mark.parametrize("fortran", [False, True])
def test_a_file_is_mapped_where_its_arrays_lie(tmp_path, fortran):
    images = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    images = np.asfortranarray(images) if fortran else images
    extra_file(tmp_path / "extra.npz", image=images, label=(np.arange(30) % 10).astype(">i2"), other=np.ones(9))
    extra = opened(tmp_path / "extra.npz")
    assert isinstance(extra.images, np.memmap) and isinstance(extra.labels, np.memmap)
    rows = torch.tensor([29, 3, 3])
    assert torch.equal(extra.images_at(rows), torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2))
    assert extra.labels_at(rows).tolist() == [9, 3, 3]


INVALID = {
    "another size": ({"size": 32}, "image is uint8 (70, 32, 32, 3); it must be uint8 (N, 16, 16, 3)"),
    "channels first": ({"image": np.zeros((70, 3, 16, 16), np.uint8)}, "image is uint8 (70, 3, 16, 16)"),
    "float images": ({"image": np.zeros((70, 16, 16, 3), np.float32)}, "image is float32"),
    "no images": ({"image": np.zeros((0, 16, 16, 3), np.uint8)}, "image is uint8 (0,"),
    "a scalar": ({"image": np.uint8(1)}, "image is uint8 ()"),
    "objects": ({"image": np.array([{}] * 70)}, "objects"),
    "few labels": ({"label": np.arange(69) % 10}, "label is int64 (69,); it must be integers (70,)"),
    "probabilities": ({"label": np.ones((70, 10))}, "label is float64"),
    "more classes": ({"classes": 12}, "has the label 11; the dataset's are 0 to 9"),
    "negative labels": ({"label": np.arange(70) % 10 - 1}, "has the label -1"),
    "fewer classes": ({"classes": 7}, "has images of 7 classes, the dataset of 10"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_arrays_that_do_not_fit_the_dataset_are_one_line(tmp_path, kind):
    arrays, message = INVALID[kind]
    extra_file(tmp_path / "extra.npz", **arrays)
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "extra.npz")
    assert str(caught.value).startswith(f"--extra_data {tmp_path}/extra.npz: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_mapped_are_one_line(tmp_path):
    extra_file(good := tmp_path / "good.npz")
    np.savez_compressed(tmp_path / "small.npz", **np.load(good))
    np.savez(tmp_path / "names.npz", images=np.zeros(3), label=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-60])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, message in {
        "small.npz": "zip -0",
        "names.npz": "has no array 'image'",
        "text.npz": "cannot be read as an .npz file",
        "cut.npz": "cannot be read as an .npz file",
        "array.npy": "cannot be read as an .npz file",
        "none.npz": "No such file",
        ".": "Is a directory",
    }.items():
        with pytest.raises(UserError, match="--extra_data") as caught:
            opened(tmp_path / name)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, image=np.load(good)["image"])
    assert opened(unlabelled, labels=False).labels is None
    with pytest.raises(UserError, match="has no array 'label'"):
        opened(unlabelled)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method AT --extra_labels teacher", "--extra_labels teacher: AT has no teacher"),
        ("--method AT --extra_fraction 0.01", "--extra_fraction 0.01: less than one image of --bs 16"),
        ("--method AT --extra_fraction 1", "--extra_fraction 1.0: must be above 0 and below 1"),
    ],
)
def test_flags_that_cannot_work_are_refused(train, flags, message):
    with pytest.raises(UserError, match=message):
        train(f"{RUN} {flags}")


def test_a_killed_run_ends_with_the_same_bytes_and_needs_the_same_file(train, tmp_path, monkeypatch):
    extra_file(tmp_path / "extra.npz")
    args = f"{RUN.replace('extra.npz', '../extra.npz')} --method AT --augment cutmix --save_minutes 0 --resume"
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    log = train(args)
    assert "an epoch is 3 batches of 5 training and 11 extra images, 15 of 48 training images; 70 extra images" in log
    monkeypatch.chdir(tmp_path / "parts")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, Trainer, "step", 5)
        train(args)
    extra_file(tmp_path / "extra.npz", n=80)
    train(args, error="was trained with other images")
    extra_file(tmp_path / "extra.npz")
    assert "resuming after epoch 1 of 2 and 1 of 3 batches" in train(args)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_the_teacher_labels_extra_images_before_they_are_augmented(train, tmp_path, monkeypatch):
    torch.manual_seed(0)
    teacher = build("small_resnet", 10, 16).eval()
    torch.save({"net": teacher.state_dict(), "model": "small_resnet"}, tmp_path / "teacher.pth")
    extra_file(tmp_path / "extra.npz", label=np.full(70, 99))  # not used
    seen, step = [], Trainer.step

    def recording(self, x, y, *args):
        seen.append((x, y))
        return step(self, x, y, *args)

    monkeypatch.setattr(Trainer, "step", recording)
    flags = "--teacher_model small_resnet --teacher_path teacher.pth --no_teacher_check --extra_labels teacher"
    monkeypatch.setattr("engine.training.run.transforms_of", lambda *_: [])
    train(f"{RUN} --method RSLAD --precision fp32 --augment crop {flags}")
    extra = torch.from_numpy(np.load(tmp_path / "extra.npz")["image"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = {x.numpy().tobytes(): label for x, label in zip(extra, teacher(extra).argmax(1), strict=True)}
    pairs = [(x.numpy().tobytes(), label) for images, y in seen for x, label in zip(images, y, strict=True)]
    extra_pairs = [(labels[image], label) for image, label in pairs if image in labels]
    assert len(extra_pairs) == 6 * 11 and all(expected == label for expected, label in extra_pairs)
