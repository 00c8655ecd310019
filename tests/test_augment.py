"""Augmentations of training images: recorded pixels, PIL's pixels, random draws, and mixed labels."""

import json
import math
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from conftest import ROOT, user_error
from PIL import Image
from tiny import NO_CUDA, make_trainer, tiny_problem
from torchvision.transforms import RandomErasing

from attacks.objectives import cross_entropy
from data import Batches, Split, augment
from data.augment import AUGMENTATIONS, COLOR_SHAPE, ROTATE, SHEAR, SHEAR_Y, color_shape, crop_shift, cutmix
from engine.training.metrics import EpochMetrics
from engine.training.settings import resolve
from methods import METHODS, WITH_SOFT_LABELS
from methods.adr import rectified_labels
from methods.losses import Step
from methods.saad import label_gradient
from methods.trades import trades_loss
from utils.config import TrainConfig

RECORDED = [ROOT / "tests" / "recorded" / "aug.npz"]
RECORDED += sorted(Path(os.environ.get("GOLDEN2_DIR", ROOT.parent / "shared" / "golden2")).glob("aug_*.npz"))
# Cumulated shares of the operations, and the range of shears: of CIFAR, as in the project, and of SVHN.
COLOR = np.arange(1, 9) / 8, (0.05, 0.15)
SHAPE = np.cumsum([0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.3, 0.3]), (0.05, 0.35)


@pytest.mark.recorded
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_pixels_and_labels_are_those_of_the_official_codes(path):
    file = np.load(path)
    for key in (name.removesuffix("meta") for name in file.files if name.endswith(".meta")):
        row, x = json.loads(str(file[key + "meta"])), torch.from_numpy(file[key + "x"])
        if row["method"] == "cutmix":
            labels, perm = (torch.from_numpy(file[key + name]) for name in ("y", "perm"))
            draws = (torch.from_numpy(np.asarray(row["draws"][name])) for name in ("lam", "centre_row", "centre_col"))
            images, labels = cutmix(x, F.one_hot(labels, 10).double(), perm, *draws)
            assert np.allclose(labels, file[key + "y_out"], rtol=0, atol=1e-15)
        else:
            images = idbh(x.permute(2, 0, 1)[None], row["op"], [draw[-1] for draw in row["draws"]])
            images = images[0].permute(1, 2, 0)
        assert np.array_equal(images, file[key + "x_out"]), row


def idbh(x, name, draws):
    """Our transform of one image with the recorded draws."""
    if name.startswith("CropShift"):  # its offsets count from the other side
        total, columns, left, top, right, bottom = draws
        rows = total - columns
        return crop_shift(x, torch.tensor([[columns, rows, left, top, columns - right, rows - bottom]]))
    shares, shear = SHAPE if "shape" in name else COLOR
    operation = int(np.searchsorted(shares, draws[0], side="right"))
    low, high = shear if operation == SHEAR else COLOR_SHAPE[operation][:2]
    value = torch.tensor(draws[1 if operation == SHEAR else -1]) * (high - low) + low
    if operation == ROTATE:
        value = torch.tensor(draws[1] * (-1.0) ** draws[2])
    if operation == SHEAR:
        operation, value = (SHEAR if draws[3] else SHEAR_Y), value * (-1) ** draws[2]
    return color_shape(x, torch.tensor([[operation, value]]))


PIL_FUNCTIONS = (
    *(TF.adjust_saturation, TF.adjust_brightness, TF.adjust_contrast, TF.adjust_sharpness),
    *(lambda image, value: TF.autocontrast(image), lambda image, value: TF.equalize(image)),
    lambda image, value: TF.affine(image, 0.0, [0, 0], 1.0, [math.degrees(value), 0.0]),
    TF.rotate,
    lambda image, value: TF.affine(image, 0.0, [0, 0], 1.0, [0.0, math.degrees(value)]),
)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (64, 64)])
def test_every_operation_has_the_pixels_of_pil(size):
    torch.manual_seed(0)
    n = 20 * len(PIL_FUNCTIONS)
    images = torch.randint(256, (n, 3, *size), dtype=torch.uint8)
    images[::3] = images[::3] // 4 + 30  # of low contrast
    images[4:6] = 7  # of one color, for autocontrast and equalize
    operation, value = torch.arange(n) % len(PIL_FUNCTIONS), torch.rand(n) * 1.8 + 0.1
    value = torch.where((operation == SHEAR) | (operation == SHEAR_Y), value - 1, value)
    value = torch.where(operation == ROTATE, (60 * value - 60).round(), value)
    results = color_shape(images, torch.stack([operation, value], 1))
    for x, kind, amount, ours in zip(images, operation, value, results, strict=True):
        expected = PIL_FUNCTIONS[kind](Image.fromarray(x.permute(1, 2, 0).numpy()), float(amount))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(expected)), (kind, amount)


def test_every_crop_of_the_padded_image_and_its_mirror_image_is_that_of_torchvision():
    image = torch.randint(256, (3, 24, 32), dtype=torch.uint8)
    padded, corners = TF.pad(image, 4), torch.cartesian_prod(torch.arange(9), torch.arange(9))
    crops = augment.random_crop(image.expand(81, -1, -1, -1), corners)
    assert torch.equal(crops, torch.stack([TF.crop(padded, *corner, 24, 32) for corner in corners.tolist()]))
    mirrored = augment.mirror(crops[:2], torch.tensor([True, False]))
    assert torch.equal(mirrored, torch.stack([TF.hflip(crops[0]), crops[1]]))


def test_draws_have_the_published_ranges_and_distributions():
    """Counts of 40,000 draws are within 5 standard deviations."""
    n, generator = 40_000, torch.Generator().manual_seed(0)

    def near(counts, share):
        return (torch.as_tensor(counts) - n * share).abs().max() < 5 * (n * share) ** 0.5

    row, column = augment.draw_corners(n, 32, generator).T
    assert near((9 * row + column).bincount(), 1 / 81)
    assert near(augment.draw_mirrored(n, 32, generator).long().bincount(), 1 / 2)
    operation, value = augment.draw_operations(n, 32, generator).T
    counts = operation.long().bincount()
    assert near(counts[:SHEAR], 1 / 8) and near(counts[ROTATE], 1 / 8) and near(counts[[SHEAR, SHEAR_Y]], 1 / 16)
    assert value[operation == ROTATE].unique().tolist() == [x for x in range(-10, 11) if x]
    for kind in (0, 1, 2, 3, SHEAR):
        values, (low, high, signed) = value[operation == kind], COLOR_SHAPE[kind]
        assert (values.abs().min() - low).abs() < 0.01 and (values.max() - high).abs() < 0.01
        assert bool((values < 0).any()) == signed
    columns, rows, *starts = augment.draw_shifts(n, 32, generator).T
    assert near((columns + rows).bincount(), 1 / 11)
    for bound, start in zip((columns, rows) * 2, starts, strict=True):
        assert ((start >= 0) & (start <= bound)).all()
        assert start[bound == 4].bincount(minlength=5).min() > (bound == 4).sum() / 6
    boxes = augment.draw_rectangles(n, 32, generator, probability=0.5)
    boxes = boxes[boxes[:, 1] > boxes[:, 0]].double()
    theirs = [RandomErasing.get_params(torch.zeros(3, 32, 32), (0.02, 0.33), (0.3, 3.3), [0.0]) for _ in range(4_000)]
    top, left, height, width = torch.tensor([each[:4] for each in theirs]).T.double()
    theirs = torch.stack([top, top + height, left, left + width], 1)
    assert near(len(boxes), 1 / 2) and boxes.min() == 0 and boxes.max() == 32
    assert all((f(boxes, 0) - f(theirs, 0)).abs().max() < 0.8 for f in (torch.mean, torch.std))  # pixels
    top, bottom, *_ = augment.draw_squares(n, 32, generator).T
    assert (bottom - top == 18).all() and near((top + 9).bincount(), 1 / 32)


def batches_of(name, images, transforms=None):
    split, generator = Split(images, torch.arange(len(images)) % 4), torch.Generator().manual_seed(1)
    transforms = AUGMENTATIONS[name][0] if transforms is None else transforms
    options = {"transforms": transforms, "mix_classes": 4 * (name == "cutmix"), "generator": generator}
    return Batches(split, 16, device="cpu", **options)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_of_a_batch_has_its_own_draws(name, size):
    image = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
    for images, _ in batches_of(name, image.repeat(48, 1, 1, 1)):
        assert len({x.numpy().tobytes() for x in images}) >= 13  # of 16; the same crop twice is possible


def test_cutmix_weights_labels_by_the_pixels_of_each_class():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(24, 3, 16, 16)  # its value is its class
    for x, y in batches_of("cutmix", images, transforms=()):
        pixels = [((x[:, 0] * 255).round() == label).double().mean((1, 2)) for label in range(4)]
        torch.testing.assert_close(y.double(), torch.stack(pixels, 1), rtol=0, atol=1e-6)


def test_soft_labels_enter_loss_attack_and_accuracy():
    torch.manual_seed(0)
    logits, y = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    mixed = sum(y[:, k] * cross_entropy(logits, torch.full((6,), k)) for k in range(4))
    torch.testing.assert_close(cross_entropy(logits, y), mixed)
    torch.testing.assert_close(trades_loss(logits, logits, y, beta=6), mixed.mean())
    p = (logits / 2).softmax(1)
    mixing = (0.7 - p.amax(1) + (y * p).sum(1)).clamp(0, 1)[:, None]
    got = rectified_labels(logits, y, temperature=2.0, lam=0.7)
    torch.testing.assert_close(got, mixing * p + (1 - mixing) * y)
    _, teacher, x, _ = tiny_problem(dtype=torch.float32)
    teacher.linear = torch.nn.Linear(32, 4)
    gradients = [label_gradient(teacher, x, torch.full((6,), k))[1] for k in range(4)]
    mixed = sum(y[:, k].view(-1, 1, 1, 1) * gradient for k, gradient in enumerate(gradients))
    torch.testing.assert_close(label_gradient(teacher, x, y)[1], mixed)
    metrics = EpochMetrics("cpu")
    metrics.add(Step(torch.tensor(1.0), clean=y, adv=-y), y)
    means = metrics.means()
    assert means["train_clean_acc"] == 100 and means["train_adv_acc"] == 0


def test_trades_attacks_away_from_a_mixed_label():
    student, _, x, _ = tiny_problem()
    y, noise = torch.rand(6, 10, dtype=x.dtype).softmax(1), torch.zeros_like(x)
    trainer = make_trainer("TRADES", student, [])
    expected = trainer.attack(lambda s: lambda z: cross_entropy(s(z), y), x, start_noise=noise)
    recorded = []
    trainer.pgd = lambda *args, pgd=trainer.pgd, **kwargs: recorded.append(pgd(*args, **kwargs)) or recorded[-1]
    trainer.step(x, y, start_noise=noise)
    torch.testing.assert_close(recorded[0], expected, rtol=0, atol=0)  # the same operations


@pytest.mark.parametrize("method", METHODS)
def test_cutmix_is_for_methods_of_soft_labels(method):
    config = TrainConfig(method=method, augment="cutmix")
    refused = user_error(f"--augment cutmix: not supported with {method}")
    with nullcontext() if method in WITH_SOFT_LABELS else refused:
        resolve(config, {})


@pytest.mark.gpu
@NO_CUDA
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_host_never_waits_for_a_gpu_and_pixels_are_those_of_the_cpu(name):
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    expected = [tensor for batch in batches_of(name, images) for tensor in batch]
    batches = batches_of(name, images)
    batches.device, batches.images, batches.labels = torch.device("cuda"), images.cuda(), batches.labels.cuda()
    iterator = iter(batches)
    tensors = [*next(iterator)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors += [tensor for batch in iterator for tensor in batch]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(ours.cpu(), other) for ours, other in zip(tensors, expected, strict=True))
