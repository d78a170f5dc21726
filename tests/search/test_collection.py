"""Questions to a collection: exact, folded, filtered; the old model answers; derived files heal."""

import shutil

import numpy as np
import pytest
from pictures import picture
from PIL import Image, ImageEnhance

from diptych.errors import CollectionError, ConfigError
from diptych.search.approximate import Approximate
from diptych.search.collection import Collection
from diptych.search.filters import Filters
from diptych.search.indexing import update
from diptych.search.matrix import Matrix
from diptych.search.query import Term
from diptych.search.records import Root
from diptych.search.rows import Rows, build_approximate, derived_folder, refresh


@pytest.fixture
def photos(index, store, encoder):
    """The collection after `index`; close it with the test."""
    made = []

    def photos(enc=encoder, **rest):
        collection = Collection(store.folder, encoder=enc, **rest)
        made.append(collection)
        return collection

    yield photos
    for collection in made:
        collection.store.close()


def best(vectors, asked, number):
    """Paths by float64 brute force; ties by id are not expected."""
    scores = {path: float(v.astype(np.float64) @ asked) for path, v in vectors.items()}
    return sorted(scores, key=lambda path: -scores[path])[:number], scores


def test_equal_to_brute_force_over_the_store(index, photos, library, vectors, encoder):
    for i in range(100, 160):
        picture(i).save(library / f"{i}.png")
    index()
    asked = encoder.encode_text("a dog")[0]
    paths, scores = best(vectors(), asked, 20)
    answer = photos().search("a dog", top=20, strictness=None, fold=False)
    assert [hit.path for hit in answer.hits] == paths
    np.testing.assert_allclose(
        [h.score for h in answer.hits], [scores[p] for p in paths], atol=1e-6
    )
    assert (answer.num_searched, answer.threshold) == (68, -1.0)


@pytest.mark.parametrize("forced", [False, True])
def test_now_whatever_was_derived_before(index, photos, store, library, vectors, encoder, forced):
    """The matrix is of an older state: new rows are found, gone rows are not."""
    outcome, _ = index()
    with store.writer():
        refresh(store, outcome.model, force=True)
    collection = photos()
    assert len(collection.search("x", top=50, strictness=None, fold=False).hits) == 8
    (library / "0.png").unlink()
    picture(70).save(library / "new.png")
    index()
    if forced:
        with store.writer():
            refresh(store, outcome.model, force=True)
    found = collection.search("x", top=50, strictness=None, fold=False).hits
    asked = encoder.encode_text("x")[0]
    assert [hit.path for hit in found] == best(vectors(), asked, 50)[0]
    assert str(library / "new.png") in [hit.path for hit in found]


def test_a_damaged_matrix_answers_from_the_store(index, photos, store, caplog):
    outcome, _ = index()
    with store.writer():
        refresh(store, outcome.model, force=True)
    for file in (store.folder / "derived").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    assert len(photos().search("x", top=50, strictness=None, fold=False).hits) == 8
    assert "answers instead" in caplog.text
    with store.writer():
        assert refresh(store, outcome.model, force=True)
    caplog.clear()
    assert Rows(store, outcome.model).num_vectors == 8
    assert not caplog.text


def test_near_duplicates_stand_behind_the_best(index, photos, library):
    original = picture(80, (400, 300))
    original.save(library / "original.png")
    brighter = ImageEnhance.Brightness(original.resize((200, 150))).enhance(0.8)
    brighter.save(library / "small.jpg", quality=60)
    shutil.copy(library / "original.png", library / "same.png")
    index()
    term = [Term(library / "original.png", 1.0, is_image=True)]
    first = photos().search(term, top=1).hits[0]
    assert first.path == str(library / "original.png")
    assert first.copies == [str(library / "same.png")]
    assert first.similar == [str(library / "small.jpg")]
    unfolded = photos().search(term, top=50, fold=False).hits
    assert str(library / "small.jpg") in [hit.path for hit in unfolded]


def test_a_tiny_collection_shows_everything(index, photos):
    index()
    answer = photos().search("a dog", top=50, fold=False)
    assert (len(answer.hits), answer.threshold) == (8, -1.0)  # too few to say what is usual


def test_filters_come_before_the_best_are_chosen(index, photos, library):
    """clip-retrieval filters what it found, and fewer than asked come back."""
    index()
    filters = Filters(folder=str(library / "holiday"))
    answer = photos().search("x", top=4, strictness=None, fold=False, filters=filters)
    assert sorted(h.path for h in answer.hits) == [
        str(library / "holiday" / f"{i}.png") for i in range(4, 8)
    ]
    assert answer.num_searched == 4


def test_the_model_of_the_vectors_and_no_other(index, photos, store, encoder, other_encoder):
    index()
    with pytest.raises(CollectionError, match="has no vectors of"):
        photos(other_encoder)
    index(enc=other_encoder)
    a = photos().search("x", top=3, strictness=None).hits
    b = photos(other_encoder).search("x", top=3, strictness=None).hits
    assert {h.vector_id for h in a}.isdisjoint(h.vector_id for h in b)


def test_searching_while_the_model_changes(index, photos, store, encoder, other_encoder, library):
    """Every answer is of one model, whole."""
    index()
    collection, seen = photos(), []

    def look(done):
        seen.append(len(collection.search("x", top=50, strictness=None, fold=False).hits))

    other_encoder.batch_size, before = 2, other_encoder.batch_size
    try:
        with store.writer() as writer:
            update(store, writer, other_encoder, [Root(path=str(library))], options={}, done=look)
    finally:
        other_encoder.batch_size = before
    assert len(seen) >= 4
    assert set(seen) == {8}


def test_the_vector_of_a_known_picture_is_not_computed(index, photos, library, monkeypatch):
    index()
    collection = photos()
    path = library / "0.png"
    expected = collection.encoder.encode_image(path)[0]
    with monkeypatch.context() as patch:
        patch.setattr(type(collection.encoder), "encode_image", None)
        np.testing.assert_allclose(collection.vector_of(path), expected, atol=1e-3)
    picture(99).save(path)  # changed since
    now = collection.encoder.encode_image(path)[0]
    np.testing.assert_array_equal(collection.vector_of(path), now)


def test_wrong_questions(index, photos, store):
    with pytest.raises(CollectionError, match="nothing is indexed"):
        photos()
    index()
    with pytest.raises(ConfigError, match="top must be at least 1"):
        photos().search("x", top=0)


def test_a_video_is_found_at_its_moment(index, photos, library, encoder):
    av = pytest.importorskip("av")
    frames = [picture(200 + i, (96, 64)) for i in range(3)]
    with av.open(str(library / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = 1
        for frame in frames:
            for _ in range(10):
                for packet in stream.encode(av.VideoFrame.from_image(frame)):
                    film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)
    _, told = index()
    assert told[str(library / "film.mp4")].state == "added"
    answer = photos().search([Term(frames[1], 1.0, is_image=True)], top=1)
    (hit,) = answer.hits
    assert hit.path == str(library / "film.mp4")
    assert hit.moment == pytest.approx(1.0, abs=0.11)
    assert index()[1] == {}  # and it is known the next time
    Image.open(library / "0.png").verify()


def test_an_approximate_index_grows_with_the_collection(index, photos, store, library, encoder):
    pytest.importorskip("faiss")
    for i in range(100, 200):
        picture(i).save(library / f"{i}.png")
    outcome, _ = index()
    with store.writer():
        facts = build_approximate(store, encoder, recall=0.9)
    assert facts["num_vectors"] == 108
    assert facts["recall_target"] == 0.9
    exact = photos().search("x", top=5, strictness=None, fold=False, exact=True)
    near = photos().search("x", top=5, strictness=None, fold=False)
    assert {h.score for h in near.hits} <= {
        h.score for h in photos().search("x", top=108, strictness=None, fold=False, exact=True).hits
    }
    assert near.hits[0].score <= exact.hits[0].score
    picture(300).save(library / "later.png")
    index()
    with store.writer():
        assert refresh(store, outcome.model, force=True)
    folder = derived_folder(store, outcome.model)
    matrix = Matrix.open(folder / "matrix")
    assert Approximate.open(folder / "approximate", matrix).facts["num_vectors"] == 109


def test_an_approximate_index_of_rows_that_are_gone_is_left_aside(
    index, photos, store, library, encoder, caplog
):
    pytest.importorskip("faiss")
    index()
    with store.writer():
        build_approximate(store, encoder, recall=0.9)
    (library / "0.png").unlink()
    outcome, _ = index()
    with store.writer():
        refresh(store, outcome.model, force=True)
    assert "Type: diptych index --approximate" in caplog.text
    answer = photos().search("x", top=50, strictness=None, fold=False)
    assert len(answer.hits) == 7


def test_the_file_that_passes_the_filter_stands_for_its_copies(index, photos, library):
    shutil.copy(library / "0.png", library / "holiday" / "again.png")
    index()
    inside = str(library / "holiday")
    answer = photos().search("a", top=20, filters=Filters(folder=inside), strictness=None)
    assert all(hit.path.startswith(inside) for hit in answer.hits)
    (hit,) = [hit for hit in answer.hits if hit.copies]
    assert hit.path == str(library / "holiday" / "again.png")
    assert hit.copies == [str(library / "0.png")]


def test_a_model_by_the_beginning_of_its_fingerprint(index, photos, store, encoder):
    index()
    with Collection(store.folder, model=encoder.fingerprint[:16]) as found:
        assert found.model.fingerprint == encoder.fingerprint


def test_a_model_that_is_gone_says_whose_vectors_it_made(index, store):
    index()  # by the name "tiny", which nobody knows
    said = pytest.raises(CollectionError, match=r"It has made the vectors of .*--model NAME")
    with Collection(store.folder) as found, said:
        found.search("a dog")


def test_a_picture_by_a_path_with_dots_is_not_encoded_again(index, photos, library, encoder):
    index()
    found = photos()
    found._encoder = None
    path = library / "holiday" / ".." / "0.png"
    kept = found.vector_of(str(path))
    assert kept @ encoder.encode_image(str(path))[0] == pytest.approx(1, abs=1e-3)


def test_an_empty_query(index, photos):
    index()
    with pytest.raises(ConfigError, match="the query is empty"):
        photos().search(" ")
