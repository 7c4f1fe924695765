"""Tests that the scores are scikit-learn's, their intervals the published ones, and the files complete."""

import io

import numpy as np
import pytest
import torch
from networks import build
from PIL import Image
from tf32 import TF32
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from agritransfer.evaluation.inference import predict
from agritransfer.images.photo_dataset import EvaluationPixels, PhotoDataset
from agritransfer.images.preprocessing import PhotoProcessor, describe_processor


def photo_dataset(count: int, processor: PhotoProcessor) -> tuple[PhotoDataset, list[Image.Image]]:
    """Photos of noise, in a store whose order is not that of the split."""
    random, images, store = np.random.default_rng(0), [], []
    for _ in range(count):
        images.append(Image.fromarray(random.integers(256, size=(40, 36, 3), dtype=np.uint8)))
        file = io.BytesIO()
        images[-1].save(file, "PNG")
        store.append({"image": {"bytes": file.getvalue(), "path": None}})
    rows = list(range(count))[::-1]
    return PhotoDataset(store, rows, [0] * count, [f"{row}.png" for row in rows], EvaluationPixels(processor)), [
        images[row] for row in rows
    ]


def test_logits_are_those_of_a_plain_forward_in_the_order_of_the_photos():
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(
        ViTConfig(**tiny, image_size=32, patch_size=8, num_labels=3, hidden_dropout_prob=0.5)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    processor = describe_processor(
        ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.4, 0.6], image_std=[0.3] * 3)
    )
    dataset, images = photo_dataset(10, processor)
    # Ten photos in batches of four: the last one is not full. The model comes as training left it, with dropout.
    predicted, features = predict(model.train(), dataset, batch_size=4)
    assert (predicted.shape, predicted.dtype) == ((10, 3), np.float32)
    with torch.no_grad():
        expected = [model.eval()(**processor.library(image, return_tensors="pt")).logits[0].numpy() for image in images]
    assert np.allclose(predicted, expected, atol=1e-4)
    assert np.std(expected, axis=0).min() > 1e-2
    # The features are what the head is given: its weights turn them into the logits.
    assert (features.shape, features.dtype) == ((10, 16), np.float32)
    head = model.classifier
    assert np.allclose(features @ head.weight.detach().numpy().T + head.bias.detach().numpy(), predicted, atol=1e-4)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("kind", ["vit", "timm efficientnet"])
@pytest.mark.parametrize("flag", ["--tf32", "--bf16"])
def test_scores_are_those_of_float32_whatever_training_computed_in(kind, flag):
    processor = describe_processor(ViTImageProcessor(size={"height": 32, "width": 32}))
    model, (dataset, _) = build(kind).eval(), photo_dataset(6, processor)
    exact = predict(model, dataset, batch_size=4)
    emulated = TF32() if flag == "--tf32" else torch.autocast("cpu", torch.bfloat16)
    try:
        # As the Trainer sets it.
        torch.backends.fp32_precision = "tf32"
        with emulated:
            pixels = torch.stack([dataset[number]["pixel_values"] for number in range(6)])
            mean, std = processor.normalization
            with torch.no_grad():
                rough = model((pixels - mean) / std).logits.float().numpy()
            # Without this the test would prove nothing.
            assert np.abs(rough - exact[0]).max() > 1e-5
            if flag == "--tf32":
                assert emulated.rounded > 4 and emulated.exact == 0
            scored = predict(model, dataset, batch_size=4)
            if flag == "--tf32":
                assert emulated.exact > 4
    finally:
        torch.backends.fp32_precision = "none"
    for ours, theirs in zip(scored, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)
