"""The known photos are compared in blocks, and by that nothing changes but the memory."""

import tracemalloc

import numpy as np

from agritransfer.evaluation.novelty import learn_known, strangeness


def drawn(count: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(count, width)).astype(np.float32), random.uniform(size=count).astype(np.float32)


def test_distances_in_blocks_are_those_of_the_whole_matrix(monkeypatch):
    features, confidence = drawn(100)
    groups = [f"plant {i // 3}" if i < 60 else "" for i in range(100)]
    monkeypatch.setattr("agritransfer.evaluation.novelty.BLOCK", 7)
    known, strange = learn_known(features, confidence, groups)
    similarity = known.features @ known.features.T
    names = np.array([group or f"{i}" for i, group in enumerate(groups)])
    similarity[names[:, None] == names] = -1
    assert np.allclose(known.distance, np.sort(1 - similarity.max(axis=1)), atol=1e-6)
    others = drawn(150)[0][100:]
    in_blocks = strangeness(others, confidence[:50], known)
    monkeypatch.setattr("agritransfer.evaluation.novelty.BLOCK", 1000)
    assert np.allclose(in_blocks, strangeness(others, confidence[:50], known))
    assert np.allclose(strange, learn_known(features, confidence, groups)[1])
    assert len(set(strange.round(6))) > 50


def test_a_photo_whose_group_is_all_there_is_has_nothing_to_be_like():
    features, confidence = drawn(30)
    assert learn_known(features, confidence, ["one"] * 30)[0].distance.tolist() == [2.0] * 30


def test_the_memory_of_known_photos_is_far_below_that_of_all_pairs(monkeypatch):
    monkeypatch.setattr("agritransfer.evaluation.novelty.BLOCK", 512)
    features, confidence = drawn(6000)
    tracemalloc.start()
    known, _ = learn_known(features, confidence, [""] * 6000)
    strangeness(features, confidence, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The matrix of all pairs would take 144 MB.
    assert peak < 20e6, peak
