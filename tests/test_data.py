"""Data sets from miniature files in their published layouts, and the batches made of them."""

import hashlib
import logging
import os
import pickle
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from small_sets import cifar_files
from torchvision.datasets import CIFAR10, CIFAR100

import data
from data import Batches, Split, decode
from utils.errors import UserError


def noise(seed, size, channels=3):
    shape = (size, size, channels) if channels == 3 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- CIFAR ----


@pytest.mark.parametrize(("dataset", "train_size"), [(CIFAR10, 15), (CIFAR100, 3)])
def test_cifar_is_read_from_its_pickles_without_a_network(tmp_path, monkeypatch, dataset, train_size):
    folder = cifar_files(tmp_path, dataset, monkeypatch)
    splits = data.load(dataset.__name__.lower(), tmp_path)
    assert splits.train.images.shape == (train_size, 3, 32, 32) and splits.train.images.dtype == torch.uint8
    assert splits.test.labels.tolist() == [2, 0, 1] and splits.test.labels.dtype == torch.int64
    assert splits.classes == ("plane", "car", "bird") and splits.flip and splits.image_size == 32
    row = pickle.loads((folder / dataset.train_list[0][0]).read_bytes())["data"][1]
    assert np.array_equal(splits.train.images[1].numpy(), row.reshape(3, 32, 32))
    assert torch.equal(data.load(dataset.__name__, folder).train.images, splits.train.images)


def test_cifar_absent_or_damaged_without_a_network_says_where_to_put_it(tmp_path, monkeypatch):
    folder = cifar_files(tmp_path, CIFAR10, monkeypatch)
    for root in (tmp_path / "empty", tmp_path):
        if root == tmp_path:
            (folder / "data_batch_3").write_bytes(b"half")
        with pytest.raises(UserError) as error:
            data.load("CIFAR10", root)
        assert all(part in one_line(error) for part in (f"--data_root {root}", "cifar-10-python.tar.gz", CIFAR10.url))


def test_cifar_in_a_folder_of_images_names_the_data_set_that_reads_it(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        data.load("CIFAR10", tmp_path)
    assert f"--data_root {tmp_path}" in one_line(error) and "--dataset Folder" in one_line(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]  # nothing was downloaded into it


@pytest.mark.parametrize("given", [CIFAR10.base_folder, CIFAR10.filename, None])
def test_cifar_may_lie_beside_folders_of_other_images(tmp_path, monkeypatch, given):
    folder = cifar_files(tmp_path, CIFAR10, monkeypatch)
    (tmp_path / "train").mkdir()
    if given == CIFAR10.filename:
        with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as tar:
            tar.add(folder, CIFAR10.base_folder)
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((tmp_path / CIFAR10.filename).read_bytes()).hexdigest())
    if given:
        (tmp_path / "test").mkdir()
    if given != CIFAR10.base_folder:
        shutil.rmtree(folder)
    if given:
        assert len(data.load("CIFAR10", tmp_path).train.labels) == 15
    else:  # a train/ alone is no folder of ours: the data set is fetched, here from nowhere
        with pytest.raises(UserError, match="download failed"):
            data.load("CIFAR10", tmp_path)


def test_cifar_download_is_used_only_when_it_is_whole(tmp_path, monkeypatch):
    folder = cifar_files(tmp_path / "made", CIFAR10, monkeypatch)
    archive = tmp_path / "server.tar.gz"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    whole = archive.read_bytes()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(whole).hexdigest())
    root = tmp_path / "new"

    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="download failed"):
        data.load("CIFAR10", root)
    archive.write_bytes(whole)
    assert len(data.load("CIFAR10", root).train.labels) == 15
    (root / CIFAR10.base_folder / "batches.meta").unlink()
    assert len(data.load("CIFAR10", root).test.labels) == 3
    server.shutdown()
    server.server_close()


# ---- Tiny-ImageNet ----

WNIDS = ("n30", "n10", "n20")


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for number, wnid in enumerate(WNIDS):
        for i in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", noise(number * 2 + i, 64))
        save(root / "val" / "images" / f"val_{number}.JPEG", noise(50 + number, 64))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    save(root / "train" / "n10" / "images" / "n10_0.JPEG", noise(60, 64, channels=1))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def test_tiny_imagenet_has_sorted_classes_annotated_labels_and_colour(tiny):
    splits = data.load("TinyImageNet", tiny)
    assert splits.classes == ("n10", "n20", "n30") and splits.image_size == 64 and splits.flip
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.test.labels.tolist() == [2, 0, 1]
    grey, last = splits.train.images[0], splits.test.images[2]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey, pixels(tiny / "train/n10/images/n10_0.JPEG"))
    assert torch.equal(last, pixels(tiny / "val/images/val_2.JPEG"))


def test_tiny_imagenet_is_found_in_the_folder_that_holds_it(tiny, monkeypatch):
    assert torch.equal(data.load("Tiny_Image", tiny.parent).test.images, data.load("Tiny_Image", tiny).test.images)
    monkeypatch.chdir(tiny.parent)
    tiny.rename(tiny.parent / "moved")
    with pytest.raises(UserError) as error:
        data.load("Tiny_Image")
    assert "curl -LO" in one_line(error) and "-d datasets" in one_line(error)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt: is missing"),
        (lambda root: (root / "val/val_annotations.txt").write_text(""), "names no images"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn99\n"), "'n99' is not in wnids.txt"),
        (lambda root: (root / "val/images/val_1.JPEG").unlink(), "line 2: there is no"),
        (lambda root: [p.unlink() for p in (root / "train/n20/images").iterdir()], "no images of class n20"),
        (lambda root: save(root / "val/images/val_1.JPEG", noise(0, 32)), "val_1.JPEG: is 32x32 where 64x64"),
    ],
)
def test_tiny_imagenet_with_a_fault_names_the_file(tiny, harm, named):
    harm(tiny)
    with pytest.raises(UserError) as error:
        data.load("Tiny_Image", tiny)
    assert named in one_line(error)


# ---- Digits ----


def test_digits_are_all_there_in_the_same_stratified_split_every_time():
    splits, again = data.load("digits"), data.load("Digits")
    assert splits.train.images.shape == (1437, 3, 32, 32) and splits.test.images.shape == (360, 3, 32, 32)
    assert torch.equal(splits.train.images, again.train.images) and not splits.flip
    assert splits.train.images.dtype == torch.uint8 and splits.train.images.max() == 255
    assert (splits.test.labels.bincount() - 36).abs().max() <= 1 and len(splits.classes) == 10
    assert data.load("Digits", image_size=8).train.images.shape == (1437, 3, 8, 8)


# ---- Folder ----


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("zebra", "ant")):
            for i in range(count):
                suffix = ("png", "jpg", "JPEG")[i]
                save(tmp_path / split / name / f"{i}.{suffix}", noise(number * 9 + i, 16))
    return tmp_path


def test_folder_reads_png_and_jpeg_with_sorted_classes(folder, monkeypatch):
    listed = Path.iterdir  # in whatever order the file system has; here the wrong one
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    save(folder / "train" / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png", noise(1, 16))  # a notebook makes these
    splits = data.load("Folder", folder)
    assert splits.classes == ("ant", "zebra") and splits.image_size == 16
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and splits.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(splits.train.images[3], torch.from_numpy(noise(0, 16)).permute(2, 0, 1))
    (folder / "test").rename(folder / "val")
    assert torch.equal(data.load("Folder", folder).test.images, splits.test.images)


def test_folder_of_mixed_sizes_is_an_error_until_image_size_resizes_it(folder):
    odd = save(folder / "train" / "zebra" / "odd.png", np.full((20, 40, 3), 77, np.uint8))
    with pytest.raises(UserError) as error:
        data.load("Folder", folder)
    assert f"{odd}: is 40x20 where 16x16" in one_line(error) and "--image_size" in one_line(error)
    images = data.load("Folder", folder, image_size=8).train.images
    assert images.shape == (7, 3, 8, 8) and (images[-1] == 77).all()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda root: (root / "test").rename(root / "tset"), "no folder test/ there"),
        (lambda root: (root / "train").rename(root / "tarin"), "no folder train/ there"),
        (lambda root: (root / "test/ant").rename(root / "test/bee"), "only one of train and test has the class 'ant'"),
        (lambda root: (root / "train/bee").mkdir(), "bee: has no PNG or JPEG images"),
        (lambda root: (root / "train/ant").rename(root / "train/.ant"), "at least 2 classes, has 1"),
        (lambda root: save(root / "train/ant/0.png", noise(0, 16)[:8]), "0.png: is 16x8, not square"),
        (lambda root: save(root / "test/ant/0.png", np.ones((16, 16), np.uint16)), "0.png: not a readable image"),
        (lambda root: (root / "test/ant/1.jpg").write_bytes(b""), "1.jpg: not a readable image"),
        (lambda root: (root / "test/ant/1.jpg").write_text("<html>"), "1.jpg: not a readable image"),
        (lambda root: (root / "test/ant/2.jpg").symlink_to(root / "gone"), "2.jpg: not a readable image"),
        (lambda root: halve(root / "test/ant/1.jpg"), "1.jpg: not a readable image"),
        (lambda root: halve(root / "train/zebra/0.png"), "0.png: not a readable image"),
    ],
)
def test_folder_with_a_fault_names_it(folder, harm, named):
    harm(folder)
    with pytest.raises(UserError) as error:
        data.load("Folder", folder)
    assert named in one_line(error) and str(folder) in one_line(error)
    assert not list(folder.glob(".decoded*"))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ---- names and sizes ----


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("CIFAR1",), {}, "--dataset CIFAR1: unknown name; nearest: CIFAR10"),
        (("Folder",), {}, "--data_root"),
        (("CIFAR10",), {"image_size": 64}, "--image_size 64: CIFAR10 has 32x32 images"),
        (("Tiny_Image",), {"image_size": 32}, "--image_size 32: Tiny_Image has 64x64 images"),
    ],
)
def test_a_wrong_flag_is_named(arguments, options, named):
    with pytest.raises(UserError) as error:
        data.load(*arguments, **options)
    assert named in one_line(error)


# ---- the cache ----


@pytest.fixture
def decodings(monkeypatch):
    """Count the files that are decoded, the look at the first one's size aside."""
    seen = []
    fitted = decode._fitted
    monkeypatch.setattr(decode, "_fitted", lambda path, *rest: seen.append(path) or fitted(path, *rest))
    return seen


def test_cache_is_used_until_a_file_changes_and_replaces_the_stale_one(folder, decodings):
    first = data.load("Folder", folder).train.images
    assert len(decodings) == 10
    assert torch.equal(data.load("Folder", folder).train.images, first) and len(decodings) == 10
    (stale,) = folder.glob(".decoded*")

    save(folder / "train" / "ant" / "0.png", noise(99, 16))
    changed = data.load("Folder", folder).train.images
    assert len(decodings) == 20 and not torch.equal(changed, first)
    (fresh,) = folder.glob(".decoded*")
    assert fresh != stale and torch.equal(data.load("Folder", folder).train.images, changed) and len(decodings) == 20

    assert data.load("Folder", folder, image_size=8).image_size == 8
    assert data.load("Folder", folder).image_size == 16 and len(decodings) == 30
    assert len(list(folder.glob(".decoded*"))) == 2


def test_cache_notices_a_name_when_size_and_time_stay_the_same(folder, decodings):
    for name in ("0.png", "1.png"):
        path = save(folder / "train" / "ant" / name, noise(int(name[0]), 16), compress_level=0)
        os.utime(path, (10**9, 10**9))
    (folder / "train" / "ant" / "1.jpg").unlink()
    first = data.load("Folder", folder).train.images
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "ant" / "1a.png")
    second = data.load("Folder", folder).train.images
    assert len(decodings) == 20 and torch.equal(second[:2], first[:2].flip(0)) and not torch.equal(second, first)


@pytest.mark.parametrize("harm", ["cut", "empty", "flip"])
def test_damaged_cache_is_rebuilt_with_a_line(folder, decodings, caplog, harm):
    first = data.load("Folder", folder).train.images
    (cache,) = folder.glob(".decoded*")
    content = bytearray(cache.read_bytes())
    place = bytes(content).index(bytes(first[0].flatten()[:64].tolist()))
    content[place] ^= 1
    cache.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flip": content}[harm])
    assert torch.equal(data.load("Folder", folder).train.images, first) and len(decodings) == 20
    assert any("damaged" in record.message and str(cache) in record.message for record in caplog.records)
    data.load("Folder", folder)
    assert len(decodings) == 20


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("file write failed")])
def test_folder_that_cannot_be_written_only_costs_the_cache(folder, monkeypatch, caplog, error):
    def refuse(path, write):
        raise error

    monkeypatch.setattr(decode, "write_atomically", refuse)
    assert len(data.load("Folder", folder).train.labels) == 6
    assert [r.levelno for r in caplog.records if "cannot be kept" in r.message] == [logging.WARNING]
    assert not list(folder.glob(".decoded*"))


# ---- parts of a split ----


def numbered(labels):
    """A split whose i-th image holds the number i in each pixel."""
    labels = torch.as_tensor(labels)
    return Split(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels)


def test_subset_is_stratified_ordered_and_depends_on_the_seed_alone():
    split = numbered(torch.arange(200) % 8)
    for n in (1, 5, 8, 50, 199):
        part = data.subset(split, n, seed=3)
        counts = part.labels.bincount(minlength=8)
        assert len(part.labels) == n and counts.max() - counts.min() <= 1
        kept = part.images[:, 0, 0, 0].long()
        assert (kept.diff() > 0).all() and torch.equal(split.labels[kept], part.labels)
    picks = [data.subset(split, 50, seed=seed).images for seed in (3, 3, 4)]
    assert torch.equal(picks[0], picks[1]) and not torch.equal(picks[0], picks[2])
    assert data.subset(split, None, 0) is split and data.subset(split, 200, 0) is split
    for n in (0, -1):
        with pytest.raises(UserError, match="--limit_train"):
            data.subset(split, n, 0)


def test_subset_of_unequal_classes_keeps_their_shares_and_each_class():
    labels = [0] * 120 + [1] * 60 + [2] * 20
    assert data.subset(numbered(labels), 100, seed=0).labels.bincount().tolist() == [60, 30, 10]
    assert data.subset(numbered([0] * 100 + [1]), 2, seed=0).labels.tolist() == [0, 1]


def test_hold_out_parts_every_image_once_and_stratified():
    split = numbered(torch.arange(100) % 5)
    train, validation = data.hold_out(split, 20, seed=1)
    both = torch.cat([train.images, validation.images])[:, 0, 0, 0]
    assert both.sort().values.tolist() == list(range(100))
    assert validation.labels.bincount().tolist() == [4] * 5 and train.labels.bincount().tolist() == [16] * 5
    for n in (0, 100):
        with pytest.raises(UserError, match="--val_size"):
            data.hold_out(split, n, seed=1)


# ---- batches ----


def epoch(batches):
    return torch.cat([(images[:, 0, 0, 0] * 255).round().long() for images, _ in batches]).tolist()


def test_batches_keep_order_values_and_the_last_batch():
    split = numbered(torch.arange(101) % 7)
    batches = Batches(split, 25, device="cpu")
    images, labels = zip(*batches, strict=True)
    assert len(batches) == 5 and [len(x) for x in images] == [25, 25, 25, 25, 1]
    assert torch.equal(torch.cat(labels), split.labels)
    # Exactly torchvision's ToTensor: the byte as float32, divided by 255.
    assert torch.equal(torch.cat(images), split.images.float() / 255)
    assert images[0].dtype == torch.float32 and labels[0].dtype == torch.int64


def test_shuffle_shows_each_image_once_an_epoch_in_an_order_from_the_seed():
    split = numbered(torch.zeros(50, dtype=torch.long))
    runs = [Batches(split, 8, device="cpu", shuffle=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0)]
    first, second = epoch(runs[0]), epoch(runs[0])
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert [first, second] == [epoch(runs[1]), epoch(runs[1])]


def test_labels_follow_their_images():
    split = numbered(torch.arange(50) * 3)
    for images, labels in Batches(split, 8, device="cpu", shuffle=True, generator=torch.Generator()):
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long() * 3, labels)


def test_generator_state_from_the_start_of_an_epoch_repeats_it():
    split = Split(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20))
    generator = torch.Generator().manual_seed(5)
    batches = Batches(split, 6, device="cpu", shuffle=True, crop=4, flip=True, generator=generator)
    next(iter(batches))  # an epoch broken off draws as much as a whole one
    state = generator.get_state()
    second = [images for images, _ in batches]
    third = [images for images, _ in batches]
    generator.set_state(state)
    again = [images for images, _ in batches]
    assert all(map(torch.equal, second, again)) and not all(map(torch.equal, second, third))


def test_batch_of_one_is_augmented():
    split = Split(torch.full((3, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(3))
    batches = Batches(split, 1, device="cpu", shuffle=True, crop=4, flip=True, generator=torch.Generator())
    assert [tuple(images.shape) for images, _ in batches] == [(1, 3, 8, 8)] * 3


def test_augmentation_has_the_distribution_of_torchvision():
    """RandomCrop(32, padding=4) and RandomHorizontalFlip() have 9 x 9 x 2 equally likely results.

    Each of ours must be one of them to the byte, and the counts must pass Pearson's test: with 161 degrees of freedom
    the statistic has mean 161 and standard deviation 18, so 250 is 5 deviations off, and a fixed seed never flickers.
    """
    size, draws = 32, 16_200
    image = torch.randperm(size * size).view(1, size, size).remainder(256).to(torch.uint8).repeat(3, 1, 1)
    padded = TF.pad(image, 4)
    windows = [TF.crop(padded, top, left, size, size) for top in range(9) for left in range(9)]
    results = {bytes(x.numpy()): i for i, x in enumerate([*windows, *(TF.hflip(x) for x in windows)])}
    assert len(results) == 162
    split = Split(image.expand(draws, -1, -1, -1), torch.zeros(draws, dtype=torch.long))
    batches = Batches(split, 900, device="cpu", crop=4, flip=True, generator=torch.Generator().manual_seed(0))
    counts = np.zeros(162)
    for images, _ in batches:
        for augmented in images.mul(255).round().to(torch.uint8).numpy():
            counts[results[augmented.tobytes()]] += 1
    expected = draws / 162
    assert ((counts - expected) ** 2 / expected).sum() < 250


@pytest.mark.parametrize(("crop", "flip"), [(4, False), (0, True)])
def test_crop_and_flip_are_independent_switches(crop, flip):
    split = Split(torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8), torch.zeros(64, dtype=torch.long))
    ((images, _),) = Batches(split, 64, device="cpu", crop=crop, flip=flip, generator=torch.Generator())
    same = (images == split.images / 255).flatten(1).all(1)
    mirrored = (images == split.images.flip(3) / 255).flatten(1).all(1)
    assert 16 < mirrored.sum() < 48 and (same ^ mirrored).all() if flip else not mirrored.any() and same.sum() < 8


def test_images_without_room_on_the_device_stay_in_host_memory(monkeypatch, caplog):
    def full(tensor, device):
        raise torch.cuda.OutOfMemoryError

    split = numbered([0, 1])
    monkeypatch.setattr(torch.Tensor, "to", full)
    batches = Batches(split, 2, device="cuda")
    assert not batches.images.is_cuda and not batches.labels.is_cuda
    assert "stay in host memory" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_from_host_memory_equal_those_from_the_device():
    split = Split(torch.randint(256, (4000, 3, 128, 128), dtype=torch.uint8), torch.arange(4000))

    def run():
        generator = torch.Generator().manual_seed(0)
        batches = Batches(split, 64, device="cuda", shuffle=True, crop=4, flip=True, generator=generator)
        return batches.images.is_cuda, [[t.cpu() for t in batch] for batch in batches if batch[0].is_cuda]

    resident, expected = run()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (120 << 20)  # a batch fits, 188 MiB of images do not
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        fallback, batches = run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert resident and not fallback and len(expected) == 63
    assert all(torch.equal(a, b) for x, y in zip(expected, batches, strict=True) for a, b in zip(x, y, strict=True))


def test_images_kept_as_they_are_serve_the_same_image_size_too(folder, decodings):
    first = data.load("Folder", folder).train.images
    assert torch.equal(data.load("Folder", folder, image_size=16).train.images, first)
    assert len(decodings) == 10
    data.load("Folder", folder, image_size=32)
    data.load("Folder", folder, image_size=32)
    assert len(decodings) == 20
