"""Which photos are the same?

Copies are found by their appearance, also after re-encoding, resizing, mirroring and quarter turns. Crops of a photo
and second shots of the same leaf are not found: give those a group.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

SIDE = 48
# On rice, cardamom and apple photos, copies correlate by more than 0.985 and different leaves by at most 0.976.
MIN_CORRELATION = 0.98
# A thumbnail whose grey levels deviate less than this (standard deviation) is blank, with nothing to compare.
MIN_SPREAD = 2.0
# The low frequencies of a thumbnail, which a perceptual hash would round to bits, find the candidates.
HASH_SIDE = 12
# The first rows of the orthonormal discrete cosine transform (DCT-II).
COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(HASH_SIDE), np.arange(SIDE) + 0.5)) * np.sqrt(2 / SIDE)
COSINES[0] /= np.sqrt(2)
# Transposed or not, upside down or not, left to right or not: the eight symmetries of a square.
SYMMETRIES = [(transposed, rows, columns) for transposed in (0, 1) for rows in (1, -1) for columns in (1, -1)]
# Photos that are compared at once, so that memory does not grow with the square of their number.
BLOCK = 1024
# Near pairs that are kept: among frames of one video, almost every pair is near.
MOST_PAIRS = 10_000


def thumbnail(picture: Image.Image) -> np.ndarray:
    """The photo in grey levels, resized to a square: uint8 (48, 48)."""
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def find_duplicates(digests: Sequence[str], thumbnails: np.ndarray) -> list[list[int]]:
    """Groups of indices whose photos have equal bytes or look the same in any of the eight symmetries.

    Two photos look the same if their thumbnails, uint8 (photos, 48, 48), correlate by at least 0.98.
    """
    if not digests:
        return []
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    pairs = [(first[digest], place) for place, digest in enumerate(digests) if first[digest] != place]
    return connect(len(digests), [*pairs, *_pairs_alike(thumbnails)])


def near_pairs(
    features: np.ndarray, min_similarity: float, groups: Sequence[str]
) -> tuple[list[tuple[int, int, float]], int]:
    """Pairs of indices with at least this cosine similarity around the mean of the features (photos, width).

    Pairs within a group are left out. Returns the most similar ones, at most 10,000, and how many there are.
    """
    centred = features.astype(np.float32) - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    group_of = np.unique(np.asarray(groups), return_inverse=True)[1]
    left, right, similarity, found = (*np.zeros((2, 0), int), np.zeros(0, np.float32), 0)
    for top in range(0, len(centred), BLOCK):
        for start in range(top, len(centred), BLOCK):
            block = centred[top : top + BLOCK] @ centred[start : start + BLOCK].T
            a, b = np.nonzero(block >= min_similarity)
            kept = (a + top < b + start) & (group_of[a + top] != group_of[b + start])
            a, b = a[kept], b[kept]
            found += len(a)
            similarity = np.append(similarity, block[a, b])
            left, right = np.append(left, a + top), np.append(right, b + start)
            if len(left) > MOST_PAIRS:
                best = np.argsort(-similarity, kind="stable")[:MOST_PAIRS]
                left, right, similarity = left[best], right[best], similarity[best]
    order = np.argsort(-similarity, kind="stable")
    pairs = zip(left[order].tolist(), right[order].tolist(), similarity[order].tolist(), strict=True)
    return list(pairs), found


def connect(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected components, of two or more indices each, of a graph with these pairs as its edges."""
    if not pairs:
        return []
    # Imported here because most datasets have no copies, and a check of those needs no scipy.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = tuple(np.array(pairs).T)
    _, member_of = connected_components(coo_array((np.ones(len(pairs)), edges), shape=(count, count)))
    order = np.argsort(member_of, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(member_of[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _pairs_alike(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    # Equal thumbnails are compared once, since a thousand copies of a photo would be half a million pairs.
    unique, first, which = np.unique(
        thumbnails.reshape(len(thumbnails), -1), axis=0, return_index=True, return_inverse=True
    )
    thumbnails = unique.reshape(-1, SIDE, SIDE)
    is_comparable = thumbnails.std(axis=(1, 2)) >= MIN_SPREAD
    pairs = [
        (first[kind], place) for place, kind in enumerate(which.ravel()) if first[kind] != place and is_comparable[kind]
    ]
    shown = np.flatnonzero(is_comparable)
    hashes = _hashes(thumbnails[shown])
    for left, right, symmetry in _candidates(hashes):
        pixels = _turned(_unit(thumbnails[shown[right]]), symmetry)
        alike = np.einsum("nij,nij->n", _unit(thumbnails[shown[left]]), pixels) >= MIN_CORRELATION
        pairs += zip(first[shown[left[alike]]], first[shown[right[alike]]], strict=True)
    return pairs


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """Centred and of unit length, so that the product of two is their correlation."""
    centred = thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return centred / np.linalg.norm(centred, axis=(1, 2), keepdims=True)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Low frequencies of each unit thumbnail: float32 (photos, 12, 12)."""
    parts = [
        COSINES @ _unit(thumbnails[start : start + BLOCK]) @ COSINES.T for start in range(0, len(thumbnails), BLOCK)
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, HASH_SIDE, HASH_SIDE), np.float32)


def _turned(stack: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    transposed, rows, columns = symmetry
    return (stack.transpose(0, 2, 1) if transposed else stack)[:, ::rows, ::columns]


def _turned_hashes(hashes: np.ndarray, symmetry: tuple[int, int, int]) -> np.ndarray:
    # Mirroring a photo changes the sign of the odd frequencies of its cosine transform.
    transposed, rows, columns = symmetry
    signs = np.outer(rows ** np.arange(HASH_SIDE), columns ** np.arange(HASH_SIDE)).astype(np.float32)
    return (hashes.transpose(0, 2, 1) if transposed else hashes) * signs


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int, int]]]:
    """Pairs that may correlate enough, block by block.

    By the Cauchy-Schwarz inequality, the high frequencies of two unit thumbnails add at most the product of their norms
    to the correlation, so no pair above the threshold is missed.
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
