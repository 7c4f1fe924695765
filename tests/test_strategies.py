"""The table of strategies."""

import pytest

from agritransfer.strategies import default_batch_size, default_epochs


@pytest.mark.parametrize(
    ("photos", "epochs"), [(1, 20), (160, 20), (500, 20), (1000, 10), (2000, 5), (10**6, 5), (None, 5)]
)
def test_few_photos_get_more_epochs_and_random_weights_three_times_as_many(photos, epochs):
    assert default_epochs("lora", photos) == default_epochs("finetune", photos) == epochs
    assert default_epochs("scratch", photos) == 3 * epochs


@pytest.mark.parametrize(
    ("photos", "size"), [(1, 8), (499, 8), (500, 16), (3199, 16), (3200, 32), (10**6, 32), (None, 32)]
)
def test_few_photos_get_small_batches(photos, size):
    assert default_batch_size(photos) == size
    # Enough steps for the head and the backbone to move.
    assert photos is None or photos < 100 or photos * default_epochs("lora", photos) / size >= 250
