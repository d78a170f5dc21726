"""Near-duplicates: pairs against a product in float64, groups by their definition, pHash's bits."""

import tracemalloc

import numpy as np
import pytest
import torch

from diptych.config import PreprocessConfig
from diptych.engine import neighbours as module
from diptych.engine.neighbours import (
    between,
    hamming,
    leaders,
    neighbours,
    perceptual_hash,
)
from diptych.errors import ConfigError
from diptych.preprocess import Preprocess


def clustered(n=400, e=24, seed=0, dtype=np.float32):
    """Rows around 30 centres: cosines of all sizes up to 1."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, e))
    rows = centres[rng.integers(0, 30, n)] + rng.random((n, 1)) * rng.standard_normal((n, e)) * 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def exact(vectors, threshold):
    """{(i, j): cosine} by float64 alone."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = (rows @ rows.T) / norms[:, None] / norms
    i, j = np.nonzero(np.triu(cosines >= threshold, 1))
    return dict(zip(zip(i.tolist(), j.tolist(), strict=True), cosines[i, j], strict=True))


def listed(pairs):
    return {
        (i, j): c
        for block in pairs
        for i, j, c in zip(*(part.tolist() for part in block), strict=True)
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("threshold", [0.05, 0.7, 0.95])
@pytest.mark.parametrize("tile", [7, 64, 4096])
def test_pairs_are_those_of_float64(monkeypatch, dtype, threshold, tile):
    monkeypatch.setattr(module, "_TILE", tile)
    monkeypatch.setattr(module, "_PAIRS", 50)
    vectors = clustered(200, dtype=dtype)
    found, expected = listed(neighbours(vectors, threshold=threshold)), exact(vectors, threshold)
    assert found.keys() == expected.keys()
    assert found and all(abs(found[p] - expected[p]) < 1e-6 for p in found)


@pytest.mark.parametrize("threshold", [0.05, 0.9])
@pytest.mark.parametrize("tile", [7, 4096])
def test_pairs_between_two_sets_are_those_within_both(monkeypatch, threshold, tile):
    monkeypatch.setattr(module, "_TILE", tile)
    monkeypatch.setattr(module, "_PAIRS", 50)
    vectors = clustered(150)
    vectors[3] = 0
    found = listed(between(vectors[:60], vectors[60:], threshold=threshold))
    expected = {(i, j - 60): c for (i, j), c in exact(vectors, threshold).items() if i < 60 <= j}
    assert found == pytest.approx(expected, abs=1e-7)
    assert len(found) > 20
    with pytest.raises(ConfigError, match="one space"):
        list(between(vectors, vectors[:, 1:], threshold=0.5))


def test_a_threshold_between_two_cosines_that_float32_cannot_tell_apart():
    rng = np.random.default_rng(1)
    base = rng.standard_normal(512)
    rows = base + 3e-4 * rng.standard_normal((60, 512))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    cosines = sorted(exact(vectors, 0.5).values())
    assert cosines[-1] - cosines[0] < 1e-7  # below a step of float32 at 1
    threshold = cosines[len(cosines) // 2]
    near = listed(neighbours(vectors, threshold=threshold)).keys()
    sure = {p for p, c in exact(vectors, 0.5).items() if abs(c - threshold) > 1e-14}
    assert near & sure == exact(vectors, threshold).keys() & sure
    assert len(near) > 500


def test_rows_that_are_no_vectors_have_no_neighbour():
    vectors = np.ones((6, 8), np.float32)
    vectors[1], vectors[4] = np.nan, 0
    assert set(listed(neighbours(vectors, threshold=0.9))) == {
        (0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5),
    }  # fmt: skip
    assert leaders(vectors, threshold=0.9) == [[0, 2, 3, 5]]


def test_progress_and_an_empty_collection(monkeypatch):
    monkeypatch.setattr(module, "_TILE", 64)
    for function in (neighbours, leaders):
        told = []
        list(function(clustered(150), threshold=0.9, progress=told.append))
        assert told == [64, 128, 150]
        assert list(function(np.empty((0, 8), np.float32), threshold=0.9)) == []


def greedy(vectors, threshold, order, far=lambda i, j: False):
    """Groups word by word as the docstring says, in float64."""
    near = exact(vectors, threshold).keys()
    free, found = set(order), []
    for i in order:
        if i not in free:
            continue
        mine = [j for j in order if j in free and j != i]
        mine = [j for j in mine if (min(i, j), max(i, j)) in near and not far(i, j)]
        if mine:
            found.append([i, *mine])
        free -= {i, *mine}
    return found


@pytest.mark.parametrize("tile", [5, 32, 4096])
@pytest.mark.parametrize("threshold", [0.6, 0.85])
def test_leaders_by_their_definition(monkeypatch, tile, threshold):
    monkeypatch.setattr(module, "_TILE", tile)
    vectors = clustered(150)
    order = np.random.default_rng(2).permutation(150)
    expected = greedy(vectors, threshold, order.tolist())
    assert leaders(vectors, threshold=threshold, order=order) == expected
    assert len(expected) > 5
    hashes = np.random.default_rng(3).integers(0, 8, 150).astype(np.uint64)
    found = leaders(vectors, threshold=threshold, order=order, hashes=hashes, distance=1)
    assert found == greedy(
        vectors, threshold, order.tolist(), lambda i, j: int(hashes[i] ^ hashes[j]).bit_count() > 1
    )
    assert found != expected


def test_a_chain_does_not_join_its_ends():
    """Steps of 20 degrees: neighbours are near (0.94), the ends are opposite."""
    angle = np.deg2rad(20 * np.arange(9))
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    found = leaders(vectors, threshold=0.9)
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert leaders(vectors, threshold=0.9, order=[4, *range(4), *range(5, 9)])[0] == [4, 3, 5]


def test_equal_rows_take_little_memory():
    """12,000 equal rows are 72 million pairs, 1.4 GB; the rows alone are 0.4 MB."""
    vectors = np.ones((12_000, 8), np.float32)
    tracemalloc.start()
    found = leaders(vectors)
    groups_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    first = next(iter(neighbours(vectors, threshold=0.9)))
    pairs_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert len(found[0]) == 12_000
    assert len(first.i) <= module._PAIRS
    assert max(groups_peak, pairs_peak) < 250e6


def test_what_does_not_fit():
    vectors = clustered(20)
    for threshold in (0, -0.5, 1.1):
        with pytest.raises(ConfigError, match="threshold must be a cosine above 0"):
            next(neighbours(vectors, threshold=threshold))
    with pytest.raises(ConfigError, match="must be rows"):
        leaders(vectors[0])
    with pytest.raises(ConfigError, match="3 hashes for 20 vectors"):
        leaders(vectors, hashes=np.zeros(3, np.uint64))
    with pytest.raises(ConfigError, match="each position from 0 to 19 once"):
        leaders(vectors, order=[0] * 20)


# --- hashes ---------------------------------------------------------------------------------------

# imagehash.phash (ImageHash 4.3.2) of `grey(seed)`, in its own hexadecimal writing
IMAGEHASH = {
    0: "aded336738c0c398",
    1: "f647a368b6e34c82",
    2: "dc298dcd1c8be332",
    3: "965c0bdc890f7627",
    4: "e9bc49cdfc410732",
    5: "fc6349d29c8c632d",
    6: "b2c36db8a3c75c44",
    7: "c8fc4dc343bc9c38",
}


def grey(seed):
    """A picture of 32 x 32 grey levels: smooth blots and some noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 1, 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")[0, 0].numpy()
    return (220 * smooth + 30 * rng.random((32, 32))).astype(np.uint8)


def as_pixels(picture):
    return torch.from_numpy(np.repeat(picture[None, None].astype(np.float32), 3, axis=1))


@pytest.mark.parametrize("seed", IMAGEHASH)
def test_the_bits_of_imagehash(seed):
    assert f"{perceptual_hash(as_pixels(grey(seed)))[0]:016x}" == IMAGEHASH[seed]


def test_hashes_of_a_batch_do_not_depend_on_it():
    pixels = torch.cat([as_pixels(grey(seed)) for seed in range(9)])
    together = perceptual_hash(pixels)
    assert together.dtype == np.uint64
    assert together.shape == (9,)
    assert together.tolist() == [perceptual_hash(p[None])[0] for p in pixels]
    assert perceptual_hash(pixels[:0]).shape == (0,)


def test_a_factor_a_summand_and_one_colour():
    pixels = as_pixels(grey(3))
    plain = perceptual_hash(pixels)
    shift = torch.tensor([3.0, -70.0, 11.0]).view(1, 3, 1, 1)
    assert perceptual_hash(0.013 * pixels - 2).tolist() == plain.tolist()
    assert perceptual_hash(pixels + shift).tolist() == plain.tolist()
    for value in (0.0, 0.7, -1.9, 255.0):
        assert perceptual_hash(torch.full((2, 3, 224, 224), value)).tolist() == [1 << 63] * 2


def test_copies_are_near_and_strangers_far(photos):
    """Pictures of noise, 60 x 50: normalised as models do; half the size, and as JPEG."""
    import io

    from PIL import Image

    prepare = Preprocess(PreprocessConfig(size=(224, 224)))

    def hashed(images):
        return perceptual_hash(torch.stack([prepare(image) for image in images]))

    def stored(image):
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=60)
        return Image.open(file)

    images = [Image.open(path) for path in sorted(photos.rglob("*.png"))]
    plain = hashed(images)
    half = hashed(
        [i.resize((i.width // 2, i.height // 2), Image.Resampling.BICUBIC) for i in images]
    )
    assert hamming(plain, half).max() <= module.DUPLICATE_HAMMING
    assert hamming(plain, hashed([stored(i) for i in images])).max() <= module.DUPLICATE_HAMMING
    apart = hamming(plain[:, None], plain)[~np.eye(len(plain), dtype=bool)]
    assert apart.min() > module.DUPLICATE_HAMMING
    assert 28 < apart.mean() < 35


def test_orientation_in_exif_does_not_matter():
    import io

    from PIL import Image

    picture = Image.fromarray(grey(5)).resize((200, 120)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, exif=exif)
    prepare = Preprocess(PreprocessConfig(size=(64, 64)))
    hashes = perceptual_hash(torch.stack([prepare(picture), prepare(Image.open(file))]))
    assert hamming(hashes[0], hashes[1]) <= 2


def test_hamming():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 1 << 63, (2, 50), dtype=np.uint64)
    expected = [(x ^ y).bit_count() for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert hamming(a, b).tolist() == expected
    assert hamming(a[:, None], b).shape == (50, 50)
    assert hamming(a, b[0]).tolist() == [(x ^ int(b[0])).bit_count() for x in a.tolist()]
    assert hamming(np.uint64(0), np.uint64((1 << 64) - 1)) == 64
