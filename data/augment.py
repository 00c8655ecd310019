"""Random transforms of whole batches of uint8 images (B, C, H, W), on their device.

A transform is a pure function of the images and their random draws, one row for each image. It handles all images of a
batch at once and never waits for the device. Pixels equal those of torchvision's functions on PIL images.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import equalize

CROP_PADDING = 4  # pixels, as in every official code
CUTOUT_SIDE = 18  # pixels of 32, of Wang et al., "Better Diffusion Models Further Improve Adversarial Training" (2023)
MAX_SHIFT = 10  # pixels of 32, of IDBH: Li & Spratling, "Data Augmentation Alone Can Improve Adversarial Training"
ERASED_AREA, ERASED_RATIO, ERASING_TRIES = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's RandomErasing

# The operations of IDBH's ColorShape for CIFAR, equally likely: lowest and highest value, whether its sign is drawn.
SATURATION, BRIGHTNESS, CONTRAST, SHARPNESS, AUTOCONTRAST, EQUALIZE, SHEAR, ROTATE, SHEAR_Y = range(9)
COLOR_SHAPE = {
    SATURATION: (0.1, 1.9, False),
    BRIGHTNESS: (0.5, 1.9, False),
    CONTRAST: (0.5, 1.9, False),
    SHARPNESS: (0.1, 1.9, False),
    AUTOCONTRAST: (0, 0, False),
    EQUALIZE: (0, 0, False),
    SHEAR: (0.05, 0.15, True),  # radians
    ROTATE: (1, 10, True),  # degrees, an integer
}


class Transform(NamedTuple):
    """``apply(images, draws)`` returns images; ``draw(n, size, generator)`` returns draws (n, ...), on the CPU."""

    draw: Callable[[int, int, torch.Generator | None], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def draw_corners(n, size, generator):
    """Corners for :func:`random_crop`."""
    return torch.randint(2 * CROP_PADDING + 1, (n, 2), generator=generator)


def random_crop(images: Tensor, corners: Tensor) -> Tensor:
    """Zero-pad ``images`` (B, C, H, W) by 4 pixels and crop HxW windows at ``corners`` (B, 2), (row, column)."""
    height, width = images.shape[2:]
    padded = F.pad(images, (CROP_PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, rows, columns, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def draw_mirrored(n, size, generator):
    """Select images with probability 1/2."""
    return torch.randint(2, (n,), generator=generator).bool()


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images of the mask ``mirrored`` (B,)."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def draw_squares(n, size, generator):
    """Cutout (DeVries & Taylor, 2017): boxes of equal size around random pixels, also beyond the border."""
    center, half = torch.randint(size, (n, 2), generator=generator), round(CUTOUT_SIDE * size / 32) // 2
    return torch.stack([center - half, center + half], 2).flatten(1)


def draw_rectangles(n, size, generator, probability):
    """Boxes of torchvision's RandomErasing; empty with probability 1 - ``probability``."""
    side, (low, high) = torch.full((n, 2), float(size)), map(math.log, ERASED_RATIO)
    for _ in range(ERASING_TRIES):
        too_large = (side >= size).any(1)
        area, ratio = torch.rand(2, int(too_large.sum()), generator=generator)
        area = size**2 * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
        ratio = (low + ratio * (high - low)).exp()
        side[too_large] = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).round()
    erased = (torch.rand(n, generator=generator) < probability) & (side < size).all(1)
    side *= erased[:, None]
    corner = (torch.rand(n, 2, generator=generator) * (size - side + 1)).floor()
    return torch.stack([corner, corner + side], 2).flatten(1).long()


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a box of each image to 0: ``boxes`` (B, 4) are first and end row, first and end column."""
    return images.masked_fill(_inside(boxes, images)[:, None], 0)


def draw_shifts(n, size, generator):
    """IDBH's CropShift: cut up to 10 of 32 rows and columns in total, and place the rest anywhere."""

    def up_to(bound):
        return (torch.rand(n, generator=generator) * (bound + 1)).floor().long()

    total = up_to(round(MAX_SHIFT * size / 32))
    columns = up_to(total)
    return torch.stack([columns, total - columns, *(up_to(bound) for bound in (columns, total - columns) * 2)], 1)


def crop_shift(images: Tensor, draws: Tensor) -> Tensor:
    """Keep a window of each image and paste it on black.

    ``draws`` (B, 6): columns and rows that are cut off, column and row of the window, column and row to paste it at.
    """
    height, width = images.shape[2:]
    columns, rows, left, top, to_left, to_top = draws.T
    box = torch.stack([to_top, to_top + height - rows, to_left, to_left + width - columns], 1)
    row = torch.arange(height, device=images.device)[:, None] + (top - to_top)[:, None, None]
    column = torch.arange(width, device=images.device) + (left - to_left)[:, None, None]
    return _sample(images, row, column) * _inside(box, images)[:, None]


def draw_operations(n, size, generator):
    """IDBH's ColorShape: one operation for each image, and its value."""
    low, high, signed = torch.tensor([*COLOR_SHAPE.values()]).T
    operation = torch.randint(len(COLOR_SHAPE), (n,), generator=generator)
    axis, negative = torch.randint(2, (2, n), generator=generator).bool()
    value = torch.rand(n, generator=generator)
    integer = (value * high[ROTATE]).floor() + 1
    value = torch.where(operation == ROTATE, integer, value * (high - low)[operation] + low[operation])
    value = torch.where(negative & signed[operation].bool(), -value, value)
    return torch.stack([torch.where((operation == SHEAR) & axis, SHEAR_Y, operation), value], 1)


def color_shape(images: Tensor, draws: Tensor) -> Tensor:
    """Apply one operation of COLOR_SHAPE, or SHEAR_Y, to each RGB image; ``draws`` (B, 2): operation and value.

    Every operation runs on the whole batch, as the identity for images with another operation.
    """
    operation, value = (column[:, None, None, None] for column in draws.T)
    gray, degenerate = _gray(images), torch.zeros_like(images)
    for kind, other in ((SATURATION, gray), (CONTRAST, _mean(gray)), (SHARPNESS, _smooth(images))):
        degenerate = torch.where(operation == kind, other, degenerate).float()
    weight = torch.where(operation <= SHARPNESS, value, 1)
    images = ((images - degenerate) * weight + degenerate).clamp(0, 255).to(torch.uint8)
    images = torch.where(operation == AUTOCONTRAST, _autocontrast(images), images)
    images = torch.where(operation == EQUALIZE, equalize(images), images)
    return _affine(images, *draws.T)


def cutmix(images: Tensor, labels: Tensor, permutation: Tensor, lam, row, column) -> tuple[Tensor, Tensor]:
    """Paste one box of the permuted batch into all images (B, C, H, W); mix the labels, probabilities (B, K), by area.

    ``lam`` (float64) is the share of the image outside the box, whose center is ``row`` and ``column``; the box is then
    clipped to the image. All three are tensors of one value. Source: Yun et al., "CutMix" (ICCV 2019), with one box for
    a batch as in Rebuffi et al., "Data Augmentation Can Improve Robustness" (NeurIPS 2021).
    """
    half = [((1 - lam).sqrt() * side).long() // 2 for side in images.shape[2:]]
    box = torch.stack([row - half[0], row + half[0], column - half[1], column + half[1]])[None]
    inside = _inside(box, images)
    share = (1 - inside.double().mean()).to(labels.dtype)
    mixed = share * labels + (1 - share) * labels[permutation]
    return torch.where(inside[:, None], images[permutation], images), mixed


def mix_batch(images: Tensor, labels: Tensor, classes: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Apply CutMix to classes (B,); ``draws`` (B, 4) are uniform, float64: column 0 gives the permutation."""
    (lam, row, column), (height, width) = draws[0, 1:], images.shape[2:]
    labels = F.one_hot(labels, classes).float()
    return cutmix(images, labels, draws[:, 0].argsort(), lam, (row * height).long(), (column * width).long())


CROP, MIRROR = Transform(draw_corners, random_crop), Transform(draw_mirrored, mirror)
CUTOUT, CROP_SHIFT = Transform(draw_squares, erase), Transform(draw_shifts, crop_shift)
COLORS = Transform(draw_operations, color_shape)
ERASE_HALF, ERASE_ALL = (Transform(partial(draw_rectangles, probability=p), erase) for p in (0.5, 1))

CROPPED = "padded with 4 pixels of zeros and cropped"
CHANGED = "cropped and shifted, changed in color or shape, a rectangle erased"
# --augment -> transforms in their order, and what the log says.
AUGMENTATIONS = {
    "crop": ((CROP, MIRROR), CROPPED),
    "cutout": ((CROP, MIRROR, CUTOUT), f"{CROPPED}, a square set to 0"),
    "cutmix": ((CROP, MIRROR), f"{CROPPED}, mixed by CutMix"),
    "idbh-weak": ((MIRROR, CROP_SHIFT, COLORS, ERASE_HALF), f"{CHANGED} from half of them"),
    "idbh-strong": ((MIRROR, CROP_SHIFT, COLORS, ERASE_ALL), CHANGED),
}


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Whether a pixel is in its image's box: (B, H, W); ``boxes`` (B, 4) as in :func:`erase`."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    row, column = (torch.arange(side, device=images.device) for side in images.shape[2:])
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None]


def _sample(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels at ``row`` and ``column``, each broadcast to (B, H, W); pixels outside an image are 0."""
    height, width = images.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = ((row * width + column) * inside).flatten(1)[:, None]
    return images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images) * inside[:, None]


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) in the fixed-point arithmetic of PIL."""
    red, green, blue = images.int().split(1, 1)
    return red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16


def _mean(gray: Tensor) -> Tensor:
    """Mean of each image, (B, 1, 1, 1), rounded half up."""
    return (2 * gray.sum((1, 2, 3), keepdim=True) + gray[0].numel()) // (2 * gray[0].numel())


def _smooth(images: Tensor) -> Tensor:
    """PIL's SMOOTH filter: weights 1, in the center 5, divided by 13; the border of an image stays."""
    pixels = images.int()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    pixels[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return pixels


def _autocontrast(images: Tensor) -> Tensor:
    """Scale each channel to 0..255, truncated as by PIL; a channel of one value stays."""
    low, high = (function(images, (2, 3), keepdim=True).double() for function in (torch.amin, torch.amax))
    scale = 255 / (high - low)
    return torch.where(high > low, images * scale + -low * scale, images).clamp(0, 255).to(torch.uint8)


def _affine(images: Tensor, operation: Tensor, value: Tensor) -> Tensor:
    """Shear or rotate about the center to the nearest pixel, in the 16-bit fixed-point arithmetic of PIL."""
    zero, (height, width) = torch.zeros_like(value).double(), images.shape[2:]
    angle = torch.where(operation == ROTATE, value, zero).deg2rad()
    shear, shear_y = (torch.where(operation == kind, value, zero).tan() for kind in (SHEAR, SHEAR_Y))
    a, b, c, d = angle.cos(), shear - angle.sin(), shear_y + angle.sin(), angle.cos()
    x, y = width / 2, height / 2
    rows = ((a, b, x - a * x - b * y + (a + b) / 2), (c, d, y - c * x - d * y + (c + d) / 2))
    terms = torch.stack([torch.stack(row) for row in rows]) * 65536
    (a, b, x), (c, d, y) = (terms + 0.5 * terms.sign()).trunc().long()[..., None, None]
    row, column = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    return _sample(images, c * column + d * row + y >> 16, a * column + b * row + x >> 16)
