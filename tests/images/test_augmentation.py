"""Tests that a photo is decoded as people see it and that the model sees the pixels of its own image processor."""

import numpy as np
import pytest
import torch

from agritransfer.errors import UsageError
from agritransfer.images.augmentation import build_augmentation, check_augmentation
from agritransfer.images.photo_dataset import collate
from pictures import noise


def batch_of(*photos: np.ndarray, labels: tuple[int, ...] = (0, 1, 2, 1)) -> dict:
    """Whole photos, each of shape (height, width, 3), as a batch."""
    items = [{"photo": torch.from_numpy(photo), "files": "a.jpg"} for photo in photos]
    return collate([item | {"labels": label} for item, label in zip(items, labels, strict=True)])


def same_noise(count: int, side: int) -> list[np.ndarray]:
    return [np.asarray(noise(side, side)).copy()] * count


@pytest.mark.parametrize(
    ("augmentation", "views", "words"),
    [("wild", None, "use one of none, crop, light, strong"), ("strong", 4, "use --augmentation light")],
)
def test_an_augmentation_that_cannot_be_used_is_refused(augmentation, views, words):
    with pytest.raises(UsageError, match=words):
        check_augmentation(augmentation, views)
    check_augmentation("light", views)


def test_no_augmentation_leaves_pixels_and_labels_as_they_are():
    pixels = torch.from_numpy(np.stack(same_noise(4, 32))).permute(0, 3, 1, 2)
    batch = {"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 1])}
    augmented, kept = build_augmentation("none", 32, 3)(batch)
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, pixels.float())
    assert torch.equal(kept, batch["labels"])


def test_light_augmentation_crops_and_flips_each_photo_by_itself_and_keeps_the_labels():
    torch.manual_seed(0)
    batch = batch_of(*same_noise(4, 32))
    augmented, kept = build_augmentation("light", 28, 3)(batch)
    assert augmented.shape == (4, 3, 28, 28)
    assert augmented.dtype == torch.float32
    assert torch.equal(kept, torch.tensor([0, 1, 2, 1]))
    assert all(not torch.equal(augmented[0], other) for other in augmented[1:])
    # Crops and flips only: a photo of one colour keeps it, whatever its shape.
    colour = np.array([10, 120, 250], np.uint8)
    plain = batch_of(
        *(np.tile(colour, (height, width, 1)) for height, width in ((32, 50), (40, 32), (32, 32), (32, 90)))
    )
    assert (build_augmentation("light", 28, 3)(plain)[0] == torch.tensor(colour).view(1, 3, 1, 1)).all()


def test_a_plain_crop_has_pixels_of_the_photo_itself_from_all_of_its_places():
    torch.manual_seed(0)
    # Every pixel of this photo tells where it is.
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    photo = np.stack([rows, columns, np.full_like(rows, 7)], axis=-1)
    augment = build_augmentation("crop", 32, 1)
    corners, turned = set(), set()
    for _ in range(40):
        crops, _ = augment(batch_of(photo, photo, labels=(0, 0)))
        for crop in crops.int():
            top, left = crop[0].min().item(), crop[1].min().item()
            assert sorted(crop[0, :, 0].tolist()) == list(range(top, top + 32))
            assert sorted(crop[1, 0].tolist()) == list(range(left, left + 32))
            assert (crop[2] == 7).all()
            corners.add((top, left))
            turned.add((crop[0, 0, 0].item() == top, crop[1, 0, 0].item() == left))
    assert len(turned) == 4
    assert {min(top for top, _ in corners), max(top for top, _ in corners)} == {0, 8}
    assert min(left for _, left in corners) <= 2
    assert max(left for _, left in corners) >= 26


def test_strong_augmentation_gives_shares_of_the_labels_that_sum_to_1():
    torch.manual_seed(0)
    augment = build_augmentation("strong", 28, 3)
    batches = [augment(batch_of(*same_noise(4, 32))) for _ in range(8)]
    assert all(pixels.shape == (4, 3, 28, 28) and pixels.dtype == torch.float32 for pixels, _ in batches)
    assert all(pixels.min() >= 0 and pixels.max() <= 255 for pixels, _ in batches)
    shares = torch.stack([share for _, share in batches])
    assert shares.shape == (8, 4, 3)
    assert torch.allclose(shares.sum(-1), torch.ones(8, 4))
    assert (shares >= 0).all()
    mixed = (shares > 0.02).sum(-1) > 1
    assert mixed.any()
    # A photo keeps a share of its own label, or lends it: over a batch the labels add up.
    assert torch.allclose(shares.sum(1), torch.tensor([1.0, 2.0, 1.0]).expand(8, 3))


@pytest.mark.parametrize("augmentation", ["crop", "light", "strong"])
def test_the_same_seed_augments_a_batch_the_same_way(augmentation):
    augment = build_augmentation(augmentation, 28, 3)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(augment(batch_of(*same_noise(4, 40))))
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][0], batches[2][0])
