"""Which photos are the same?

Copies are found by their look, so that re-encoding, resizing, mirroring and quarter turns do not hide them. A crop of a
photo is not found, nor is a second shot of the same leaf: give those a group.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 48
# On rice, cardamom and apple photos copies lie above 0.985, and two different leaves at most at 0.976.
MIN_CORRELATION = 0.98
# A thumbnail whose grey levels spread less than this shows nothing to compare.
MIN_SPREAD = 2.0
# The low frequencies of a thumbnail, its perceptual hash before the rounding to bits, find the candidates.
HASH_SIDE = 12
# Transposed or not, upside down or not, left to right or not: the eight symmetries of a square.
SYMMETRIES = [(transposed, rows, columns) for transposed in (0, 1) for rows in (1, -1) for columns in (1, -1)]
BLOCK = 1024


def thumbnail(picture: Image.Image) -> np.ndarray:
    """The photo as grey levels, squashed to a square: uint8 (48, 48)."""
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def find_duplicates(digests: Sequence[str], thumbnails: np.ndarray) -> list[list[int]]:
    """Groups of places whose photos have equal bytes or look the same in any of the eight symmetries.

    Two look the same when their thumbnails, uint8 (photos, 48, 48), correlate by at least 0.98.
    """
    if not digests:
        return []
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    pairs = [(first[digest], place) for place, digest in enumerate(digests) if first[digest] != place]
    return connect(len(digests), [*pairs, *_pairs_alike(thumbnails)])


def near_pairs(features: np.ndarray, min_similarity: float) -> list[tuple[int, int, float]]:
    """Pairs of places whose features (photos, width) are as alike as this, by the cosine around their mean.

    The most alike pair comes first.
    """
    centred = features - features.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    pairs = []
    for start in range(0, len(centred), BLOCK):
        similarity = centred[start : start + BLOCK] @ centred.T
        rows, columns = np.nonzero(similarity >= min_similarity)
        later = columns > rows + start
        pairs += zip(rows[later] + start, columns[later], similarity[rows[later], columns[later]], strict=True)
    return sorted(((int(a), int(b), float(s)) for a, b, s in pairs), key=lambda pair: -pair[2])


def connect(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups of places, each of two or more, that pairs tie together directly or through others."""
    if not pairs:
        return []
    left, right = np.array(pairs).T
    _, member_of = connected_components(coo_array((np.ones(len(pairs)), (left, right)), shape=(count, count)))
    order = np.argsort(member_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(member_of[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _pairs_alike(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    # Equal thumbnails are one, so that a thousand copies of a photo are not half a million pairs.
    unique, first, which = np.unique(
        thumbnails.reshape(len(thumbnails), -1), axis=0, return_index=True, return_inverse=True
    )
    thumbnails = unique.reshape(-1, SIDE, SIDE)
    tells_something = thumbnails.std(axis=(1, 2)) >= MIN_SPREAD
    pairs = [
        (first[kind], place)
        for place, kind in enumerate(which.ravel())
        if first[kind] != place and tells_something[kind]
    ]
    shown = np.flatnonzero(tells_something)
    hashes = _hashes(thumbnails[shown])
    for left, right, symmetry in _candidates(hashes):
        pixels = _turned(_unit(thumbnails[shown[right]]), symmetry)
        alike = np.einsum("nij,nij->n", _unit(thumbnails[shown[left]]), pixels) >= MIN_CORRELATION
        pairs += zip(first[shown[left[alike]]], first[shown[right[alike]]], strict=True)
    return pairs


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """Without their mean and of length 1, so that a product is a correlation."""
    centred = thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return centred / np.linalg.norm(centred, axis=(1, 2), keepdims=True)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Low frequencies of each unit thumbnail: float32 (photos, 12, 12)."""
    parts = [
        dctn(_unit(thumbnails[start : start + BLOCK]), axes=(1, 2), norm="ortho")[:, :HASH_SIDE, :HASH_SIDE]
        for start in range(0, len(thumbnails), BLOCK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, HASH_SIDE, HASH_SIDE), np.float32)


def _turned(stack: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    transposed, rows, columns = symmetry
    return (stack.transpose(0, 2, 1) if transposed else stack)[:, ::rows, ::columns]


def _turned_hashes(hashes: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    # To mirror a photo is to change the sign of the odd frequencies of its cosine transform.
    transposed, rows, columns = symmetry
    signs = np.outer(rows ** np.arange(HASH_SIDE), columns ** np.arange(HASH_SIDE)).astype(np.float32)
    return (hashes.transpose(0, 2, 1) if transposed else hashes) * signs


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]]:
    """Pairs that may correlate enough, block by block.

    What two unit thumbnails can have in common beyond their low frequencies is at most the product of what is left of
    each (Cauchy-Schwarz), so that no pair above the threshold is missed.
    """
    count = len(hashes)
    left_over = np.sqrt(np.clip(1 - np.square(hashes).sum(axis=(1, 2)), 0, None))[:, None]
    rows = np.hstack([hashes.reshape(count, HASH_SIDE**2), left_over])
    for symmetry in SYMMETRIES:
        columns = np.hstack([_turned_hashes(hashes, symmetry).reshape(count, HASH_SIDE**2), left_over])
        for top in range(0, count, BLOCK):
            for start in range(top, count, BLOCK):
                bound = rows[top : top + BLOCK] @ columns[start : start + BLOCK].T
                left, right = np.nonzero(bound >= MIN_CORRELATION - 1e-4)
                left, right = left + top, right + start
                below = left < right
                for part in range(0, int(below.sum()), BLOCK):
                    chosen = slice(part, part + BLOCK)
                    yield left[below][chosen], right[below][chosen], symmetry
