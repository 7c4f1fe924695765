"""Tests that whatever is given as a model ends in one line with what was found and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from saved_networks import LABELS, vit
from transformers import (
    AutoConfig,
    BertConfig,
    DetrConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTModel,
)

from agritransfer.errors import UsageError
from agritransfer.models.loading import load_pretrained, load_processor
from agritransfer.models.source_check import cannot_load


def refusal(load: Callable, *given: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def model_refusal(folder: Path) -> str:
    return refusal(load_pretrained, str(folder), None, LABELS, 32)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "the folder is empty; use another model"),
        ({"notes.txt": ""}, "has no config.json, only notes.txt; use a folder written by save_pretrained"),
        ({"config.json": "{"}, r"not valid JSON \(.*\); copy the model again"),
        ({"config.json": "[1]"}, "holds a list, not settings; copy the model again"),
        ({"config.json": "{}"}, "names no model_type; copy the config.json of the model"),
        ({"config.json": '{"model_type": "newnet"}'}, r"cannot be used \(.* `newnet` .*\); use another model"),
        ({"status.json": "{}"}, "a run that is not finished; run its command again"),
        ({"llama.Q4.gguf": ""}, "it holds GGUF files, a format of llama.cpp; use another model"),
        ({"modules.json": "[]"}, "a sentence-transformers model; use another model"),
        ({"model_index.json": "{}"}, "a pipeline of diffusers, which makes pictures; use another model"),
        ({"weights.pth": ""}, "weights but no config.json; save the model with save_pretrained"),
        ({"adapter_config.json": '{"base_model_name_or_path": "google/vit"}'}, "is an adapter, .*; use google/vit, or"),
        ({"adapter_config.json": "no"}, "is an adapter, .*; use its base model, or merge the adapter"),
    ],
)
def test_a_folder_that_holds_no_model_is_named_for_what_it_holds(files, told, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"the model of .* could not be loaded: .*{told}"):
        load_pretrained(str(tmp_path), None, LABELS, 32)
    if "adapter_config.json" not in files:
        with pytest.raises(UsageError, match=f"the image processor of .* could not be loaded: .*{told}"):
            load_processor(str(tmp_path), None, None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (BertConfig(), "it is a bert model, and transformers classifies no photos with it; use another model"),
        (DetrConfig(architectures=["DetrForObjectDetection"]), "a detr model, made as DetrForObjectDetection, and"),
        (ViTMAEConfig(), "no classification head for vit_mae; use another model"),
        (DINOv3ViTConfig(), "same weights from timm: timm/vit_small_patch16_dinov3.lvd1689m"),
        (DINOv3ViTConfig(use_gated_mlp=True), "from timm: timm/vit_small_plus_patch16_dinov3.lvd1689m"),
        (DINOv3ViTConfig(hidden_size=1024, num_attention_heads=16), "timm: timm/vit_large_patch16_dinov3.sat493m"),
        (DINOv3ConvNextConfig(), "same weights from timm: timm/convnext_tiny.dinov3_lvd1689m"),
        (
            DINOv3ConvNextConfig(hidden_sizes=[128, 256, 512, 1024], depths=[3, 3, 27, 3]),
            "from timm: timm/convnext_base.dinov3_lvd1689m",
        ),
    ],
)
def test_a_model_of_another_task_is_named_with_another_to_use(config: PreTrainedConfig, told: str, tmp_path):
    folder = tmp_path / "of-sat493m"
    config.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    assert told in model_refusal(folder)


def put(folder: Path, **changes: object) -> Path:
    vit(**changes).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def set_layers(folder: Path, layers: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    set_layers(put(tmp_path, num_hidden_layers=3), 2)
    told = model_refusal(tmp_path)
    assert "more layers than its config.json says, such as vit.layers.2." in told
    assert told.endswith("(number of unused weights: 16); copy config.json and model.safetensors from the same model")
    set_layers(tmp_path, 4)
    assert "lacks 16 weights of its backbone, such as vit.layers.3." in model_refusal(tmp_path)
    # A pooling layer that the classifier does not use is of no harm.
    ViTModel(vit().config).save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path), None, LABELS, 32).config.num_labels == 3


def test_weights_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    put(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    assert "if model.safetensors is incomplete, download it again" in model_refusal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no model.safetensors; copy the weights too, or train its architecture" in model_refusal(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"")
    assert "for another framework (tf_model.h5), not model.safetensors; use another" in model_refusal(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "are a pickle (pytorch_model.bin), which can run code when it is read; if you" in model_refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    vit().save_pretrained(tmp_path, max_shard_size="8KB")
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    first.unlink()
    assert f"names {first.name}, which is missing; copy the model again" in model_refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert "index.json cannot be read; copy the model again" in model_refusal(tmp_path)


def test_a_model_without_a_processor_and_an_adapter_of_a_run_are_refused(tmp_path):
    put(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "it is an adapter, not a whole model; use its base model" in model_refusal(tmp_path / "adapter")
    (tmp_path / "results.json").write_text("{}")
    assert f"use the run folder '{tmp_path}', which holds the merged model" in model_refusal(tmp_path / "adapter")
    vit().save_pretrained(tmp_path)
    told = refusal(load_processor, str(tmp_path), None, None)
    assert "has no preprocessor_config.json, so the size and the colors" in told and "copy this file from" in told
    assert "it is a file; use the folder" in model_refusal(tmp_path / "config.json")


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_ends_in_one_line_without_a_network(monkeypatch):
    asked = []

    def unreachable(_api, name, **_options):
        asked.append(name)
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    def not_cached(name, **_options):
        raise OSError("We couldn't connect to the Hub. Check your internet connection.")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(AutoConfig, "from_pretrained", not_cached)
    for name in ("nowhere", "user/nowhere"):
        assert str(cannot_load("model", name, None, OSError("not found"))) == (
            f"the model of '{name}' could not be loaded: there is no such folder, and the Hub gives no such model (We "
            "couldn't connect to the Hub); correct the name, or check the network and HF_TOKEN"
        )
    assert asked == ["nowhere", "user/nowhere"]
