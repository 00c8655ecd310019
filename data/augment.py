"""Random transforms of whole batches of uint8 images (B, C, H, W), on their device.

A transform is a pure function of the images and of its random draws, one row for each image. It works on all images of
a batch at once and never waits for the device. Pixels equal those of torchvision's functions on PIL images.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PADDING = 4  # pixels, as in every official code
CUTOUT_SIDE = 18  # pixels of 32, of Wang et al., "Better Diffusion Models Further Improve Adversarial Training" (2023)
MAX_SHIFT = 10  # pixels of 32, of IDBH: Li & Spratling, "Data Augmentation Alone Can Improve Adversarial Training"
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
ERASING_TRIES = 10  # torchvision's

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
    """A random transform: ``apply(images, *draw(n, generator))``, and its description for the log.

    ``draw`` returns tensors whose first dimension is n, on the CPU; ``apply`` takes them on the images' device.
    """

    description: str
    draw: Callable[[int, torch.Generator | None], tuple[Tensor, ...]]
    apply: Callable[..., Tensor]


def transforms_of(augment: str, size: int, flip: bool) -> list[Transform]:
    """Return the transforms of ``--augment`` for images of ``size`` pixels, without mirroring unless ``flip``.

    Lengths given in pixels of CIFAR's 32 grow with the size. CutMix also changes labels: see :func:`cutmix`.
    """
    return [make(size) for make in AUGMENTATIONS[augment] if flip or make is not mirroring]


def cropping(size: int, padding: int = CROP_PADDING) -> Transform:
    """Zero-padding and a random crop of the original size."""
    side = 2 * padding + 1
    return Transform(
        f"padded with {padding} pixels of zeros and cropped at random",
        lambda n, generator: (torch.randint(side, (n, 2), generator=generator),),
        partial(random_crop, padding),
    )


def random_crop(padding: int, images: Tensor, corners: Tensor) -> Tensor:
    """Zero-pad ``images`` (B, C, H, W) and crop HxW windows at ``corners`` (B, 2), (row, column) in 0..2*padding."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, rows, columns, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, corners[:, 0], corners[:, 1]]


def mirroring(size: int) -> Transform:
    """Left and right exchanged with probability 1/2."""
    return Transform(
        "mirrored with probability 1/2 (--no-flip: never)",
        lambda n, generator: (torch.randint(2, (n,), generator=generator).bool(),),
        mirror,
    )


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images of the mask ``mirrored`` (B,)."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def cutting_out(size: int) -> Transform:
    """A black square around a random pixel, clipped to the image (Cutout, DeVries & Taylor 2017)."""
    half = round(CUTOUT_SIDE * size / 32) // 2

    def draw(n, generator):
        center = torch.randint(size, (n, 2), generator=generator)
        return (torch.stack([center - half, center + half], 2).flatten(1),)

    return Transform(f"with a black square of {2 * half} pixels", draw, erase)


def erasing(probability: float, size: int) -> Transform:
    """A black rectangle of random area and shape with ``probability``: torchvision's RandomErasing(value=0)."""

    def draw(n, generator):
        side, missing = torch.zeros(n, 2), torch.ones(n, dtype=torch.bool)
        for _ in range(ERASING_TRIES):
            if not missing.any():
                break
            area, ratio = torch.rand(2, int(missing.sum()), generator=generator)
            area = size**2 * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
            low, high = map(math.log, ERASED_RATIO)
            ratio = (low + ratio * (high - low)).exp()
            side[missing] = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).round()
            missing = (side >= size).any(1)
        erased = (torch.rand(n, generator=generator) < probability) & ~missing
        side = side * erased[:, None]
        corner = (torch.rand(n, 2, generator=generator) * (size - side + 1)).floor()
        return (torch.stack([corner, corner + side], 2).flatten(1).long(),)

    return Transform(f"with a random rectangle erased with probability {probability:g}", draw, erase)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a box of each image to 0: ``boxes`` (B, 4) are first and end row, first and end column."""
    return images.masked_fill(_inside(boxes, images)[:, None], 0)


def crop_shifting(size: int) -> Transform:
    """IDBH's CropShift: crop up to 10 of 32 rows and columns in total, and paste the rest anywhere on black."""
    limit = round(MAX_SHIFT * size / 32)

    def draw(n, generator):
        def up_to(bound):
            return (torch.rand(n, generator=generator) * (bound + 1)).floor().long()

        total = up_to(torch.full((n,), limit))
        columns = up_to(total)
        rows = total - columns
        return (torch.stack([columns, rows, *(up_to(bound) for bound in (columns, rows) * 2)], 1),)

    return Transform(f"cropped by up to {limit} rows and columns and shifted", draw, crop_shift)


def crop_shift(images: Tensor, draws: Tensor) -> Tensor:
    """Keep a window of each image and paste it on black.

    ``draws`` (B, 6): columns and rows that are cut off, column and row of the window, column and row to paste it at.
    """
    height, width = images.shape[2:]
    columns, rows, left, top, to_left, to_top = draws.T
    boxes = torch.stack([to_top, to_top + height - rows, to_left, to_left + width - columns], 1)
    row = torch.arange(height, device=images.device)[:, None] + (top - to_top)[:, None, None]
    column = torch.arange(width, device=images.device) + (left - to_left)[:, None, None]
    return _sample(images, row, column).masked_fill(~_inside(boxes, images)[:, None], 0)


def color_shaping(size: int) -> Transform:
    """IDBH's ColorShape: one operation of COLOR_SHAPE on each image."""
    low, high, signed = torch.tensor([*COLOR_SHAPE.values()]).T

    def draw(n, generator):
        operation = torch.randint(len(COLOR_SHAPE), (n,), generator=generator)
        axis, sign = torch.randint(2, (2, n), generator=generator)
        value = torch.rand(n, generator=generator)
        scaled = value * (high - low)[operation] + low[operation]
        value = torch.where(operation == ROTATE, (value * high[ROTATE]).floor() + 1, scaled)
        value = torch.where((sign * signed[operation]).bool(), -value, value)
        return torch.where((operation == SHEAR) & axis.bool(), SHEAR_Y, operation), value

    description = "with one of eight changes of color or shape (saturation, ..., rotation)"
    return Transform(description, draw, color_shape)


def color_shape(images: Tensor, operation: Tensor, value: Tensor) -> Tensor:
    """Apply one operation of COLOR_SHAPE, or SHEAR_Y, to each RGB image: ``operation`` (B,) with ``value`` (B,).

    Every kind of operation runs on the whole batch, as the identity for the images of another operation.
    """
    gray = _gray(images)
    degenerate = torch.zeros_like(images)
    for kind, other in ((SATURATION, gray), (CONTRAST, _mean(gray)), (SHARPNESS, _smooth(images))):
        degenerate = torch.where((operation == kind)[:, None, None, None], other, degenerate)
    images = _blend(degenerate, images, torch.where(operation <= SHARPNESS, value, 1))
    images = _equalize(_autocontrast(images, operation == AUTOCONTRAST), operation == EQUALIZE)
    return _affine(images, _matrix(operation, value, *images.shape[2:]))


def cutmix(
    images: Tensor, labels: Tensor, permutation: Tensor, lam: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste a box of the permuted batch into each image, and mix the labels by area.

    Args:
        images: (B, C, H, W).
        labels: Probabilities (B, K).
        permutation: (B,), the image that the box is taken from.
        lam: Share of the image that should stay; without clipping the box has the area 1 - ``lam``. A float64 scalar.
        row: Row of the box's center, in 0..H-1; the box is clipped to the image.
        column: Column of the center.

    Returns:
        Mixed images, and labels (B, K) weighted by the true area.

    Source: Yun et al., "CutMix" (ICCV 2019), as in Rebuffi et al., "Data Augmentation Can Improve Robustness" (2021):
    one box for the whole batch.
    """
    height, width = images.shape[2:]
    half = [((1 - lam).sqrt() * side).long() // 2 for side in (height, width)]
    box = torch.stack([row - half[0], row + half[0], column - half[1], column + half[1]])[None]
    inside = _inside(box, images)
    share = (1 - inside.double().mean()).to(labels.dtype)
    mixed = share * labels + (1 - share) * labels[permutation]
    return torch.where(inside[:, None], images[permutation], images), mixed


# --augment -> its transforms in their order.
AUGMENTATIONS = {
    "crop": (cropping, mirroring),
    "cutout": (cropping, mirroring, cutting_out),
    "cutmix": (cropping, mirroring),
    "idbh-weak": (mirroring, crop_shifting, color_shaping, partial(erasing, 0.5)),
    "idbh-strong": (mirroring, crop_shifting, color_shaping, partial(erasing, 1)),
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
    index = (row * width + column) * inside
    pixels = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return pixels.view_as(images) * inside[:, None]


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) in the fixed-point arithmetic of PIL."""
    red, green, blue = images.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).to(torch.uint8)


def _mean(gray: Tensor) -> Tensor:
    """Mean of each image, (B, 1, 1, 1), rounded half up."""
    count = gray[0].numel()
    return ((2 * gray.sum((1, 2, 3), keepdim=True) + count) // (2 * count)).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """PIL's SMOOTH filter: weights 1, in the center 5, divided by 13; the border of an image stays."""
    pixels = images.short()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """``first + weight * (second - first)``, truncated, with ``weight`` (B,)."""
    first = first.float()
    blended = (second - first) * weight.float()[:, None, None, None] + first
    return blended.clamp(0, 255).to(torch.uint8)


def _autocontrast(images: Tensor, chosen: Tensor) -> Tensor:
    """Scale each channel of the ``chosen`` (B,) images to 0..255; a channel of one value stays."""
    low, high = (f(images, (2, 3), keepdim=True).double() for f in (torch.amin, torch.amax))
    scale = 255 / (high - low)
    stretched = (images * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(chosen[:, None, None, None] & (high > low), stretched, images)


def _equalize(images: Tensor, chosen: Tensor) -> Tensor:
    """Equalize the histogram of each channel of the ``chosen`` (B,) images, as PIL does."""
    pixels = images.flatten(2).long()
    ones = torch.ones_like(pixels)
    counts = pixels.new_zeros(*images.shape[:2], 256).scatter_add_(2, pixels, ones)
    below = counts.cumsum(2) - counts
    step = below.gather(2, pixels.amax(2, keepdim=True)) // 255
    table = (below + step // 2) // step.clamp(min=1)
    equalized = table.clamp(max=255).to(torch.uint8).gather(2, pixels).view_as(images)
    return torch.where(chosen[:, None, None, None] & (step > 0)[..., None], equalized, images)


def _matrix(operation: Tensor, value: Tensor, height: int, width: int) -> Tensor:
    """Return the map (B, 2, 3), float64, from a pixel (column, row, 1) of the result to one of the image."""
    value = value.double()
    angle = torch.where(operation == ROTATE, value, 0).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    along_x = torch.where(operation == SHEAR, value.tan(), 0)
    along_y = torch.where(operation == SHEAR_Y, value.tan(), 0)
    x, y = width / 2, height / 2  # the center stays
    (a, b), (c, d) = (cos, along_x - sin), (along_y + sin, cos)
    return torch.stack([a, b, x - a * x - b * y, c, d, y - c * x - d * y], 1).view(-1, 2, 3)


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Transform by ``matrix`` (B, 2, 3) with the nearest pixel, in the 16-bit fixed-point arithmetic of PIL."""
    start = matrix[:, :, 2] + matrix[:, :, 0] / 2 + matrix[:, :, 1] / 2  # of the center of the first pixel
    terms = torch.stack([matrix[:, :, 0], matrix[:, :, 1], start]) * 65536
    across, down, first = (terms + 0.5 * terms.sign()).trunc().long()[..., None, None].unbind(0)
    height, width = images.shape[2:]
    row, column = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    column, row = (across * column + down * row + first >> 16).unbind(1)
    return _sample(images, row, column)
