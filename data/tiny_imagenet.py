"""Tiny-ImageNet in its own layout: ``wnids.txt``, ``train/<wnid>/images/``, and ``val/`` with an annotation file."""

from pathlib import Path

from data.decode import decode_splits, image_files
from data.splits import Splits, check_image_size
from utils.errors import UserError

_FOLDER = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{_FOLDER}.zip"
_UNPACK = f"unpack {_URL} again"


def load(root: Path | None, image_size: int | None, workers: int) -> Splits:
    """Read Tiny-ImageNet from ``root``, or from ``tiny-imagenet-200`` in it (default ``datasets/``); 3x64x64 images.

    Classes are the sorted lines of ``wnids.txt``. ``val/`` is the test split: the labels of ``test/`` are not public.
    Raises UserError for a missing or damaged file, and for another ``image_size``.
    """
    check_image_size("Tiny_Image", 64, image_size)
    root = _find(root or Path("datasets"))
    classes = sorted(_read_text(root / "wnids.txt").split())
    train, test = _train_images(root, classes), _test_images(root, classes)
    return decode_splits(root, train, test, classes, 64, workers=workers)


def _find(root: Path) -> Path:
    for candidate in (root, root / _FOLDER):
        if (candidate / "wnids.txt").is_file():
            return candidate
    target = root.parent if root.name == _FOLDER else root
    raise UserError(
        f"--data_root {root}: no Tiny-ImageNet (no wnids.txt); "
        f"get it with: curl -LO {_URL} && unzip -q {_FOLDER}.zip -d {target}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: missing or not readable as text; {_UNPACK}") from error


def _train_images(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    pairs = []
    for label, wnid in enumerate(classes):
        if wnid != Path(wnid).name:
            raise UserError(f"{root / 'wnids.txt'}: {wnid!r} is not a class name; {_UNPACK}")
        folder = root / "train" / wnid / "images"
        files = image_files(folder)
        if not files:
            raise UserError(f"{folder}: no images of class {wnid} from wnids.txt; {_UNPACK}")
        pairs += [(path, label) for path in files]
    return pairs


def _test_images(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Read ``val_annotations.txt``: file name, wnid and a bounding box, separated by tabs."""
    annotations, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    if not annotations.is_file():
        raise UserError(f"{annotations}: missing; {_UNPACK}, or use --dataset Folder for val/ sorted by class")
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    existing, pairs = set(image_files(folder)), []
    for number, line in enumerate(_read_text(annotations).splitlines(), 1):
        name, wnid = f"{line}\t".split("\t")[:2]
        if folder / name not in existing or wnid not in label_of:
            problem = f"{wnid!r} is not in wnids.txt" if folder / name in existing else f"no file {folder / name}"
            raise UserError(f"{annotations}: line {number}: {problem}; {_UNPACK}")
        pairs.append((folder / name, label_of[wnid]))
    if not pairs:
        raise UserError(f"{annotations}: no images; {_UNPACK}")
    return pairs
