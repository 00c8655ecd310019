"""Augmentations of training images: recorded pixels, PIL's pixels, distributions, and their way into a run."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from commands import SMALL
from conftest import ROOT
from PIL import Image
from torchvision.transforms import RandomErasing

from attacks.objectives import cross_entropy
from data import Batches, Split
from data.augment import (
    AUGMENTATIONS,
    AUTOCONTRAST,
    COLOR_SHAPE,
    EQUALIZE,
    ROTATE,
    SHEAR,
    SHEAR_Y,
    color_shape,
    color_shaping,
    crop_shift,
    crop_shifting,
    cutmix,
    cutting_out,
    erasing,
    transforms_of,
)
from engine.training.metrics import EpochMetrics
from engine.training.settings import resolve
from methods import METHODS, WITH_SOFT_LABELS
from methods.losses import Step
from methods.trades import trades_loss
from utils.config import TrainConfig
from utils.errors import UserError

RECORDED = [ROOT / "tests" / "recorded" / "aug.npz"]
RECORDED += sorted(Path(os.environ.get("GOLDEN2_DIR", ROOT.parent / "shared" / "golden2")).glob("aug_*.npz"))
# Upper ends of the shares of the operations, and their ranges: of CIFAR, as in the project, and of SVHN.
TABLES = {
    "color": (np.cumsum([0.125] * 8), (0.05, 0.15)),
    "shape": (np.cumsum([0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.3, 0.3]), (0.05, 0.35)),
}


def rows_of(path):
    with np.load(path) as file:
        for name in file.files:
            if name.endswith(".meta"):
                key = name.removesuffix("meta")
                arrays = {each.removeprefix(key): file[each] for each in file.files if each.startswith(key)}
                yield json.loads(str(arrays.pop("meta"))), {each: torch.from_numpy(x) for each, x in arrays.items()}


@pytest.mark.recorded
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_pixels_and_labels_are_those_of_the_official_codes(path):
    for row, arrays in rows_of(path):
        if row["method"] == "cutmix":
            draws = (
                torch.tensor(row["draws"]["lam"], dtype=torch.float64),
                *(torch.tensor(row["draws"][name]) for name in ("centre_row", "centre_col")),
            )
            labels = F.one_hot(arrays["y"], arrays["y_out"].shape[1]).double()
            images, labels = cutmix(arrays["x"], labels, arrays["perm"], *draws)
            torch.testing.assert_close(labels, arrays["y_out"], rtol=0, atol=1e-15)
        else:
            images = idbh(arrays["x"].permute(2, 0, 1)[None], row["op"], [draw[-1] for draw in row["draws"]])
            images = images[0].permute(1, 2, 0)
        assert torch.equal(images, arrays["x_out"]), row


def idbh(x, name, draws):
    """Our transform of one image with the recorded draws."""
    if name.startswith("CropShift"):  # its offsets count from the other side
        total, columns, left, top, right, bottom = draws
        rows = total - columns
        return crop_shift(x, torch.tensor([[columns, rows, left, top, columns - right, rows - bottom]]))
    shares, shear = TABLES["shape" if "shape" in name else "color"]
    operation = int(np.searchsorted(shares, draws[0], side="right"))
    if operation == ROTATE:
        value = draws[1] * (-1) ** draws[2]
    else:
        low, high = shear if operation == SHEAR else COLOR_SHAPE[operation][:2]
        value = torch.tensor(draws[-1 if operation < SHEAR else 1]) * (high - low) + low
    if operation == SHEAR:
        operation, value = (SHEAR if draws[3] else SHEAR_Y), value * (-1) ** draws[2]
    return color_shape(x, torch.tensor([operation]), torch.as_tensor(value)[None])


PIL_FUNCTIONS = (
    TF.adjust_saturation,
    TF.adjust_brightness,
    TF.adjust_contrast,
    TF.adjust_sharpness,
    lambda image, value: TF.autocontrast(image),
    lambda image, value: TF.equalize(image),
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
    for x, kind, amount, ours in zip(images, operation, value, color_shape(images, operation, value), strict=True):
        expected = PIL_FUNCTIONS[kind](Image.fromarray(x.permute(1, 2, 0).numpy()), float(amount))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(expected)), (kind, amount)


def drawn(transform, n=40_000):
    return transform.draw(n, torch.Generator().manual_seed(0))


def near(counts, share):
    """Whether counts (or a count) of 40,000 draws are within 5 standard deviations of a share."""
    return (torch.as_tensor(counts) - 40_000 * share).abs().max() < 5 * (40_000 * share) ** 0.5


def test_color_shape_draws_eight_operations_equally_in_their_ranges():
    operation, value = drawn(color_shaping(32))
    counts = operation.bincount()
    assert near(counts[:SHEAR], 1 / 8) and near(counts[ROTATE], 1 / 8) and near(counts[[SHEAR, SHEAR_Y]], 1 / 16)
    assert value[operation == ROTATE].unique().tolist() == [x for x in range(-10, 11) if x]
    for kind, (low, high, signed) in COLOR_SHAPE.items():
        if kind not in (AUTOCONTRAST, EQUALIZE, ROTATE):
            values = value[operation == kind]
            assert (values.abs().min() - low).abs() < 0.01 and (values.max() - high).abs() < 0.01
            assert bool((values < 0).any()) == signed


def test_crop_shift_cuts_up_to_10_of_32_pixels_in_total_and_pastes_anywhere():
    (draws,) = drawn(crop_shifting(32))
    columns, rows, left, top, to_left, to_top = draws.T
    assert near((columns + rows).bincount(), 1 / 11)
    for bound, starts in ((columns, (left, to_left)), (rows, (top, to_top))):
        of_four = [start[bound == 4] for start in starts]
        assert all(((start >= 0) & (start <= bound)).all() for start in starts)
        assert all(start.bincount(minlength=5).min() > len(start) / 6 for start in of_four)
    assert drawn(crop_shifting(64))[0][:, :2].sum(1).max() == 20


def test_erased_rectangles_have_the_distribution_of_torchvision():
    image, probability = torch.zeros(3, 32, 32), 0.5
    (boxes,) = drawn(erasing(probability, 32))
    theirs = [RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(4_000)]
    top, left, height, width = torch.tensor(theirs).T.double()
    theirs = torch.stack([top, top + height, left, left + width], 1)
    boxes = boxes[boxes[:, 1] > boxes[:, 0]].double()
    assert near(len(boxes), probability) and boxes.min() == 0 and boxes.max() == 32
    for function in (torch.mean, torch.std):
        assert (function(boxes, 0) - function(theirs, 0)).abs().max() < 0.8  # pixels; of 4,000 draws


def test_cutout_is_a_square_of_18_of_32_pixels_clipped_to_the_image():
    transform = cutting_out(32)
    (boxes,) = drawn(transform, 500)
    holes = transform.apply(torch.full((500, 3, 32, 32), 9, dtype=torch.uint8), boxes)[:, 0] == 0
    heights = holes.any(2).sum(1)
    assert heights.min() == 9 and heights.max() == 18 and torch.equal(heights, heights.long())
    assert "36 pixels" in cutting_out(64).description


def batches_of(augment, images, classes=4, batch_size=16):
    split = Split(images, torch.arange(len(images)) % classes)
    transforms = transforms_of(augment, images.shape[-1], True)
    mix = classes if augment == "cutmix" else 0
    generator = torch.Generator().manual_seed(1)
    return Batches(split, batch_size, device="cpu", transforms=transforms, mix_classes=mix, generator=generator)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_image_of_a_batch_has_its_own_draws(augment):
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    for images, _ in batches_of(augment, image.repeat(48, 1, 1, 1)):
        assert len({x.numpy().tobytes() for x in images}) >= 14  # of 16; the same crop twice is possible


def test_cutmix_weights_labels_by_the_pixels_of_each_class():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(24, 3, 16, 16) + 1  # its value is its class
    batches = batches_of("cutmix", images)
    batches.transforms = ()  # no padding
    shares = []
    for x, y in batches:
        values = (x[:, 0] * 255).round().long() - 1
        pixels = torch.stack([(values == label).double().mean((1, 2)) for label in range(4)], 1)
        torch.testing.assert_close(y.double(), pixels, rtol=0, atol=1e-6)
        shares.append(y.max(1).values.min().item())
    assert len(set(shares)) == len(shares) == 6  # every batch has its own box


def test_soft_labels_enter_loss_attack_and_accuracy():
    torch.manual_seed(0)
    logits, y = torch.randn(6, 4, requires_grad=True), torch.rand(6, 4).softmax(1)
    mixed = sum(y[:, k] * cross_entropy(logits, torch.full((6,), k)) for k in range(4))
    torch.testing.assert_close(cross_entropy(logits, y), mixed)
    torch.testing.assert_close(trades_loss(logits, logits, y, beta=6), mixed.mean())
    metrics = EpochMetrics("cpu")
    metrics.add(Step(torch.tensor(1.0), clean=y, adv=-y), y)
    assert metrics.means().clean_acc == 100 and metrics.means().adv_acc == 0


@pytest.mark.parametrize("method", METHODS)
def test_cutmix_is_for_methods_of_soft_labels(method):
    config = TrainConfig(method=method, augment="cutmix")
    if method in WITH_SOFT_LABELS:
        resolve(config, {})
    else:
        with pytest.raises(UserError, match=f"--augment cutmix: {method} needs one class"):
            resolve(config, {})


def test_the_log_says_what_is_done_to_training_images(train):
    fast = f"{SMALL} --method AT --epochs 1 --limit_train 16"
    assert "cropped at random, not mirrored; mirrored images of this dataset may have" in train(fast)
    log = train(f"{fast} --desc_str a --no-flip --augment cutmix")
    assert "zeros and cropped at random, mixed by CutMix, not mirrored\n" in log
    log = train(f"{fast} --desc_str b --augment idbh-weak")
    assert "shifted, with one of eight changes of color or shape" in log and "probability 0.5" in log


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_host_never_waits_for_a_gpu_and_pixels_are_those_of_the_cpu(augment):
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    expected = [tensor for batch in batches_of(augment, images) for tensor in batch]
    batches = batches_of(augment, images)
    batches.device = torch.device("cuda")
    batches.images, batches.labels = images.cuda(), batches.labels.cuda()
    iterator = iter(batches)
    tensors = [*next(iterator)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors += [tensor for batch in iterator for tensor in batch]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(ours.cpu(), other) for ours, other in zip(tensors, expected, strict=True))
