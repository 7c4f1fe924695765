"""Tests that the trainer ends with the best weights, resumes exactly, and reports what a user can read."""

import json

import pytest
import torch
from small_trainer import arguments, differing, photos, trainer_of, vit, weights
from torch.nn.functional import cross_entropy, one_hot

from agritransfer.images.augmentation import build_augmentation
from agritransfer.images.photo_dataset import collate
from agritransfer.training.losses import class_weights, classification_loss

# peft 0.21 asks transformers 5.23 by an old name; pytest undoes the filter that strategies.py sets when imported.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


NO_FILES = {"eval_strategy": "no", "save_strategy": "no"}


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_whole_labels_is_cross_entropy(smoothing):
    logits, labels = logits_and_labels()
    loss = classification_loss(None, smoothing)
    expected = cross_entropy(logits, labels, label_smoothing=smoothing)
    assert loss({"logits": logits}, labels).item() == pytest.approx(expected.item())
    # Two batches of one optimizer step: each gives its share of the mean over both.
    parts = [loss({"logits": logits[rows]}, labels[rows], torch.tensor(6)) for rows in ([0, 1, 2, 3], [4, 5])]
    assert sum(parts).item() == pytest.approx(expected.item())
    assert loss({"logits": logits.half()}, labels).dtype == torch.float32


def test_class_weights_count_each_photo_by_its_class():
    logits, labels = logits_and_labels()
    of_class = torch.tensor([0.5, 2.0, 3.0])
    loss = classification_loss(of_class, 0.0)({"logits": logits}, labels)
    by_hand = [-of_class[label] * logits[i].softmax(0)[label].log() for i, label in enumerate(labels)]
    assert loss.item() == pytest.approx(sum(by_hand).item() / 6)


@pytest.mark.parametrize("of_class", [None, torch.tensor([0.5, 2.0, 3.0])])
def test_the_loss_of_a_mixed_photo_is_the_mixture_of_its_losses(of_class):
    logits, labels = logits_and_labels()
    loss, others = classification_loss(of_class, 0.0), labels.flip(0)
    shares = 0.7 * one_hot(labels, 3) + 0.3 * one_hot(others, 3)
    mixed = 0.7 * loss({"logits": logits}, labels) + 0.3 * loss({"logits": logits}, others)
    assert loss({"logits": logits}, shares).item() == pytest.approx(mixed.item())


@pytest.mark.script
@pytest.mark.parametrize("of_class", [None, torch.tensor([0.2, 1.0, 3.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [8, 6])
def test_gradient_accumulation_takes_the_step_of_the_large_batch(of_class, smoothing, count, tmp_path):
    def after_one_step(batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        # Plain gradient descent: Adam would hide a gradient of the wrong length.
        gradient_descent = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
        batches = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        args = arguments(tmp_path, **gradient_descent, **batches, label_smoothing_factor=smoothing, **NO_FILES)
        trainer = trainer_of(vit(), args, class_weights=of_class, train_dataset=photos()[:count])
        trainer.train()
        assert trainer.state.global_step == 1
        return weights(trainer.model)

    large, accumulated, start = after_one_step(8, 1), after_one_step(4, 2), weights(vit())
    assert differing(large, start)
    for name in large:
        assert torch.allclose(large[name], accumulated[name], atol=2e-6), name


def test_balanced_weights_are_inverse_to_the_counts_and_one_on_average_over_the_photos():
    labels = [0, 0, 0, 1, 2, 2]
    of_class = class_weights("balanced", {"blight": 3, "healthy": 1, "rust": 2})
    assert of_class.tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    assert of_class[labels].mean().item() == pytest.approx(1.0)
    assert class_weights("none", None) is None


def test_mixed_labels_leave_no_trace_in_the_saved_configuration(tmp_path):
    torch.manual_seed(0)
    args = arguments(tmp_path, max_steps=2, **NO_FILES)
    whole = [item | {"photo": item.pop("pixel_values").permute(1, 2, 0)} for item in photos()]
    trainer = trainer_of(vit(), args, augment=build_augmentation("strong", 32, 3), train_dataset=whole)
    assert trainer.model_inputs(collate(whole), augmented=True)["labels"].shape == (8, 3)
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config.get("problem_type") in (None, "single_label_classification")
