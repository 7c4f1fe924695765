"""Tests that stored pixels are the decoded ones, are decoded once, checked, bounded and shared."""

import json
import os
import pickle
import runpy
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, ViTImageProcessor

from agritransfer.data.dataset import Splits, load_splits
from agritransfer.errors import StorageError
from agritransfer.images import pixel_cache as pixel_store
from agritransfer.images.photo_dataset import PhotoDataset, collate
from agritransfer.images.pixel_cache import PixelStore, StoredPixels
from agritransfer.images.preprocessing import describe_processor
from agritransfer.runtime import disk_cache as caches

SQUARE = {"height": 32, "width": 32}
PROCESSOR = describe_processor(BitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE))


# 36 photos of 40 x 30 pixels, of which 24 are trained on: 37 pixels high and 49 wide with their margin.
BYTES = 24 * 37 * 49 * 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(caches, "SPARE_BYTES", 0)
    return tmp_path / "agritransfer-pixels"


@pytest.fixture(scope="module")
def splits(photos) -> Splits:
    return load_splits(str(photos))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The places of the photos that were decoded, one by one."""
    seen, decode = [], PhotoDataset.decode

    def counted(self, index):
        seen.append(index)
        return decode(self, index)

    monkeypatch.setattr(PhotoDataset, "decode", counted)
    return seen


def batch(dataset: PhotoDataset) -> dict:
    return collate([dataset[i] for i in range(len(dataset))])


def test_stored_and_decoded_pixels_are_the_same_to_the_last_bit(splits, cache):
    for stored, fresh in (
        (splits.dataset("test", PROCESSOR, PixelStore("auto", 1)), splits.dataset("test", PROCESSOR)),
        (
            splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1)),
            splits.training_photos(PROCESSOR, "light", PixelStore("off", 1)),
        ),
    ):
        ours, theirs = batch(stored), batch(fresh)
        assert stored.stored is not None
        assert fresh.stored is None
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert torch.equal(ours["labels"], theirs["labels"])
        assert ours["files"] == theirs["files"]


def test_every_photo_is_decoded_once_whatever_the_number_of_passes_and_runs(splits, decoded):
    first = PixelStore("auto", 1)
    photos = splits.training_photos(PROCESSOR, "light", first)
    assert first.line() == "pixel store: 24 photos (0 MB) decoded"
    for _ in range(2):
        batch(photos)
    second = PixelStore("auto", 1)
    batch(splits.training_photos(PROCESSOR, "light", second))
    assert second.line() == "pixel store: 24 photos (0 MB) found"
    assert sorted(decoded) == list(range(24))


def test_other_photos_other_sizes_and_other_processors_have_stores_of_their_own(splits, cache):
    store = PixelStore("auto", 1)
    splits.training_photos(PROCESSOR, "light", store)
    splits.training_photos(PROCESSOR, "strong", store)
    assert len(list(cache.iterdir())) == 1
    splits.training_photos(describe_processor(ViTImageProcessor(size={"height": 48, "width": 48})), "light", store)
    for processor in (PROCESSOR, describe_processor(ViTImageProcessor(size=SQUARE))):
        splits.dataset("test", processor, store)
    splits.dataset("validation", PROCESSOR, store)
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["shorter", "one bit"])
def test_damaged_pixels_are_never_used(splits, cache, damage):
    fresh = batch(splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1)))
    (folder,) = cache.iterdir()
    content = bytearray((folder / "pixels.bin").read_bytes())
    assert len(content) == BYTES
    content[1000] ^= 1
    (folder / "pixels.bin").write_bytes(content[:-1] if damage == "shorter" else content)
    store = PixelStore("auto", 1)
    assert torch.equal(batch(splits.training_photos(PROCESSOR, "light", store))["pixel_values"], fresh["pixel_values"])
    reason = "has 130,535 of 130,536 bytes" if damage == "shorter" else "does not match its checksum"
    assert f"{folder.name} {reason} and is rebuilt" in store.line()
    assert StoredPixels(folder).fault() is None


def test_a_store_that_was_not_finished_does_not_exist(splits, cache, monkeypatch):
    def stopped(dataset, pool):
        yield dataset.decode(0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pixel_store, "_decoded", stopped)
        with pytest.raises(KeyboardInterrupt):
            splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1))
    assert list(cache.iterdir()) == []
    assert splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1)).stored is not None


def test_a_cache_that_cannot_be_written_costs_the_store_and_not_the_run(splits, cache):
    cache.write_text("a file in the place of the folder")
    store = PixelStore("auto", 1)
    assert len(batch(splits.training_photos(PROCESSOR, "light", store))["files"]) == 24
    assert "24 photos (0 MB) not stored (" in store.line()


@pytest.mark.parametrize("why", ["limit", "disk"])
def test_without_room_photos_are_decoded_as_they_are_used(splits, cache, decoded, monkeypatch, why):
    if why == "disk":
        monkeypatch.setattr(caches, "free_bytes", lambda folder: BYTES - 1)
    store = PixelStore("auto", (BYTES - 1) / 1e9 if why == "limit" else 1)
    photos = splits.training_photos(PROCESSOR, "light", store)
    assert (
        "no room for 24 photos (0 MB) within --pixel_store_gb and the free disk space, decoded each time"
        in store.line()
    )
    assert photos.stored is None
    batch(photos)
    batch(photos)
    assert len(decoded) == 48
    assert list(cache.iterdir()) == []


def test_the_longest_unused_store_makes_room_and_never_one_of_this_day(splits, cache):
    processors = [
        describe_processor(ViTImageProcessor(size={"height": side, "width": side})) for side in (32, 33, 34, 35)
    ]
    for days, processor in ((3, processors[0]), (2, processors[1]), (0, processors[2])):
        before = set(cache.iterdir()) if cache.exists() else set()
        splits.training_photos(processor, "light", PixelStore("auto", 1))
        (made,) = set(cache.iterdir()) - before
        os.utime(made, (made.stat().st_mtime - days * 86_400,) * 2)
    oldest, younger, of_today = sorted(cache.iterdir(), key=lambda folder: folder.stat().st_mtime)
    taken = sum(file.stat().st_size for file in cache.rglob("*.*"))
    # Room for three and a half: the oldest goes, and no other.
    tight = PixelStore("auto", taken * 3.5 / 3 / 1e9)
    assert splits.training_photos(processors[3], "light", tight).stored is not None
    assert (oldest.is_dir(), younger.is_dir(), of_today.is_dir()) == (False, True, True)
    # Room for one: what is of today stays, though the new one has no room then.
    tight = PixelStore("auto", taken * 1.5 / 3 / 1e9)
    assert splits.training_photos(processors[0], "light", tight).stored is None
    assert (younger.is_dir(), of_today.is_dir()) == (False, True)


def test_a_file_that_is_cut_off_under_way_ends_the_run_with_the_remedy(splits, cache):
    photos = splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1))
    os.truncate(next(cache.glob("*/pixels.bin")), BYTES - 1)
    with pytest.raises(StorageError, match="is truncated; rerun the same command, which rebuilds the file"):
        batch(photos)
    shutil.rmtree(cache)
    with pytest.raises(StorageError, match="is missing .* rerun the same command, which rebuilds the file"):
        batch(photos)


def test_a_loader_worker_reads_the_file_itself_and_is_not_sent_its_bytes(splits):
    photos = splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1))
    sent = pickle.dumps(photos.stored)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent)[5], photos.stored[5])


def test_threads_are_as_before(splits):
    torch.set_num_threads(2)
    splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1))
    assert torch.get_num_threads() == 2


def test_phone_photos_are_stored_small(tmp_path):
    folder = tmp_path / "phone"
    for label in ("rust", "healthy"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(256, size=(30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((1600, 1200)).save(folder / label / f"{number}{label}.jpg")
    splits = load_splits(str(folder), validation_fraction=0.25, test_fraction=0.25)
    splits.training_photos(PROCESSOR, "light", PixelStore("auto", 1))
    (index,) = (json.loads(path.read_text()) for path in tmp_path.rglob("index.json"))
    assert index["shapes"] == [[37, 49]] * 4


def test_a_run_gives_the_same_weights_with_and_without_the_store(photos, tiny_vit, run_script, tmp_path):
    flags = ("--dataset_name", photos, "--model_name_or_path", tiny_vit, "--num_train_epochs", 2, "--seed", 3)
    printed = {}
    for mode in ("auto", "off"):
        folder = tmp_path / mode
        code, out, err = run_script("train_finetune.py", *flags, "--output_dir", folder, "--pixel_store", mode)
        assert (code, err) == (0, "")
        printed[mode] = out
    assert "pixel store: 24 photos (0 MB) decoded" in printed["auto"]
    assert "pixel store: off, photos are decoded each time they are used" in printed["off"]
    assert (tmp_path / "auto/model.safetensors").read_bytes() == (tmp_path / "off/model.safetensors").read_bytes()
    assert (tmp_path / "auto/predictions.csv").read_bytes() == (tmp_path / "off/predictions.csv").read_bytes()
    shutil.rmtree(tmp_path / "auto")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"XDG_CACHE_HOME": "/data/cache"},
        {"HF_HOME": "~/hub", "XDG_CACHE_HOME": "/data/cache"},
        {"HF_DATASETS_CACHE": "/scratch/photos", "HF_HOME": "~/hub"},
    ],
)
def test_the_cache_lies_where_datasets_puts_its_own(environment, monkeypatch):
    for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = runpy.run_path(datasets.config.__file__, run_name="datasets.config")
    assert caches.cache_folder("pixels") == Path(config["HF_DATASETS_CACHE"]) / "agritransfer-pixels"
