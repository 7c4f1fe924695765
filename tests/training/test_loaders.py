"""Tests that no flag of the loaders and no last batch of one photo ends a run with a traceback."""

import copy

import photo_trainer
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from networks import CONFIGS, build
from shards import put_parquet
from small_trainer import PROCESSOR, arguments, photos, trainer_of, vit
from torch.utils.data import BatchSampler, SequentialSampler

from agritransfer.data.dataset import load_splits
from agritransfer.errors import UsageError
from agritransfer.images.pixel_cache import PixelStore
from agritransfer.models.freezing import batchnorm_of_single_values, freeze_batchnorm_statistics, train_layers
from agritransfer.training.activation_cache import CachedPhotos, frozen_prefix

NO_FILES = {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no"}
# Networks whose last maps have one pixel for photos of 32 x 32 pixels.
SINGLE = {"timm mobilenet": "timm_model.blocks.4.0.bn2", "timm efficientnet": "timm_model.blocks.4.0.bn2"}


@pytest.mark.parametrize("kind", [*CONFIGS])
def test_the_layers_that_torch_refuses_to_run_on_one_photo_are_found(kind):
    model, one_photo = build(kind), torch.zeros(1, 3, 32, 32)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = batchnorm_of_single_values(model, one_photo)
    assert model.training and torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    if found is None:
        model(pixel_values=one_photo)
    else:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            model(pixel_values=one_photo)
        assert batchnorm_of_single_values(model, torch.zeros(2, 3, 32, 32)) is None
    assert (found is not None) == (kind in SINGLE), found


@pytest.mark.parametrize("kind", SINGLE)
def test_one_photo_is_left_out_rather_than_normalized_alone(kind, tmp_path, capsys):
    args = arguments(tmp_path, per_device_train_batch_size=7, num_train_epochs=2, **NO_FILES)
    trainer = trainer_of(build(kind), args)
    trainer.train()
    assert trainer.state.global_step == 2 and not args.dataloader_drop_last
    said = "1 of 8 train photos is left out of each epoch, not always the same one: BatchNorm (timm_model.blocks."
    assert capsys.readouterr().out.count(said) == 1
    # Validation keeps its last photo, also with a batch size of 7.
    args.per_device_eval_batch_size = 7
    assert sum(len(batch["labels"]) for batch in trainer.get_eval_dataloader()) == 8


@pytest.mark.parametrize(
    ("kind", "batch", "layers"),
    [
        ("timm mobilenet", 4, "all"),
        ("timm mobilenet", 3, "all"),
        ("vit", 7, "all"),
        ("resnet", 7, "all"),
        ("timm mobilenet", 7, "head"),
        ("timm mobilenet", 7, "first"),
    ],
)
def test_no_photo_is_left_out_where_none_must_be(kind, batch, layers, tmp_path, capsys):
    model = build(kind)
    if layers == "first":
        # As --head_first does.
        freeze_batchnorm_statistics(model, of_frozen_layers_only=False)
    else:
        train_layers(model, layers)
    args = arguments(tmp_path, per_device_train_batch_size=batch, num_train_epochs=1, **NO_FILES)
    trainer = trainer_of(model, args)
    trainer.train()
    assert trainer.state.global_step == -(-8 // batch)
    assert "left out" not in capsys.readouterr().out


def test_one_photo_is_left_out_of_cached_views_too(photos, tmp_path, capsys):
    model, splits = build("timm efficientnet"), load_splits(str(photos))
    train_layers(model, "1")
    batch = {"per_device_train_batch_size": 23, "num_train_epochs": 3}
    trainer = photo_trainer.trainer_of(model, splits, tmp_path, **batch)
    with frozen_prefix(trainer, splits, 1, "light", 10**9):
        assert isinstance(trainer.train_dataset, CachedPhotos)
        trainer.train()
    assert trainer.state.global_step == 3
    assert "1 of 24 train photos is left out of each epoch" in capsys.readouterr().out


def test_a_stream_leaves_its_last_photo_out_too(tmp_path, capsys):
    folder = put_parquet(tmp_path / "parquet", [5, 6])
    args = arguments(tmp_path, per_device_train_batch_size=5, num_train_epochs=1, **NO_FILES)
    stream = load_splits(str(folder), streaming=True).dataset("train", PROCESSOR)
    trainer = trainer_of(build("timm mobilenet"), args, train_dataset=stream)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "1 of 11 train photos is left out of each epoch" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_have_no_batch_of_one_photo_since_accelerate_fills_the_last_ones_up(processes):
    for count in (5, 9, 13, 17, 25):
        whole = BatchSampler(SequentialSampler(range(count)), 4, drop_last=False)
        shares = [BatchSamplerShard(whole, processes, process) for process in range(processes)]
        assert {len(batch) for share in shares for batch in share} == {4}


@pytest.mark.parametrize(("batch", "count"), [(1, 8), (4, 1)])
def test_batches_of_one_photo_throughout_are_refused_before_training(batch, count, tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=batch, **NO_FILES)
    trainer = trainer_of(build("timm mobilenet"), args, train_dataset=photos()[:count])
    with pytest.raises(UsageError, match="cannot normalize a batch of one photo; use a --per_device_train_batch_size"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_single_photos_train_a_network_without_batchnorm(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=1, num_train_epochs=1, **NO_FILES)
    trainer = trainer_of(vit(), args)
    trainer.train()
    assert trainer.state.global_step == 8


WORKERS = {
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 3,
    "dataloader_persistent_workers": True,
    "dataloader_multiprocessing_context": "spawn",
}


@pytest.mark.parametrize("flags", [WORKERS, *({"dataloader_num_workers": 1, flag: WORKERS[flag]} for flag in WORKERS)])
@pytest.mark.parametrize("stored", ["auto", "off"])
def test_flags_of_loader_workers_hold_with_workers_and_do_nothing_without(flags, stored, photos, tmp_path):
    trainer = trainer_of(vit(), arguments(tmp_path, **NO_FILES))
    store, splits = PixelStore(stored, 1), load_splits(str(photos))
    args = arguments(tmp_path, num_train_epochs=1, **NO_FILES, **flags)
    data = {
        "train_dataset": splits.training_photos(trainer.processor, "none", store),
        "eval_dataset": splits.dataset("validation", trainer.processor, store),
    }
    loader = trainer_of(vit(), args, **data).get_train_dataloader()
    assert loader.num_workers == (0 if stored == "auto" else flags["dataloader_num_workers"])
    if stored == "off":
        assert loader.persistent_workers == flags.get("dataloader_persistent_workers", False)
        assert loader.prefetch_factor == flags.get("dataloader_prefetch_factor", 2)
    else:
        assert sum(len(batch["labels"]) for batch in loader) == 24


@pytest.mark.parametrize(
    "flags", [{"dataloader_persistent_workers": True}, {"dataloader_multiprocessing_context": "spawn"}]
)
def test_flags_of_workers_alone_do_nothing(flags, tmp_path):
    trainer = trainer_of(vit(), arguments(tmp_path, num_train_epochs=1, **NO_FILES, **flags))
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers -1 is negative; use 0 or more"),
        ({"dataloader_prefetch_factor": 0}, "--dataloader_prefetch_factor 0 is too small; use 1 or more"),
        ({"dataloader_multiprocessing_context": "thread"}, "_context thread is unknown; use .*spawn"),
    ],
)
def test_values_that_torch_never_takes_are_refused_by_name(flags, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        trainer_of(vit(), arguments(tmp_path, **{"dataloader_num_workers": 1} | flags))
