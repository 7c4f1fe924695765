"""The exported files answer as torch does and say what spoke for it; the 8-bit one is there only if it is as good."""

import copy
import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, put_photos
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    ConvNextV2Config,
    Dinov2Config,
    HGNetV2Config,
    PoolFormerConfig,
    SiglipConfig,
    SwinConfig,
    Swinv2Config,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
)

from agritransfer.__main__ import main
from agritransfer.cli.export import _verdict_line
from agritransfer.data.readers.source import Photo
from agritransfer.errors import UsageError
from agritransfer.evaluation.calibration import calibrated_probabilities
from agritransfer.evaluation.novelty import learn_known, load_known
from agritransfer.evaluation.onnx_inference import SCHEMA
from agritransfer.evaluation.predictions import write_predictions
from agritransfer.evaluation.results import KNOWN_FILE
from agritransfer.evaluation.selective import calibrate
from agritransfer.hub.export import onnx as export
from agritransfer.hub.export import quantization
from agritransfer.hub.export.onnx import write_model
from agritransfer.hub.export.parity import CheckedPhotos, checked_photos, deletion_test, hide_cells, new_verdicts
from agritransfer.hub.export.quantization import quantization_methods, quantize, refusal
from agritransfer.images.decoding import decode_photo
from agritransfer.models.attribution import CELL_BY_CELL, EXACT, HELD_NORM, LAST_ATTENTION, ExplainedClassifier
from agritransfer.models.loading import load_classifier
from agritransfer.models.structure import last_attention

LABELS = {"num_labels": 3}


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8} | LABELS


SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4, "image_size": 32}


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


HGNET = {"embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "stem_channels": [3, 4, 8]}
HGNET |= {"stage_in_channels": [8, 8], "stage_mid_channels": [8, 8], "stage_out_channels": [8, 16]}
HGNET |= {"stage_num_blocks": [1, 1], "stage_downsample": [False, True], "stage_downsample_strides": [2, 2]}
HGNET |= {"stage_light_block": [False, True], "stage_kernel_size": [3, 3], "stage_numb_of_layers": [2, 2]}


def timm(architecture: str, **model_args) -> TimmWrapperConfig:
    of_pixels = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, pretrained_cfg=of_pixels, **LABELS)


VIT_OF_TIMM = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}


KINDS = {
    "vit": (ViTConfig(**TINY, intermediate_size=32), LAST_ATTENTION),
    "dinov2": (Dinov2Config(**TINY, mlp_ratio=2), LAST_ATTENTION),
    "convnextv2": (
        ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32, **LABELS),
        HELD_NORM,
    ),
    "swin": (SwinConfig(**SWIN, **LABELS), EXACT),
    "swinv2": (Swinv2Config(**SWIN, **LABELS), EXACT),
    # The network of the photos is one of two, and the head reads the mean of its patches.
    "clip": (CLIPConfig(vision_config=TINY | {"intermediate_size": 32}, text_config=TEXT, **LABELS), EXACT),
    "siglip": (SiglipConfig(vision_config=TINY | {"intermediate_size": 32}, text_config=TEXT, **LABELS), EXACT),
    "hgnet_v2": (HGNetV2Config(**HGNET, **LABELS), EXACT),
    # The head is a convolution of one pixel.
    "timm resnetv2": (timm("resnetv2_18", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32)), EXACT),
    # Its attention reads a weight without calling the layer.
    "timm beit": (
        timm("beit_base_patch16_224", **{"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}),
        HELD_NORM,
    ),
    "timm efficientnet": (timm("test_efficientnet"), EXACT),
    "timm vit": (timm("vit_tiny_patch16_224", **VIT_OF_TIMM), LAST_ATTENTION),
    "timm mobilenet": (timm("mobilenetv3_small_050"), CELL_BY_CELL),
    "timm swin": (timm("swinv2_tiny_window8_256", img_size=32, **{k: SWIN[k] for k in list(SWIN)[:5]}), EXACT),
}


def build(kind: str) -> nn.Module:
    """A random network whose answers depend on its photos; the libraries' own start is too small for that."""
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(copy.deepcopy(KINDS[kind][0]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "layer_scale" in name:
            nn.init.ones_(parameter)
    return model.eval()


def pixels(count: int, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_evidence_adds_up_to_the_logits_of_the_untouched_model(kind):
    model = build(kind)
    explained = ExplainedClassifier(model, 32).eval()
    logits, features, evidence = explained(pixels(3))
    assert explained.method == KINDS[kind][1]
    assert torch.equal(logits, model(pixel_values=pixels(3)).logits)
    head = explained.head
    torch.testing.assert_close(features @ head.weight.flatten(1).T + head.bias, logits)
    assert evidence.shape[:2] == (3, 3) and evidence.shape[2] == evidence.shape[3]
    torch.testing.assert_close(evidence.mean(dim=(2, 3)) + head.bias, logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exact_evidence_is_what_the_head_reads_in_each_cell():
    for kind in ("swinv2", "timm efficientnet"):
        model = build(kind)
        explained = ExplainedClassifier(model, 32).eval()
        evidence = explained(pixels(2))[2]
        if kind == "swinv2":
            cells = model.swinv2(pixels(2)).last_hidden_state
        else:
            cells = model.timm_model.forward_features(pixels(2)).flatten(2).transpose(1, 2)
        read = (cells @ explained.head.weight.T).transpose(1, 2)
        torch.testing.assert_close(evidence.flatten(2), read, rtol=1e-4, atol=1e-4)
        # Nothing had to be spread: the cells alone give the logits.
        torch.testing.assert_close(read.mean(dim=2) + explained.head.bias, model(pixels(2)).logits)


@torch.no_grad()
def test_what_all_tokens_write_is_the_output_of_the_last_attention_for_the_cls_token():
    model = build("vit")
    explained = ExplainedClassifier(model, 32).eval()
    seen = {}
    last, norm = model.vit.layers[-1].attention, model.vit.layernorm
    last.register_forward_hook(lambda _module, _inputs, output: seen.update(output=output[0]))
    _, hidden, watched = explained._look(pixels(2))
    # All tokens as cells, the CLS token among them, so that none is missing.
    written = explained._written_to_cls(hidden, watched).mean(dim=1)
    whole = seen["output"][:, 0] - last.o_proj.bias
    spread = (watched["norm"][0][:, 0].var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(written, (whole - whole.mean(dim=-1, keepdim=True)) / spread * norm.weight)


@torch.no_grad()
def test_the_held_norm_lacks_only_its_own_offset():
    model = build("convnextv2")
    nn.init.normal_(model.convnextv2.layernorm.bias)
    explained = ExplainedClassifier(model, 32).eval()
    logits, hidden, seen = explained._look(pixels(2))
    read = explained._read(hidden.flatten(2).transpose(1, 2), hidden, seen)
    torch.testing.assert_close(explained.head(read.mean(dim=1) + model.convnextv2.layernorm.bias), logits)


def test_an_attention_of_another_layout_is_not_read():
    # A projection of several layers, and an attention that names its heads otherwise.
    for config in (
        timm("levit_128s", img_size=32, depth=(1, 1, 1)),
        timm("hiera_tiny_224", img_size=64, embed_dim=16, stages=(1, 1, 1, 2)),
    ):
        assert last_attention(AutoModelForImageClassification.from_config(config)) is None


POOLFORMER = {"depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "patch_sizes": [7, 3]}
POOLFORMER |= {"strides": [4, 2], "padding": [2, 1]}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            PoolFormerConfig(**POOLFORMER, **LABELS),
            "PoolFormerForImageClassification cannot be exported: its head reads",
        ),
        (timm("test_mambaout"), "test_mambaout cannot be exported: its head reads"),
        (timm("efficientvim_m1"), "efficientvim_m1 cannot be exported: its body has several outputs"),
    ],
    ids=["poolformer", "mambaout", "efficientvim"],
)
def test_networks_without_evidence_are_refused_in_one_line(config, reason):
    model = AutoModelForImageClassification.from_config(config).eval()
    with pytest.raises(UsageError, match=reason) as refused:
        ExplainedClassifier(model, 32)
    assert "export another model" in str(refused.value) and "\n" not in str(refused.value)


def test_what_torch_cannot_export_is_refused_with_its_own_reason_in_one_line(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("Next steps:\n- Create an issue") from ValueError("Cannot view a tensor")

    explained = ExplainedClassifier(build("vit"), 32)
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UsageError, match=r"cannot export ViTFor.* to ONNX \(Cannot view a tensor\); predict and"):
        write_model(explained, 32, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "dinov2", "convnextv2", "swin", "swinv2", "clip", "timm efficientnet"])
def test_one_file_answers_as_torch_does_for_any_batch(kind, tmp_path):
    explained = ExplainedClassifier(build(kind), 32).eval()
    path = tmp_path / "model.onnx"
    write_model(explained, 32, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("pixel_values", ["batch", 3, 32, 32], "tensor(float)")
    assert [output.name for output in session.get_outputs()] == ["logits", "features", "evidence"]
    for count in (1, 3):
        answered = session.run(None, {"pixel_values": pixels(count).numpy()})
        with torch.no_grad():
            expected = explained(pixels(count))
        for ours, theirs in zip(answered, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    assert b".py" not in path.read_bytes(), "the file tells of this machine's own paths"


def leaf_batches(processor) -> list[tuple[np.ndarray, np.ndarray]]:
    """The 80 drawn validation leaves as a network takes them; their labels are not those of the backbones."""
    mean, std = processor.normalization
    files = sorted((ROOT / "sample/leaves/validation").rglob("*.jpg"))
    photos = torch.stack([processor.pixels(decode_photo(file)) for file in files])
    return [(((photos - mean) / std).numpy(), np.zeros(len(photos)))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("vit", LAST_ATTENTION), ("convnextv2", HELD_NORM)])
def test_hiding_what_spoke_for_a_class_lowers_it_more_than_chance(name, method, tmp_path):
    model, processor = load_classifier(ROOT / "sample" / name)
    explained = ExplainedClassifier(model, 96).eval()
    assert explained.method == method
    write_model(explained, 96, tmp_path / "model.onnx")
    found = deletion_test(tmp_path / "model.onnx", leaf_batches(processor))
    assert found["photos"] == 80 and found["passed"]
    fall = found["logit_fall"]
    # A tenth of ConvNeXt V2's nine cells is one.
    assert fall["hottest"] > 1.2 * fall["random"] > 0


def test_hidden_cells_are_the_hottest_tenth():
    heat = np.zeros((1, 4, 4), dtype=np.float32)
    heat[0, 1, 2], heat[0, 3, 0] = 2, 1
    hidden = hide_cells(np.ones((1, 3, 8, 8), dtype=np.float32), heat)
    expected = np.ones((8, 8))
    expected[2:4, 4:6] = expected[6:8, 0:2] = 0
    assert hidden.dtype == np.float32 and (hidden == expected).all()


def test_the_gate_names_what_failed_and_its_limits_pass():
    assert refusal(0.99, 0.99, 0.003) is None and refusal(1.0, 1.0, -0.02) is None
    assert refusal(0.989, 1.0, 0.0) == "it agrees with torch on only 98.9% of the photos; at least 99% is required"
    reason = "with its own calibration it gives the verdict of the run for only 98.9% of the photos"
    assert refusal(1.0, 0.989, 0.0) == f"{reason}; at least 99% is required"
    assert refusal(0.995, 1.0, 0.004) == "it loses 0.4 points of accuracy; at most 0.3 is allowed"


# The verdict on one of 21 photos may change by chance, and 20 of 21 are less than 99%.
FEW_AGREE = 0.7


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A short training on easy photos, which lie beside it as they did then."""
    folder = tmp_path_factory.mktemp("export")
    data, run = put_photos(folder / "photos", seed=0), folder / "run"
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "tiny")
    build("vit").save_pretrained(folder / "tiny")
    flags = ["--dataset_name", data, "--model_name_or_path", folder / "tiny", "--output_dir", run, "--use_cpu"]
    flags += ["--validation_fraction", "0.6", "--test_fraction", "0.2", "--target_error", "0.5"]
    flags += ["--learning_rate", "0.01", "--num_train_epochs", "12", "--augmentation", "none"]
    # The photos are no squares, so the files must know of the padding.
    flags += ["--resize_mode", "letterbox"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "train_finetune.py"), *map(str, flags)])
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "train_finetune.py"), run_name="__main__")
    return run


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    """The true classes, logits and features of 300 photos, of which every second one is easy to tell."""
    random = np.random.default_rng(0)
    truth = random.integers(3, size=300)
    features = np.float32(random.normal(size=(300, 8)))
    features[np.arange(300), truth] += random.choice([1, 6], size=300)
    return {"truth": truth, "logits": 2 * features[:, :3], "features": features}


@pytest.fixture
def checked(outputs, tmp_path) -> CheckedPhotos:
    """Every third of these photos, on which an export of their run is checked; pairs of photos share a plant."""
    photos = [Photo(n, f"{n}.jpg", "abc"[k], "validation", f"plant {n // 2}") for n, k in enumerate(outputs["truth"])]
    groups = [photo.group for photo in photos]
    entry, known = calibrate(outputs["logits"], outputs["features"], outputs["truth"], groups, 0.05)
    write_predictions(tmp_path / "predictions.csv", {"validation": (photos, outputs["logits"])}, "abc")
    (tmp_path / "results.json").write_text(json.dumps({"calibration": entry}))
    known.save(tmp_path / KNOWN_FILE)
    found = checked_photos(tmp_path, "abc", [photo.file for photo in photos[::3]], third(outputs))
    assert found.truth.tolist() == outputs["truth"][::3].tolist() and found.groups == groups[::3]
    return found


def third(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[::3] for name, values in outputs.items()}


def test_a_form_with_other_numbers_gets_its_own_calibration_and_then_the_same_verdicts(outputs):
    clusters = np.arange(300)
    entry, known = calibrate(outputs["logits"], outputs["features"], outputs["truth"], [""] * 300, 0.05)
    of_run = new_verdicts(outputs["logits"], outputs["features"], entry, known, clusters, clusters)
    checked = CheckedPhotos(outputs["truth"], [""] * 300, clusters, entry, of_run)
    assert {verdict.split()[0] for verdict in of_run} == {"answer", "not", "unknown"}
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    logits, features = 3 * outputs["logits"], outputs["features"] @ turned
    with_that_of_the_run = new_verdicts(logits, features, entry, known, clusters, clusters)
    assert sum(ours == theirs for ours, theirs in zip(with_that_of_the_run, of_run, strict=True)) < 270
    own, own_known, agreement = checked.calibrate(logits, features)
    assert own["temperature"] == pytest.approx(3 * entry["temperature"], rel=1e-3)
    assert own_known.features.shape == (300, 8) and agreement["photos"] == 300 and agreement["same"] >= 299
    low, high = agreement["agreement_ci95"]
    assert 0.97 < low < agreement["agreement"] <= high


def test_the_same_classes_from_other_features_are_other_verdicts(outputs, checked):
    logits, features = third(outputs)["logits"], third(outputs)["features"]
    scrambled = np.float32(np.random.default_rng(2).normal(size=features.shape))
    _, _, agreement = checked.calibrate(logits, scrambled)
    assert agreement["photos"] == 100 and agreement["agreement"] < 0.95
    assert "gives the verdict of the run for only" in refusal(1.0, agreement["agreement"], 0.0)


def test_a_photo_is_judged_without_its_own_plant(outputs, checked):
    """As by `learn_known`, which leaves out the group of each photo."""
    groups, clusters = [f"plant {n // 2}" for n in range(300)], np.arange(300) // 2
    entry, known = calibrate(outputs["logits"], outputs["features"], outputs["truth"], groups, 0.05)
    confidence = calibrated_probabilities(outputs["logits"], entry["temperature"]).max(axis=1)
    strange = learn_known(outputs["features"], confidence, groups)[1]
    found = new_verdicts(outputs["logits"], outputs["features"], entry, known, clusters, clusters)
    unknown = np.array([verdict == "unknown" for verdict in found])
    # A score at the limit may be rounded to either side; with a photo's own plant known, few would be unknown.
    assert unknown.sum() > 10 and (unknown != (strange > entry["unknown"]["threshold"])).sum() <= 2
    with_own = new_verdicts(outputs["logits"], outputs["features"], entry, known, clusters + 1000, clusters)
    assert with_own.count("unknown") < unknown.sum() / 2
    # A part of the photos is judged alike.
    assert checked.verdicts == found[::3]


def test_the_agreement_is_printed_with_its_interval_and_number():
    def line(same: int, photos: int, low: float, reason: str | None) -> str:
        verdicts = {"photos": photos, "same": same, "agreement": same / photos, "agreement_ci95": [low, 1.0]}
        return _verdict_line({"method": "dynamic", "verdicts": verdicts, "reason": reason})

    few = "; too few photos to be sure of 99% on new ones"
    assert (
        line(24, 24, 0.862, None)
        == f"8 bits, dynamic: the same verdict for 24 of 24 photos, 100.0% [86.2%, 100.0%]{few}"
    )
    assert few not in line(999, 999, 0.996, None) + line(20, 24, 0.64, "it differs")


@pytest.fixture(scope="module")
def exported_run(finished_run, tmp_path_factory) -> Path:
    """The same run with its `onnx/`, where an older one lay before."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("exported") / "run"))
    (run / "onnx").mkdir()
    (run / "onnx/left_from_before.onnx").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "LEAST_AGREEMENT", FEW_AGREE)
        assert main(["export", str(run)]) == 0
    return run


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_run_is_exported_with_all_that_an_answer_needs(finished_run, exported_run):
    assert {path.name for path in exported_run.iterdir()} == {path.name for path in finished_run.iterdir()} | {"onnx"}
    assert {path.name for path in (exported_run / "onnx").iterdir()} == {
        *("model.onnx", "model_quantized.onnx", "known_features_quantized.safetensors", "export.json")
    }
    exported = json.loads((exported_run / "onnx/export.json").read_text())
    results = json.loads((exported_run / "results.json").read_text())
    assert list(exported) == [
        *("schema", "photos", "torch", "model", "model_quantized", "evidence", "reduced_decoding", "seconds")
    ]
    assert exported["torch"]["accuracy"] == results["validation"]["accuracy"]
    assert exported["photos"] == results["validation"]["n"] > 20
    assert exported["model"]["agreement"] == 1 and exported["model"]["largest_logit_difference"] < 1e-4
    assert exported["model_quantized"]["written"] is True
    (small,) = exported["model_quantized"]["tried"]
    assert (small["method"], small["reason"]) == ("dynamic", None)
    assert small["agreement"] >= 0.99 and small["largest_logit_difference"] > 0
    assert small["verdicts"]["photos"] == exported["photos"] and small["verdicts"]["agreement"] >= FEW_AGREE
    # Rounded logits need another temperature, rounded features other known photos.
    assert small["calibration"]["temperature"] != results["calibration"]["temperature"]
    of_run, of_small = (
        load_known(exported_run / file) for file in (KNOWN_FILE, "onnx/known_features_quantized.safetensors")
    )
    assert of_run.features.shape == of_small.features.shape
    assert 0 < np.abs(of_run.features - of_small.features).max() < 0.1
    for name, of_file in (("model", exported["model"]), ("model_quantized", small)):
        path = exported_run / f"onnx/{name}.onnx"
        assert of_file["bytes"] == path.stat().st_size
        facts = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
        assert list(facts) == [
            *("schema", "labels", "preprocessing", "image_size", "reduced_decoding", "calibration", "evidence")
        ]
        assert facts["labels"] == results["dataset"]["labels"] == ["blight", "healthy", "rust"]
        assert facts["calibration"] == (results if name == "model" else small)["calibration"]
        assert facts["preprocessing"]["resize"] == facts["image_size"] == 32
        assert facts["preprocessing"]["pad"] == [127, 127, 127]
        assert facts["reduced_decoding"] == exported["reduced_decoding"]
        assert facts["evidence"] == exported["evidence"]
        assert facts["evidence"]["method"] == LAST_ATTENTION and facts["evidence"]["exact"] is False
    operators = [node.op_type for node in onnx.load(exported_run / "onnx/model_quantized.onnx").graph.node]
    assert operators.count("MatMulInteger") >= 6


def predicted(run: Path, photos: Path, table: Path) -> list[dict[str, str]]:
    assert main(["predict", str(run), str(photos), "--output", str(table)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_answers_alike_with_and_without_the_export(exported_run, run_copy, tmp_path, capsys):
    photos = put_photos(tmp_path / "new", seed=7)
    # Some that the model does not know, and one that is no photo.
    for number, photo in enumerate(sorted((ROOT / "sample/leaves_field").rglob("*.jpg"))[::20]):
        shutil.copy(photo, photos / f"leaf{number}.jpg")
    (photos / "broken.jpg").write_bytes(b"no photo")
    with pytest.MonkeyPatch.context() as patch:
        # With its weights out of reach, only the exported file can have answered.
        patch.setattr("agritransfer.evaluation.inference.load_classifier", None)
        exported = predicted(exported_run, photos, tmp_path / "exported.csv")
    assert "note:" not in capsys.readouterr().out
    weights = predicted(run_copy, photos, tmp_path / "weights.csv")
    assert len(exported) == len(weights) > 40
    for ours, theirs in zip(exported, weights, strict=True):
        for name in ("file", "verdict", "answer", "reason"):
            assert ours[name] == theirs[name]
        for name in ("probability", "probability_2", "probability_3"):
            assert float(ours[name] or 0) == pytest.approx(float(theirs[name] or 0), abs=2e-3)
    assert {row["verdict"] for row in exported} >= {"answer", "unknown", "broken"}


@pytest.mark.parametrize("change", ["weights written later", "another calibration"])
def test_an_export_of_other_weights_is_not_used(change, exported_run, tmp_path, photos, capsys):
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    onnx.save(with_other_bias(made(run), np.float32([99, 0, 0])), made(run))
    if change == "weights written later":
        later = made(run).stat().st_mtime + 1
        os.utime(run / "model.safetensors", (later, later))
    else:
        results = json.loads((run / "results.json").read_text())
        results["calibration"]["temperature"] += 1e-9
        (run / "results.json").write_text(json.dumps(results))
    rows = predicted(run, photos / "rust", tmp_path / "table.csv")
    assert {row["answer"] for row in rows} != {"blight"} and len(rows) == 12
    assert "does not belong to the weights of this run; export the run again" in capsys.readouterr().out


def test_an_export_of_an_older_version_is_not_used(exported_run, tmp_path, photos, capsys):
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    model = onnx.load(made(run))
    older = {entry.key: entry.value for entry in model.metadata_props} | {"schema": str(SCHEMA - 1)}
    onnx.helper.set_model_props(model, older)
    onnx.save(model, made(run))
    assert len(predicted(run, photos / "rust", tmp_path / "table.csv")) == 12
    assert "model.onnx was exported by another version; run: agritransfer export" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [(), ("dynamic",), ("dynamic", "blocks"), ("dynamic", "blocks", "weights")])
def test_the_first_8_bit_form_that_passes_is_written_and_why_others_are_not(
    bad, exported_run, run_copy, monkeypatch, capsys
):
    # The writing by torch takes most of the time and is tested above.
    monkeypatch.setattr(export, "write_model", lambda _model, _side, path: shutil.copy(made(exported_run), path))

    def quantize_badly(method: str, full: Path, small: Path, *others) -> None:
        quantize(method, full, small, *others)
        if method in bad:
            onnx.save(with_other_bias(small, np.float32([9, -9, -9])), small)

    monkeypatch.setattr(export, "quantize", quantize_badly)
    monkeypatch.setattr(quantization, "LEAST_AGREEMENT", FEW_AGREE)
    assert main(["export", str(run_copy), "--photos", "20"]) == 0
    out = capsys.readouterr().out
    exported = json.loads((run_copy / "onnx/export.json").read_text())
    written = len(bad) < 3
    assert exported["photos"] == 20 and exported["model_quantized"]["written"] is written
    files = {path.name for path in (run_copy / "onnx").iterdir()}
    of_small = {"model_quantized.onnx", "known_features_quantized.safetensors"}
    assert files == {"model.onnx", "export.json"} | (of_small if written else set())
    reasons = {form["method"]: form["reason"] for form in exported["model_quantized"]["tried"]}
    assert list(reasons) == ["dynamic", "blocks", "weights"][: len(bad) + 1]
    assert out.count(" of 20 photos, ") == len(reasons)
    assert "checked on 20 validation photos" in out and out.count("not written") == len(bad)
    for method, reason in reasons.items():
        if method in bad:
            assert reason.startswith("it agrees with torch on only ")
            assert f"8 bits, {method}: not written because {reason}" in out
        else:
            assert reason is None
            assert head_weights(run_copy / "onnx/model_quantized.onnx") == {onnx.TensorProto.FLOAT}


def head_weights(path: Path) -> set[int]:
    """The types of the weights that have three columns or rows, as only the head's have."""
    weights = onnx.load(path).graph.initializer
    return {weight.data_type for weight in weights if len(weight.dims) == 2 and 3 in weight.dims}


def made(run: Path) -> Path:
    return run / "onnx/model.onnx"


def with_other_bias(path: Path, more: np.ndarray) -> onnx.ModelProto:
    """The model with another bias of its head, the only weight of three numbers."""
    model = onnx.load(path)
    (bias,) = [weight for weight in model.graph.initializer if list(weight.dims) == [3] and weight.data_type == 1]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + more, bias.name))
    return model


def test_a_file_that_answers_unlike_torch_leaves_no_folder(exported_run, run_copy, monkeypatch):
    other = with_other_bias(made(exported_run), np.float32([1, 0, 0]))
    monkeypatch.setattr(export, "write_model", lambda _model, _side, path: onnx.save(other, path))
    before = {path.name for path in run_copy.iterdir()}
    with pytest.raises(
        UsageError,
        match=r"the logits of model\.onnx differ from those of the trained model by 1, so no file was written",
    ):
        export.export_onnx(run_copy)
    assert {path.name for path in run_copy.iterdir()} == before and "onnx" not in before


def test_export_says_in_one_line_what_it_cannot_do(run_copy, tmp_path, capsys):
    results = json.loads((run_copy / "results.json").read_text())

    def complaint(code: int, run: Path, *flags: str) -> str:
        assert main(["export", str(run), *flags]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "is not a finished run; give the --output_dir of a finished training" in complaint(2, tmp_path)
    assert "--photos must be at least 1; found 0" in complaint(2, run_copy, "--photos", "0")
    fewer = Path(shutil.copytree(results["dataset"]["name"], tmp_path / "fewer"))
    next(fewer.rglob("*.jpg")).unlink()
    for name, code, words in (
        (str(tmp_path / "moved"), 2, f"export where '{tmp_path / 'moved'}' is still available and unchanged"),
        (str(fewer), 3, "lists 1 photo missing from the dataset"),
        (str(put_photos(tmp_path / "others", seed=5)), 3, "no longer holds the photos that"),
    ):
        results["dataset"]["name"] = name
        (run_copy / "results.json").write_text(json.dumps(results))
        assert words in complaint(code, run_copy)
    assert not (run_copy / "onnx").exists()


def test_too_few_photos_for_unknown_ones_give_no_8_bit_file(exported_run, run_copy, monkeypatch, capsys):
    monkeypatch.setattr(export, "write_model", lambda _model, _side, path: shutil.copy(made(exported_run), path))
    monkeypatch.setattr(quantization, "LEAST_AGREEMENT", 0.0)
    assert main(["export", str(run_copy), "--photos", "12"]) == 0
    assert {path.name for path in (run_copy / "onnx").iterdir()} == {"model.onnx", "export.json"}
    reason = "not written because 12 photos are too few to tell unknown photos; at least 20 are required"
    assert capsys.readouterr().out.count(reason) == 3


@pytest.mark.parametrize("kind", ["vit", "timm efficientnet"])
def test_weights_alone_are_rounded_to_a_quarter_of_the_size_and_hardly_change_an_answer(kind, tmp_path):
    explained = ExplainedClassifier(build(kind), 32).eval()
    full, small = tmp_path / "model.onnx", tmp_path / "model_quantized.onnx"
    write_model(explained, 32, full)
    quantize("weights", full, small, explained.head, iter(()))
    batch = {"pixel_values": pixels(8).numpy()}
    exact, rounded = (onnxruntime.InferenceSession(path).run(["logits", "features"], batch) for path in (full, small))
    for ours, theirs in zip(rounded, exact, strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()
    integers = [weight for weight in onnx.load(small).graph.initializer if weight.data_type == onnx.TensorProto.INT8]
    assert len(integers) >= 5
    assert head_weights(small) == head_weights(full) == {onnx.TensorProto.FLOAT}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "weights"])
def test_a_network_of_convolutions_is_rounded(method, tmp_path):
    explained = ExplainedClassifier(build("timm efficientnet"), 32).eval()
    full, small = tmp_path / "model.onnx", tmp_path / "model_quantized.onnx"
    write_model(explained, 32, full)
    assert quantization_methods(explained) == ("static", "weights")
    quantize(method, full, small, explained.head, iter([pixels(8).numpy()]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model_quantized.onnx"]
    assert small.stat().st_size < 0.5 * full.stat().st_size
    # The head and the reading of evidence stay as they are.
    assert head_weights(small) == head_weights(full) == {onnx.TensorProto.FLOAT}


@pytest.mark.script
def test_no_library_is_made_to_talk(tmp_path):
    program = "import logging, pathlib, sys\nfrom agritransfer.hub.export import quantization\n"
    program += "quantization._quantize_blocks(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [])\n"
    program += "print(logging.getLogger().level, logging.getLogger().handlers)"
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(empty, tmp_path / "empty.onnx")
    words = [sys.executable, "-c", program, tmp_path / "empty.onnx", tmp_path / "small.onnx"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "30 []"
