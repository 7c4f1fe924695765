"""What must be the same for a run to resume, and what may differ."""

import dataclasses
import shutil

from transformers import TrainingArguments

from agritransfer.arguments import DataArguments, FinetuneArguments, LoraArguments, ModelArguments, ScratchArguments
from agritransfer.data.dataset import load_splits
from agritransfer.training.resume import MAY_DIFFER, model_mark, run_settings

OURS = (DataArguments, ModelArguments, FinetuneArguments, LoraArguments, ScratchArguments)


def test_what_may_differ_are_flags_and_what_trains_is_none_of_them():
    flags = {field.name for owner in (*OURS, TrainingArguments) for field in dataclasses.fields(owner)}
    assert flags >= MAY_DIFFER, MAY_DIFFER - flags
    decisive = {"seed", "data_seed", "learning_rate", "per_device_train_batch_size", "num_train_epochs", "max_steps"}
    decisive |= {
        "image_size",
        "resize_mode",
        "augmentation",
        "class_weights",
        "train_layers",
        "lora_r",
        "model_type",
        "model_size",
    }
    decisive |= {"bf16", "optim", "save_strategy", "metric_for_best_model", "dataloader_drop_last", "split_seed"}
    assert decisive <= flags and not decisive & MAY_DIFFER


def test_a_model_is_known_by_its_weights_wherever_it_lies(tiny_vit, tmp_path):
    copy = tmp_path / "elsewhere" / tiny_vit.name
    shutil.copytree(tiny_vit, copy)
    assert model_mark(str(copy), None) == model_mark(str(tiny_vit), None)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"@")
    assert model_mark(str(copy), None) != model_mark(str(tiny_vit), None)
    assert model_mark("user/model", "0123456789abcdef") == "user/model (0123456789ab)"


def test_the_settings_know_the_photos_by_their_bytes_and_order_and_name_no_path(photos, tmp_path):
    def settings(folder, **flags):
        splits = load_splits(str(folder))
        training = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **flags)
        return run_settings(splits, None, DataArguments(dataset_name=str(folder)), training)

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    before = settings(photos)
    assert settings(copy) == before and str(tmp_path) not in str(before) and str(photos) not in str(before)
    assert settings(copy, dataloader_num_workers=2) == before
    assert settings(copy, seed=7) == before | {"seed": 7}
    # The same bytes under another name come in another batch.
    (copy / "rust/00.jpg").rename(copy / "rust/99.jpg")
    assert settings(copy)["photos"] != before["photos"]
