"""Copies are found whatever was done to them, and two photos of the same kind of thing are not taken for copies."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agritransfer.data.deduplication import (
    MIN_CORRELATION,
    SYMMETRIES,
    _hashes,
    _turned,
    _turned_hashes,
    _unit,
    connect,
    find_duplicates,
    near_pairs,
    thumbnail,
)

TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def drawn(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Soft patches of colour, so that two of them share their low frequencies by chance as leaves do."""
    coarse = np.random.default_rng(seed).integers(256, size=(9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def saved(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


CHANGES = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    **{f"turned by {turn.name[7:]}": lambda picture, turn=turn: picture.transpose(turn) for turn in TURNS},
    "mirrored and turned": lambda picture: ImageOps.mirror(picture).transpose(TURNS[0]),
    "encoded again": lambda picture: saved(picture, 40),
    "half as large": lambda picture: picture.resize((60, 45)),
    "squashed": lambda picture: picture.resize((90, 90)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "all at once": lambda picture: saved(ImageOps.mirror(picture).resize((75, 56)), 60).transpose(TURNS[2]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_other_photos(change):
    originals = [drawn(seed) for seed in range(30)]
    pictures = originals + [CHANGES[change](picture) for picture in originals[:10]]
    groups = find_duplicates([str(i) for i in range(40)], np.stack([thumbnail(picture) for picture in pictures]))
    assert groups == [[i, i + 30] for i in range(10)]


def test_another_crop_or_another_leaf_is_no_copy():
    leaf = drawn(0)
    pictures = [leaf, leaf.crop((30, 20, 110, 80)), *(drawn(seed) for seed in range(1, 200))]
    thumbnails = np.stack([thumbnail(picture) for picture in pictures])
    assert find_duplicates([str(i) for i in range(201)], thumbnails) == []


def test_all_pairs_above_the_threshold_are_found_and_no_other():
    # Mixtures of two pictures, so that many pairs lie close to the threshold on both sides.
    one, two = (thumbnail(drawn(seed)).astype(float) for seed in (1, 2))
    rest = [np.random.default_rng(seed).normal(0, 25, one.shape) for seed in range(60)]
    mixed = np.stack([(one if seed % 2 else two) + seed / 60 * noise for seed, noise in enumerate(rest)])
    thumbnails = np.clip(mixed, 0, 255).astype(np.uint8)
    units = _unit(thumbnails)
    best = np.max([np.einsum("aij,bij->ab", units, _turned(units, symmetry)) for symmetry in SYMMETRIES], axis=0)
    wanted = connect(60, [(a, b) for a in range(60) for b in range(a) if best[a, b] >= MIN_CORRELATION])
    assert find_duplicates([str(i) for i in range(60)], thumbnails) == wanted
    assert len(wanted) == 2 and 10 < sum(map(len, wanted)) < 60


def test_the_hash_of_a_turned_photo_is_the_turned_hash():
    thumbnails = np.stack([thumbnail(drawn(seed)) for seed in range(5)])
    for symmetry in SYMMETRIES:
        expected = _hashes(_turned(thumbnails, symmetry))
        assert np.allclose(_turned_hashes(_hashes(thumbnails), symmetry), expected, atol=1e-5), symmetry
    assert len(SYMMETRIES) == len({_turned(thumbnails[:1], symmetry).tobytes() for symmetry in SYMMETRIES}) == 8


def test_photos_that_show_nothing_are_equal_only_by_their_bytes():
    blank = np.stack([np.full((48, 48), grey, np.uint8) for grey in (0, 0, 0, 255, 128)])
    assert find_duplicates(["a", "b", "a", "c", "d"], blank) == [[0, 2]]


def test_a_thousand_copies_are_one_group_and_nothing_is_found_in_nothing():
    thumbnails = np.repeat(np.stack([thumbnail(drawn(seed)) for seed in (0, 1)]), 1000, axis=0)
    groups = find_duplicates([str(i) for i in range(2000)], thumbnails)
    assert [len(group) for group in groups] == [1000, 1000] and groups[0][-1] == 999
    assert find_duplicates([], np.zeros((0, 48, 48), np.uint8)) == []


def test_what_is_tied_through_others_is_one_group():
    assert connect(7, [(0, 3), (5, 3), (2, 1)]) == [[0, 3, 5], [1, 2]]


def test_transform_and_groups_are_those_of_scipy():
    thumbnails = np.stack([thumbnail(drawn(seed)) for seed in range(5)])
    assert np.allclose(_hashes(thumbnails), dctn(_unit(thumbnails), axes=(1, 2), norm="ortho")[:, :12, :12], atol=1e-6)
    pairs = np.random.default_rng(0).integers(500, size=(300, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(500, 500))
    member_of = connected_components(graph)[1]
    groups = [np.flatnonzero(member_of == number).tolist() for number in range(member_of.max() + 1)]
    assert connect(500, pairs.tolist()) == sorted(group for group in groups if len(group) > 1)
    assert max(map(len, groups)) > 10


def test_near_features_are_pairs_by_their_angle_around_the_mean():
    around = np.array([[1, 0], [0.99, 0.141], [0, 1], [-1, 0], [-0.99, -0.141], [0, -1.0]])
    features = around * [[3], [1], [2], [1], [5], [2]] * 0.1 + 40
    features -= features.mean(axis=0) - 40
    pairs, found = near_pairs(around, 0.98, [f"{i}" for i in range(6)])
    assert {pair[:2] for pair in pairs} == {(0, 1), (3, 4)} and found == 2
    assert pairs[0][2] == pytest.approx(0.99, abs=1e-3)
    assert near_pairs(around, 0.98, ["a", "a", *"bcde"]) == (pairs[1:] if pairs[0][:2] == (0, 1) else pairs[:1], 1)


def test_near_pairs_in_blocks_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr("agritransfer.data.deduplication.BLOCK", 7)
    features = np.random.default_rng(0).normal(size=(60, 3))
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    groups = [f"{i // 2}" for i in range(60)]
    wanted = {
        (a, b): unit[a] @ unit[b] for b in range(60) for a in range(b) if a // 2 != b // 2 and unit[a] @ unit[b] >= 0.8
    }
    pairs, found = near_pairs(features, 0.8, groups)
    assert {pair[:2] for pair in pairs} == wanted.keys() and found == len(pairs) == len(wanted) > 100
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)
    monkeypatch.setattr("agritransfer.data.deduplication.MOST_PAIRS", 20)
    assert near_pairs(features, 0.8, groups) == (pairs[:20], found)


def memory_of(function, *arguments) -> int:
    """The highest number of bytes that numpy held at once during a call, beyond its arguments."""
    tracemalloc.start()
    function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_memory_of_near_pairs_does_not_grow_with_their_number():
    # Frames of one video: every pair is near, and the whole matrix alone would take 144 MB.
    features = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32) * [1, *[0.01] * 7]
    assert memory_of(near_pairs, features, 0.0, [f"{i}" for i in range(6000)]) < 72e6
