"""An exported model sees, without torch, the pixels that its image processor makes."""

import numpy as np
import pytest
from processors import KINDS

from agritransfer.images.preprocessing import describe_processor, pixel_recipe
from agritransfer.images.recipe_pixels import normalize, recipe_pixels
from pictures import noise

# Odd and even sides, so that a centre lies between two pixels.
SIZES = ((150, 100), (91, 160), (701, 300), (64, 64), (333, 417))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_of_a_recipe_are_those_of_the_processor(kind):
    processor = describe_processor(KINDS[kind]())
    recipe, (mean, std) = pixel_recipe(processor), processor.normalization
    for size in SIZES:
        theirs = processor.pixels(noise(*size))
        ours = recipe_pixels(noise(*size), recipe)
        assert (ours.shape, ours.dtype) == (tuple(theirs.shape), np.uint8)
        assert np.array_equal(ours, theirs.numpy())
        expected = ((theirs - mean) / std).numpy()
        assert np.abs(normalize(theirs.numpy()[None], recipe)[0] - expected).max() < 1e-5


def test_every_kind_of_processor_is_compared():
    assert len(KINDS) >= 13
