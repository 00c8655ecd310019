"""Datasets from small files in their published layouts, and the batches made of them."""

import errno
import hashlib
import logging
import os
import pickle
import re
import shutil
import tarfile
import unicodedata
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from commands import fail_at
from conftest import user_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import cifar_files, tiny_imagenet_files
from tiny import NO_CUDA
from torchvision.datasets import CIFAR10, CIFAR100

import data
import data.decode
from data import Batches, Split, cache, decode_files, loader
from data.augment import AUGMENTATIONS, CROP, MIRROR
from data.decode import open_image
from utils.config import EvalConfig, TrainConfig
from utils.errors import UserError


def noise(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refuse(pattern, *args, **options):
    """The dataset is refused with one line that matches the pattern."""
    with user_error(pattern):
        decode_files(*data.load(*args, **options)[:2])


# ---- CIFAR ----


@pytest.mark.parametrize(("dataset", "train_size"), [(CIFAR10, 15), (CIFAR100, 3)])
def test_cifar_is_read_from_its_pickles_without_a_network(tmp_path, monkeypatch, dataset, train_size):
    folder, name = cifar_files(tmp_path, dataset, monkeypatch), dataset.__name__
    splits = data.load(name.lower(), tmp_path)
    assert splits.train.images.shape == (train_size, 3, 32, 32) and splits.train.images.dtype == torch.uint8
    assert splits.test.labels.tolist() == [2, 0, 1] and splits.test.labels.dtype == torch.int64
    assert splits.classes == ("plane", "car", "bird") and splits.flip and splits.image_size == 32
    row = pickle.loads((folder / dataset.train_list[0][0]).read_bytes())["data"][1]
    assert np.array_equal(splits.train.images[1].numpy(), row.reshape(3, 32, 32))
    assert torch.equal(data.load(name, folder).train.images, splits.train.images)
    renamed = folder.rename(tmp_path / "renamed")
    assert torch.equal(data.load(name, renamed).train.images, splits.train.images)
    (renamed / dataset.train_list[0][0]).write_bytes(b"damaged")
    refuse("is missing or damaged and its download failed", name, renamed)
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda *args: False)
    refuse(f"^{folder}: permission denied; it must be readable$", name, folder)


def test_cifar_is_extracted_from_an_archive_only_if_it_is_complete(tmp_path, monkeypatch):
    folder, archive = cifar_files(tmp_path, CIFAR10, monkeypatch), tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for part in ("train", "test"):  # of other images
        (tmp_path / part).mkdir()
    for remove in (lambda: None, lambda: (folder / "batches.meta").unlink(), lambda: shutil.rmtree(folder)):
        remove()
        assert len(data.load("CIFAR10", tmp_path).train.labels) == 15
    shutil.rmtree(folder)
    halve(archive)
    refuse(f"--data_root {tmp_path}.*download failed.*put cifar-10-python.tar.gz", "CIFAR10", tmp_path)
    archive.unlink()
    refuse("--dataset Folder", "CIFAR10", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]  # no download


# ---- Tiny-ImageNet ----


@pytest.fixture
def tiny(tmp_path):
    return tiny_imagenet_files(tmp_path / "tiny-imagenet-200", classes=3)


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_tiny_imagenet_has_sorted_classes_annotated_labels_and_rgb_images(tiny):
    first = save(tiny / "train/n00000000/images/a.JPEG", noise(60, 64)[..., 0])
    splits = data.load("TinyImageNet", tiny.parent)
    assert splits.classes == ("n00000000", "n00000001", "n00000002") and splits.image_size == 64 and splits.flip
    assert splits.train.labels.tolist() == [0, 0, 1, 2] and splits.test.labels.tolist() == [2, 1, 0]
    gray = splits.train.images[0]
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray, pixels(first))
    assert torch.equal(splits.test.images[2], pixels(tiny / "val/images/val_2.JPEG"))
    shutil.rmtree(tiny / "train")
    assert torch.equal(data.load("TinyImageNet", tiny).test.images[:], splits.test.images[:])


# ---- Digits and Folder ----


def test_digits_have_the_same_stratified_split_every_time():
    splits, again = data.load("digits"), data.load("Digits")
    assert splits.train.images.shape == (1437, 3, 32, 32) and splits.test.images.shape == (360, 3, 32, 32)
    assert torch.equal(splits.train.images, again.train.images) and not splits.flip
    assert splits.train.images.dtype == torch.uint8 and splits.train.images.max() == 255
    assert (splits.test.labels.bincount() - 36).abs().max() <= 1 and len(splits.classes) == 10
    assert data.load("Digits", image_size=8).train.images.shape == (1437, 3, 8, 8)


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("zebra", "ant")):
            for i in range(count):
                suffix = ("png", "jpg", "JPEG")[i]
                save(tmp_path / split / name / f"{i}.{suffix}", noise(number * 9 + i, 16))
    return tmp_path


def test_folder_reads_images_with_sorted_classes(folder):
    splits = data.load("Folder", folder)
    assert splits.classes == ("ant", "zebra") and splits.image_size == 16
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and splits.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(splits.train.images[3], torch.from_numpy(noise(0, 16)).permute(2, 0, 1))


def test_folder_of_mixed_sizes_needs_image_size(folder):
    odd = save(folder / "train" / "zebra" / "odd.png", np.full((20, 40, 3), 77, np.uint8))
    refuse(f"{odd}: is 40x20, not 16x16.*--image_size", "Folder", folder)
    images = data.load("Folder", folder, image_size=8).train.images
    assert images.shape == (7, 3, 8, 8) and (images[-1] == 77).all()


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("training", "valid"), ("TRAIN", "Validation")])
def test_folders_may_have_other_names_and_only_training_needs_training_images(folder, train, test):
    expected = images_of(folder)
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)
    assert torch.equal(images_of(folder), expected)
    shutil.rmtree(folder / train)
    flags = {"dataset": "Folder", "data_root": str(folder)}
    splits = data.load_configured(EvalConfig(**flags))
    assert splits.classes == ("ant", "zebra") and torch.equal(splits.test.images[:], expected[6:])
    with user_error(f"--data_root {folder}: no folder train/"):
        data.load_configured(TrainConfig(**flags))


LFS = "version https://git-lfs.github.com/spec/v1"
TINY_DAMAGE = [
    (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt either"),
    (lambda root: (root / "val/val_annotations.txt").write_text(""), "val_annotations.txt: no images"),
    (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn99\n"), "'n99' is not in wnids.txt"),
    (lambda root: (root / "val/images/val_1.JPEG").unlink(), "line 2: no file"),
    (lambda root: (root / "train/n00000001").rename(root / "x"), "n00000001: no images; unpack"),
    (lambda root: (root / "wnids.txt").write_text(""), "wnids.txt: not a list of class names"),
    (lambda root: save(root / "val/images/val_1.JPEG", noise(0, 32)), "val_1.JPEG: is 32x32, not 64x64"),
]
FOLDER_DAMAGE = [
    (lambda root: (root / "test").rename(root / "tset"), "no folder test/"),
    (lambda root: root.rename(root.with_name("gone")), "no such folder; it needs train/<class>/"),
    (lambda root: (root / "Training").mkdir(), "has Training/ and train/; rename or remove one of them"),
    (lambda root: (root / "test/ant").rename(root / "test/bee"), "only one of train and test has 'ant', 'bee';"),
    (lambda root: [(root / "train/bee").mkdir(), (root / "train/ant/x.txt").touch()], "bee: no images; add some"),
    (lambda root: (root / "train/bee").symlink_to(root / "gone"), "bee: the target of this link does not exist"),
    (lambda root: (root / "train/ant/x").symlink_to(root / "gone"), "ant/x (No such file"),
    (lambda root: [path.write_text(LFS) for path in root.rglob("train/*/*")], "other images: a git-lfs pointer"),
    (lambda root: (root / "train/ant").rename(root / "train/.ant"), "train: must have at least 2 class folders"),
    (lambda root: save(root / "train/ant/0.png", noise(0, 16)[:8]), "0.png: is 16x8, not square"),
    (lambda root: save(root / "test/ant/0.tif", np.ones((16, 16), np.float32)), "0.tif (pixels of more than 16 bits"),
    (lambda root: (root / "test/ant/1.jpg").write_bytes(b""), "1 of 10 images cannot be read"),
    (lambda root: (root / "test/ant/2.jpg").symlink_to(root / "gone"), "2.jpg (No such file"),
    (lambda root: halve(root / "train/zebra/0.png"), "0.png ("),
]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [*(("Tiny_Image", *row) for row in TINY_DAMAGE), *(("Folder", *row) for row in FOLDER_DAMAGE)],
)
def test_damaged_files_are_an_error_with_the_path(request, name, damage, message):
    root = request.getfixturevalue("tiny" if name == "Tiny_Image" else "folder")
    damage(root)
    refuse(f"(?=.*{root}).*{re.escape(message)}", name, root)


INVALID = [
    ("--dataset CIFAR1: unknown name; nearest: CIFAR10", ["CIFAR1"], {}),
    ("--data_root: required by --dataset Folder; give a folder with", ["Folder"], {}),
    (f"--data_root {__file__}: is a file, not a folder", ["CIFAR10", __file__], {}),
    ("--image_size 64: CIFAR10 has 32x32 images", ["CIFAR10"], {"image_size": 64}),
    ("--image_size 32: Tiny_Image has 64x64 images", ["Tiny_Image"], {"image_size": 32}),
    ("no Tiny-ImageNet.*curl -LO.*-d datasets", ["Tiny_Image"], {}),
]


@pytest.mark.parametrize(("message", "args", "options"), INVALID)
def test_invalid_flags_are_named(tmp_path, monkeypatch, message, args, options):
    monkeypatch.chdir(tmp_path)
    refuse(message, *args, **options)


# ---- the cache ----


@pytest.fixture
def decoded_files(monkeypatch):
    """The files that are decoded for the cache."""
    paths, open_with_size = [], data.decode.open_with_size
    monkeypatch.setattr(
        data.decode, "open_with_size", lambda path, *rest: paths.append(path) or open_with_size(path, *rest)
    )
    return paths


def images_of(root, **options):
    """All images of a folder, in memory."""
    return torch.cat([split.images[:] for split in decode_files(*data.load("Folder", root, **options)[:2])])


def test_cache_is_used_until_a_file_changes(folder, decoded_files, monkeypatch):
    first = images_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(cache.PixelCache, "_create", lambda *args: pytest.fail("a complete cache is written"))
        assert torch.equal(images_of(folder), first) and len(decoded_files) == 10

    image = folder / "train" / "ant" / "0.png"
    times = image.stat()
    for pixels in (noise(99, 16), noise(98, 16)):  # of the same size; the second with the same time
        save(image, pixels, compress_level=0)
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert torch.equal(images_of(folder)[0], torch.from_numpy(pixels).permute(2, 0, 1))
    assert len(decoded_files) == 12

    (old,) = folder.glob(".decoded/*")
    os.utime(old, (0, 0))
    (folder / "test" / "zebra" / "1.jpg").rename(folder / "test" / "zebra" / "2.jpg")
    images_of(folder)
    assert len(decoded_files) == 22 and not old.exists()
    assert [images_of(folder, image_size=size).shape[-1] for size in (8, 8, None)] == [8, 8, 16]
    assert len(decoded_files) == 32 and len(list(folder.glob(".decoded/*"))) == 2


def test_runs_with_other_files_of_a_folder_do_not_disturb_each_other(folder, monkeypatch, caplog):
    first = data.load("Folder", folder)
    decode_files(data.subset(first.train, 1, 0))
    save(folder / "train" / "ant" / "9.png", noise(1, 16))
    images_of(folder)
    assert len(decode_files(*first[:2])[0].labels) == 6
    save(folder / "train" / "ant" / "99.png", noise(2, 16))
    monkeypatch.setattr(cache.time, "time", lambda: 1e10)
    monkeypatch.setattr(Path, "unlink", lambda path: os.unlink("gone"))  # another process was first
    assert len(images_of(folder)) == 12 and "cannot cache" not in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit"])
def test_damaged_cache_is_rebuilt(folder, decoded_files, damage):
    first = images_of(folder)
    (file,) = folder.glob(".decoded/*")
    content = bytearray(file.read_bytes())
    content[bytes(content).index(bytes(first[0].flatten()[:64].tolist()))] ^= 1
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "bit": content}[damage])
    assert torch.equal(images_of(folder), first)
    assert len(decoded_files) == {"truncated": 20, "empty": 20, "bit": 11}[damage]


def test_a_cache_that_cannot_be_written_is_in_a_temporary_folder_or_in_cache_dir(folder, tmp_path, caplog):
    (folder / ".decoded").write_text("not a folder")
    expected = images_of(folder)
    assert torch.equal(images_of(folder, cache_dir="x" * 300), expected)  # cannot be searched either
    assert caplog.text.count("cannot cache") == 2 and "--cache_dir" in caplog.text
    assert torch.equal(images_of(folder, cache_dir=str(tmp_path / "a" / "b")), expected)
    (cached,) = (tmp_path / "a" / "b").glob("*/16-*.bin")
    assert caplog.text.count("cannot cache") == 2
    cached.unlink()
    cached.symlink_to(tmp_path / "precious")  # as in a folder from elsewhere
    (tmp_path / "precious").write_text("unchanged")
    assert torch.equal(images_of(folder, cache_dir=str(tmp_path / "a" / "b")), expected)
    assert (tmp_path / "precious").read_text() == "unchanged" and "a symbolic link" in caplog.text


def test_a_full_disk_is_one_line_and_loses_no_decoded_image(folder, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, cache, "_write", 1, OSError(errno.ENOSPC, "No space left on device"))
        refuse("cannot be written to.*No space left", "Folder", folder)
    decode_files(data.subset(data.load("Folder", folder).train, 2, seed=0))
    free = {folder / ".decoded": 0}  # and 1 MB in the temporary folder
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free.get(path, 10**6)))
    assert torch.equal(images_of(folder), images_of(folder, cache_dir=str(folder / "other")))
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2000))
    refuse("--cache_dir.*0 MiB required, 0 MiB free.*--limit_train", "Folder", folder)


def test_only_the_images_of_a_subset_are_decoded(folder, decoded_files):
    splits = data.load("Folder", folder)
    assert splits.image_size == 16 and len(splits.train.images) == 6
    subset = data.subset(splits.train, 2, seed=0)
    (part,) = decode_files(subset)
    assert len(decoded_files) == 2 and part.images[:].shape == (2, 3, 16, 16)
    assert torch.equal(part.images[0], pixels(decoded_files[0])) and len(decoded_files) == 2
    batches = Batches(part, 2, device="cpu")
    assert torch.equal(next(iter(batches))[0], part.images[:].float() / 255)
    assert data.fingerprint(part) == data.fingerprint(Split(part.images[:], part.labels))


def test_decoding_in_parallel_continues_after_an_interruption(folder, decoded_files, monkeypatch):
    expected = images_of(folder, workers=1)
    shutil.rmtree(folder / ".decoded")
    monkeypatch.setattr(cache, "_CHUNK", 1)
    with monkeypatch.context() as patch:
        fail_at(patch, cache, "_write", 7, UserError("interrupted"))
        refuse("interrupted", "Folder", folder, workers=2)
    decoded_files.clear()
    assert torch.equal(images_of(folder, workers=2), expected)
    assert 1 <= len(decoded_files) <= 4


# ---- files that people have ----


@pytest.mark.parametrize("suffix", ["webp", "bmp", "gif", "tif", "ppm", "jp2", "tga", "qoi", "ico"])
def test_every_format_of_pillow_is_read_whatever_its_suffix(folder, suffix):
    image = save(folder / "train" / "ant" / f"x.{suffix}", noise(1, 16))
    expected = pixels(image)
    for name in (image.name, *(["x.jpg", "x", "x.dat"] if suffix != "tga" else [])):
        image = image.rename(image.with_name(name))
        assert torch.equal(data.load("Folder", folder).train.images[3], expected)


def test_formats_that_start_programs_are_left_out(folder, caplog, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    Image.new("RGB", (16, 16)).save(folder / "train" / "ant" / "x.eps")
    assert len(data.load("Folder", folder).train.labels) == 6 and "skipped: 1 .eps" in caplog.text
    (folder / "train" / "ant" / "x.eps").rename(folder / "train" / "ant" / "x.png")
    refuse(r"x.png \(not an image of a supported format\)", "Folder", folder)


def test_the_log_counts_what_is_left_out(folder, caplog):
    ant = folder / "train" / "ant"
    for name in ("a.txt", "b.txt", "c.svg", "Thumbs.db", "._0.png", ".DS_Store", "frame.0001", "d.e\nf"):
        (ant / name).write_bytes(b"\0")
    for junk in (ant / "@eaDir", folder / "train" / "__MACOSX", folder / "train" / ".ipynb_checkpoints"):
        save(junk / "0.png", noise(1, 16))
    (folder / "train" / "README").write_text("x")
    os.mkfifo(ant / "pipe.png")
    assert data.load("Folder", folder).classes == ("ant", "zebra")
    others = "2 .txt, 2 without suffix, 1 outside of class folders, 1 .svg, 1 pipes or devices"
    assert f"train/: 6 images of 2 classes; skipped: 6 hidden or system files, {others}" in caplog.text
    assert "test/: 4 images of 2 classes" in caplog.text


def test_links_to_folders_are_followed_and_a_circle_ends(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    save(outside / "deep" / "x.png", noise(5, 16))
    (folder / "train" / "ant" / "link").symlink_to(outside)
    (outside / "deep" / "back").symlink_to(outside)
    (outside / "self").symlink_to("self")
    (folder / "train" / "ant" / "up").symlink_to("..")  # the images of all classes
    (folder / "train" / "ant" / "friends").symlink_to("../zebra")
    moved = (folder / "train" / "zebra").rename(outside.parent / "zebra")
    (folder / "train" / "zebra").symlink_to(moved)
    (moved / "up").symlink_to("..")
    assert len(data.load("Folder", folder).train.labels) == 7


@pytest.mark.parametrize("name", ["train", "train/ant", "test/zebra/deep"])
def test_a_folder_without_permission_is_named(folder, monkeypatch, name):
    (folder / "test" / "zebra" / "deep").mkdir()
    scandir = os.scandir

    def deny(path):
        if Path(path) == folder / name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    refuse(f"^{folder / name}: permission denied", "Folder", folder)


def test_images_are_turned_upright_composited_on_black_and_scaled_to_8_bits(tmp_path):
    sideways, exif = noise(1, 16), Image.Exif()
    sideways[:8] = 0
    for orientation, turns in ((3, 2), (6, 3), (8, 1)):
        exif[0x0112] = orientation
        image = open_image(save(tmp_path / "turned.png", sideways, exif=exif))
        assert np.array_equal(image, np.rot90(sideways, turns))
    hidden = np.dstack([noise(2, 16), np.full((16, 16), 255, np.uint8)])
    hidden[:8, :, 3] = 0
    for suffix in ("png", "webp", "tif"):
        options = {"lossless": True} if suffix == "webp" else {}
        shown = np.asarray(open_image(save(tmp_path / f"rgba.{suffix}", hidden, **options)))
        assert (shown[:8] == 0).all() and np.array_equal(shown[8:], hidden[8:, :, :3])
    gray = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    for name, pixels in (("16.png", gray), ("16.tif", gray), ("big-endian.tif", gray.astype(">u2"))):
        assert np.asarray(open_image(save(tmp_path / name, pixels)))[0, :, 2].tolist() == [0, 1, 128, 255]
    palette = Image.fromarray(noise(3, 16)).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.asarray(open_image(tmp_path / "p.png")).any()


def test_metadata_of_megabytes_and_extreme_shapes_are_no_obstacle(folder, monkeypatch):
    save(folder / "train/ant/8.png", noise(1, 16), icc_profile=bytes(3_000_000))
    save(folder / "train/ant/9.png", np.full((9_000, 1, 3), 7, np.uint8))
    sizes, resize = [], TF.resize
    monkeypatch.setattr(TF, "resize", lambda image, size: sizes.append(image.size) or resize(image, size))
    images = images_of(folder, image_size=32)
    assert (images[4] == 7).all() and (1, 64) in sizes and len(images) == 12


def test_all_damaged_files_are_named_and_can_be_skipped(folder, caplog):
    halve(folder / "train/ant/1.jpg")
    (folder / "test/zebra/1.jpg").write_text("<html>")
    named = r"train/ant/1.jpg \(.*test/zebra/1.jpg \(not an image"
    refuse(f"^2 of 10 images cannot be read: .*{named}.*--skip_damaged", "Folder", folder)
    train, test = decode_files(*data.load("Folder", folder, skip_damaged=True)[:2])
    assert train.labels.tolist() == [0, 0, 1, 1, 1] and test.labels.tolist() == [0, 0, 1]
    assert torch.equal(train.images[0], pixels(folder / "train/ant/0.png")) and "WARNING: skipped: 2 of" in caplog.text


def test_class_names_in_any_bytes_and_unicode_form(folder):
    for part in ("train", "test"):
        (folder / part / "ant").rename(folder / part / unicodedata.normalize("NFC" if part == "train" else "NFD", "é"))
        os.rename(folder / part / "zebra", os.fsencode(folder / part) + b"/caf\xe9")
    splits = data.load("Folder", folder)
    assert splits.classes == ("caf\N{REPLACEMENT CHARACTER}", "é") and splits.test.images[:].shape[0] == 4
    for part in ("train", "test"):
        os.mkdir(os.fsencode(folder / part) + b"/caf\xe8")
        shutil.copy(folder / "train" / "é" / "0.png", os.fsencode(folder / part) + b"/caf\xe8/0.png")
    assert data.load("Folder", folder).classes == (r"caf\xe8", r"caf\xe9", "é")


def test_an_image_of_too_many_pixels_is_refused_until_the_limit_is_raised(folder):
    refuse("more than --max_pixels 100", "Folder", folder, image_size=16, max_pixels=100)
    assert images_of(folder, max_pixels=256).shape[0] == 10


def test_a_test_folder_without_labels_is_passed_over(folder, caplog):
    expected = data.load("Folder", folder).test.images[:]
    (folder / "test").rename(folder / "val")
    save(folder / "test" / "images" / "0.png", noise(1, 16))
    assert torch.equal(data.load("Folder", folder).test.images[:], expected)
    assert "using val/, since test/ has no class folders" in caplog.text


@pytest.mark.parametrize("layout", ["val/{}/images", "val/{}", "val/images/{}", "test/{}/images", "val"])
@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet_sorted_by_scripts_equals_the_archive(tiny, layout, annotated):
    expected = data.load("Tiny_Image", tiny)
    sums = [data.fingerprint(split) for split in expected[:2]]
    for line in (tiny / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (tiny / layout.format(wnid)).mkdir(parents=True, exist_ok=True)
        (tiny / "val/images" / name).rename(tiny / layout.format(wnid) / name)
    for folder in (tiny / "train").iterdir():
        for path in (folder / "images").iterdir():
            path.rename(folder / path.name)
        (folder / "images").rmdir()
    for path in (tiny / "wnids.txt", tiny / "val/val_annotations.txt"):  # as an editor on Windows saves them
        path.write_text(path.read_text().replace("\t", "  ") + "\n\n", encoding="utf-8-sig", newline="\r\n")
    if not annotated and layout != "val":
        (tiny / "val/val_annotations.txt").unlink()
        shutil.copytree(tiny / "val", tiny / "test", dirs_exist_ok=True)
    assert [data.fingerprint(split) for split in data.load("Tiny_Image", tiny)[:2]] == sums


# ---- subsets of a split ----


def numbered(labels):
    """A split whose i-th image has the value i in every pixel."""
    labels = torch.as_tensor(labels)
    return Split(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8), labels)


@settings(max_examples=50, deadline=None, database=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.02, 1), st.integers(0, 2**31))
def test_a_subset_is_ordered_depends_on_the_seed_and_keeps_the_shares_of_the_classes(labels, fraction, seed):
    split = numbered(labels)
    n = max(1, round(fraction * len(labels)))
    part = data.subset(split, n, seed)
    indices = part.images[:, 0, 0, 0].long()
    assert len(indices) == n and (indices.diff() > 0).all() and torch.equal(split.labels[indices], part.labels)
    assert torch.equal(data.subset(split, n, seed).images, part.images)
    kept, total = part.labels.bincount(minlength=5), split.labels.bincount(minlength=5)
    assert (kept - total * n / len(labels)).abs().max() < 2
    assert n < (total > 0).sum() or (kept[total > 0] > 0).all()


def test_the_size_of_a_subset():
    split = numbered(torch.arange(200) % 8)
    assert not torch.equal(*(data.subset(split, 50, seed).images for seed in (3, 4)))
    assert data.subset(split, 50, 3).labels.bincount().min() == 6  # equal classes differ by at most one
    assert data.subset(split, None, 0) is split and data.subset(split, 200, 0) is split
    for choose, flag, numbers in ((data.subset, "--limit_train", (0, -1)), (data.hold_out, "--val_size", (0, 200))):
        for n in numbers:
            with user_error(flag):
                choose(split, n, 0)


def test_hold_out_is_stratified_and_complete():
    train, validation = data.hold_out(numbered(torch.arange(100) % 5), 20, seed=1)
    both = torch.cat([train.images, validation.images])[:, 0, 0, 0]
    assert both.sort().values.tolist() == list(range(100))
    assert validation.labels.bincount().tolist() == [4] * 5 and train.labels.bincount().tolist() == [16] * 5


# ---- batches ----


def test_batches_keep_order_values_and_the_last_batch():
    split = numbered(torch.arange(101) % 7)
    batches = Batches(split, 25, device="cpu")
    images, labels = zip(*batches, strict=True)
    assert len(batches) == 5 and [len(x) for x in images] == [25, 25, 25, 25, 1]
    assert torch.equal(torch.cat(labels), split.labels)
    # Exactly torchvision's ToTensor: the byte as float32, divided by 255.
    assert torch.equal(torch.cat(images), split.images.float() / 255)
    assert images[0].dtype == torch.float32 and labels[0].dtype == torch.int64
    assert [len(x) for x, _ in batches.skip(3)] == [25, 1]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_epoch_depends_only_on_the_state_of_the_generator(batch_size):
    split = numbered(torch.arange(50) * 3)
    generator, transforms = torch.Generator().manual_seed(5), [CROP, MIRROR]
    batches = Batches(split, batch_size, device="cpu", shuffle=True, transforms=transforms, generator=generator)
    next(iter(batches))  # an interrupted epoch draws as much as a complete one
    state = generator.get_state()
    second, third = ([torch.cat(part) for part in zip(*batches, strict=True)] for _ in range(2))
    for images, labels in (second, third):  # padding is 0, so the largest pixel identifies the image
        assert torch.equal((images.amax((1, 2, 3)) * 255).round().long() * 3, labels)
        assert sorted(labels.tolist()) == split.labels.tolist()
    assert not torch.equal(second[1], third[1])
    for skipped in (0, 2):
        generator.set_state(state)
        again = [torch.cat(part) for part in zip(*batches.skip(skipped), strict=True)]
        assert all(torch.equal(a, b[skipped * batch_size :]) for a, b in zip(again, second, strict=True))


def test_images_that_exceed_the_device_memory_stay_in_host_memory(monkeypatch, caplog):
    monkeypatch.setattr(torch.Tensor, "to", Mock(side_effect=torch.cuda.OutOfMemoryError))
    batches = Batches(numbered([0, 1]), 2, device="cuda")
    assert not batches.images.is_cuda and not batches.labels.is_cuda
    assert "exceed the memory of cuda" in caplog.text


@pytest.mark.gpu
@NO_CUDA
def test_batches_from_host_memory_equal_those_from_the_device(monkeypatch):
    split = Split(torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8), torch.arange(100))

    def epoch():
        generator = torch.Generator().manual_seed(0)
        transforms = AUGMENTATIONS["idbh-strong"][0]
        batches = Batches(split, 64, device="cuda", shuffle=True, transforms=transforms, generator=generator)
        return batches.images.is_cuda, *(tensor for batch in batches for tensor in batch)

    resident, *expected = epoch()
    monkeypatch.setattr(loader, "_move_to", lambda split, device: split)
    fallback, *tensors = epoch()
    assert resident and not fallback and all(tensor.is_cuda for tensor in tensors)
    assert len(tensors) == 4 and all(map(torch.equal, tensors, expected))
