"""The handwritten digits of scikit-learn: real images without a download, for short experiments."""

from pathlib import Path

import torch
import torch.nn.functional as F

from data.cache import ReadOptions
from data.splits import Split, Splits, hold_out


def load(root: Path | None, image_size: int | None, options: ReadOptions) -> Splits:
    """Return the 1,797 8x8 digits as 1,437 training and 360 test images, 3 x ``image_size`` squared (default 32).

    They are part of scikit-learn, so ``root`` and ``options`` are not used. The gray levels 0..16 become 0..255 in
    three equal channels, resized bilinearly. The stratified split into training and test images is always the same.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test set.
    """
    from sklearn.datasets import load_digits  # a slow import that only this dataset needs

    digits, size = load_digits(), image_size or 32
    gray = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    gray = F.interpolate(gray, (size, size), mode="bilinear").round().to(torch.uint8)
    split = Split(gray.repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long())
    train, test = hold_out(split, 360, seed=0)
    return Splits(train, test, tuple(str(digit) for digit in range(10)), flip=False)
