"""scikit-learn's handwritten digits: real images that need no download, for trying things out in minutes."""

from pathlib import Path

import torch
import torch.nn.functional as F

from data.splits import Split, Splits, hold_out


def load(root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Return the 1,797 8x8 digits as 1,437 training and 360 test images, 3 x ``image_size`` squared (default 32).

    They are embedded in scikit-learn, so ``root`` and ``workers`` are not used. The grey levels 0..16 become 0..255,
    enlarged bilinearly and repeated in three channels, so that networks made for CIFAR take them. The division into
    train and test is stratified and always the same.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test part.
    """
    from sklearn.datasets import load_digits  # here: no other data set should wait for this import

    size = image_size or 32
    digits = load_digits()
    grey = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    grey = F.interpolate(grey, (size, size), mode="bilinear").round().to(torch.uint8)
    everything = Split(grey.repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long())
    train, test = hold_out(everything, 360, seed=0)
    return Splits(train, test, tuple(str(digit) for digit in range(10)), flip=False)
