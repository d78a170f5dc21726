"""Near-duplicates behind the best of them, against the definition, one pair at a time."""

import numpy as np

from diptych.engine.neighbours import DUPLICATE_COSINE, DUPLICATE_HAMMING
from diptych.search.fold import Candidate, Hit, fold


def by_definition(candidates, vectors):
    """{path of a hit: paths folded into it}, in order; Python's integers and math alone."""
    hits = {}
    for i, (_, value, hit) in enumerate(candidates):
        for j in hits:
            other = candidates[j].hash
            if value is None or other is None:
                continue
            if (value ^ other).bit_count() > DUPLICATE_HAMMING:
                continue
            if sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) >= DUPLICATE_COSINE:
                hits[j].append(hit.path)
                break
        else:
            hits[i] = []
    return {candidates[i].hit.path: folded for i, folded in hits.items()}


def test_as_defined_also_beside_pictures_without_a_hash():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, 150)
    centres = rng.standard_normal((12, 16))
    vectors = centres[groups] + 0.25 * rng.standard_normal((150, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    bases = rng.integers(0, 1 << 63, 12).tolist()
    candidates = []
    for i, group in enumerate(groups.tolist()):
        flips = sum(1 << int(bit) for bit in rng.choice(64, 4, replace=False))
        value = None if rng.random() < 0.3 else bases[group] ^ flips  # None: imported
        candidates.append(Candidate(i, value, Hit(path=str(i), score=0.0)))
    expected = by_definition(candidates, vectors.tolist())
    found = {hit.path: hit.similar for hit in fold(candidates, vectors)}
    assert found == expected
    assert len(found) < 120 and max(map(len, found.values())) > 3
