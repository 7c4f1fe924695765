"""Features are computed once for all runs on the same photos and weights, and found again bit for bit."""

import numpy as np
import pytest
import torch
from networks import build
from photo_trainer import PROCESSOR, Calls, trainer_of

from agritransfer.data.dataset import load_splits
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.lora import add_lora
from agritransfer.runtime.disk_cache import cache_folder
from agritransfer.training.feature_cache import features_of


@pytest.fixture
def splits(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return load_splits(str(photos))


def seen_and_features(model, splits, tmp_path, store=None) -> tuple[int, np.ndarray]:
    """How many photos went through the network, and the features of the train photos."""
    trainer, seen = trainer_of(model, splits, tmp_path / "run", "none"), Calls(model)
    return seen, features_of(trainer, splits.dataset("train", PROCESSOR, store or PixelStore("auto", 1)), None)


def kept() -> list:
    folder = cache_folder("features")
    return sorted(folder.iterdir()) if folder.exists() else []


def test_features_are_found_again_bit_for_bit_and_rebuilt_when_damaged(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("agritransfer.training.partial_forward.DRAWN_TOGETHER", 5)
    seen, without = seen_and_features(build("vit"), splits, tmp_path, PixelStore("off", 1))
    assert seen.photos == 24 and not kept()
    # Only the first batch, which is compared, is computed again.
    for photos in (24, 5):
        seen, features = seen_and_features(build("vit"), splits, tmp_path)
        assert seen.photos == photos and len(kept()) == 1
        assert features.dtype == np.float32 and np.array_equal(features, without)
        assert features.flags.writeable
    content = bytearray(kept()[0].read_bytes())
    for damaged in (content[:-9], [*content[:50], content[50] ^ 1, *content[51:]]):
        kept()[0].write_bytes(bytes(damaged))
        seen, features = seen_and_features(build("vit"), splits, tmp_path)
        assert seen.photos == 24 and np.array_equal(features, without)
        assert kept()[0].read_bytes() == content


def test_another_head_or_untrained_adapters_find_them_and_other_weights_do_not(splits, tmp_path):
    first = build("vit")
    _, features = seen_and_features(first, splits, tmp_path)
    other_head = build("vit")
    with torch.no_grad():
        other_head.classifier.weight.normal_()
    assert np.array_equal(seen_and_features(other_head, splits, tmp_path)[1], features)
    assert len(kept()) == 1
    options = {"target_modules": None, "use_dora": False, "use_rslora": False}
    adapted = add_lora(build("vit"), image_size=32, r=2, alpha=4, dropout=0.1, **options)
    assert np.array_equal(seen_and_features(adapted, splits, tmp_path)[1], features)
    assert len(kept()) == 1
    moved = build("vit")
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-3
    seen_and_features(moved, splits, tmp_path)
    assert len(kept()) == 2


def test_features_without_room_are_not_kept(splits, tmp_path, capsys):
    store = PixelStore("auto", 1)
    store.limit = 80_000
    _, features = seen_and_features(build("vit"), splits, tmp_path, store)
    assert len(features) == 24 and len(kept()) == 1
    other = build("vit")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    dataset = splits.dataset("train", PROCESSOR, store)
    dataset.stored.limit = 1000
    features_of(trainer_of(other, splits, tmp_path / "run", "none"), dataset, None)
    assert len(kept()) == 1
    assert "features: not kept for later runs, no room within --pixel_store_gb" in capsys.readouterr().out
