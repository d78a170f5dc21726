"""Sidecars: what others wrote stays, what we wrote goes and comes, and nothing else changes."""

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import DataError
from diptych.judge import sidecars
from diptych.judge.sidecars import merged, read_subjects, sidecar_path, write_sidecar

DOG = [("animal",), ("animal", "dog")]

OTHER = b"""<?xml version="1.0" encoding="UTF-8"?>
<!-- written by another program -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <r:Description r:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/" xmlns:d="http://purl.org/dc/elements/1.1/"
    xmp:Rating="4" darktable:xmp_version="5">
   <darktable:history><r:Seq><r:li darktable:operation="exposure" darktable:params="gz04&amp;"/>
   </r:Seq></darktable:history>
   <d:subject>
    <r:Bag>
     <r:li>holiday</r:li>
     <r:li>dog</r:li>
    </r:Bag>
   </d:subject>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
"""


def test_a_new_sidecar(tmp_path):
    path = tmp_path / "a.jpg.xmp"
    assert write_sidecar(path, DOG)
    assert read_subjects(path.read_bytes()) == (["animal", "dog"], ["animal", "animal|dog"])
    assert path.read_text("utf-8").startswith("<?xpacket begin=")


def test_no_tags_make_no_sidecar(tmp_path):
    assert not write_sidecar(tmp_path / "a.xmp", [])
    assert not list(tmp_path.iterdir())


def test_the_same_again_writes_nothing(tmp_path):
    path = tmp_path / "a.xmp"
    write_sidecar(path, DOG)
    os.utime(path, ns=(1, 1))
    assert not write_sidecar(path, DOG)
    assert path.stat().st_mtime_ns == 1


def test_what_another_program_wrote_stays():
    after = merged(OTHER, DOG)
    for kept in (
        *(b"written by another program", b'x:xmptk="XMP Core 4.4.0-Exiv2"', b'xmp:Rating="4"'),
        *(b'darktable:params="gz04&amp;"', b"<d:subject>", b"<r:li>holiday</r:li>"),
    ):
        assert kept in after
    assert after.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
    assert read_subjects(after) == (["holiday", "dog", "animal"], ["animal", "animal|dog"])
    assert merged(after, DOG) == after


def test_only_our_own_words_go_again():
    after = merged(merged(OTHER, DOG), [("grass",)])
    assert read_subjects(after) == (["holiday", "dog", "grass"], ["grass"])
    nothing = merged(after, [])
    assert read_subjects(nothing) == (["holiday", "dog"], [])
    assert b"diptych" not in nothing.replace(b"urn:diptych", b"")


def test_a_word_that_a_person_adds_later_is_theirs():
    ours = merged(None, [("dog",)])
    edited = ours.replace(b"<rdf:li>dog</rdf:li>", b"<rdf:li>dog</rdf:li><rdf:li>mine</rdf:li>", 1)
    assert read_subjects(merged(edited, []))[0] == ["mine"]


def test_names_that_xml_knows():
    name = '<b> & "it\'s" 日本'
    after = merged(None, [(name,)])
    assert read_subjects(after) == ([name], [name])


def test_an_xmp_without_a_description():
    empty = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    assert read_subjects(merged(empty, DOG))[0] == ["animal", "dog"]


def test_utf_16_is_read():
    data = OTHER.decode().replace('encoding="UTF-8"', 'encoding="UTF-16"').encode("utf-16")
    assert read_subjects(merged(data, [("grass",)]))[0] == ["holiday", "dog", "grass"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no XML"),
        (b"not xml", "no XML"),
        (OTHER[:400], "no XML"),
        (b"<html/>", "no rdf:RDF"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]>' + OTHER[40:], "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        (OTHER.replace(b'xmp:Rating="4"', b'd:subject="dog"'), "attribute"),
        (
            OTHER.replace(b"<r:Bag>", b"").replace(b"</r:Bag>", b""),
            "not a list",
        ),
    ],
)
def test_what_is_no_xmp_is_left_alone(tmp_path, data, told):
    path = tmp_path / "a.xmp"
    path.write_bytes(data)
    with pytest.raises(DataError, match=told) as error:
        write_sidecar(path, [("grass",)])
    assert str(path) in str(error.value)
    assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a.xmp"]


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecars, "MOST_BYTES", 10)
    path = tmp_path / "a.xmp"
    path.write_bytes(OTHER)
    with pytest.raises(DataError, match="too large"):
        write_sidecar(path, DOG)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.xmp").write_bytes(OTHER)
    (tmp_path / "a.xmp").symlink_to(tmp_path / "real.xmp")
    write_sidecar(tmp_path / "a.xmp", DOG)
    assert (tmp_path / "a.xmp").is_symlink()
    assert b"animal" in (tmp_path / "real.xmp").read_bytes()


def test_names_of_sidecars(tmp_path):
    photo = tmp_path / "a.b.jpg"
    assert sidecar_path(photo, "full").name == "a.b.jpg.xmp"
    assert sidecar_path(photo, "stem").name == "a.b.xmp"


WORD = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6).filter(
    lambda word: "|" not in word
)


@given(st.lists(WORD, max_size=4), st.lists(WORD, max_size=4))
def test_any_words_come_back_and_go(first, second):
    one = merged(OTHER, [(word,) for word in first])
    two = merged(one, [(word,) for word in second])
    assert set(read_subjects(two)[0]) == {"holiday", "dog", *second}
    assert read_subjects(two)[1] == list(dict.fromkeys(read_subjects(two)[1]))
    assert set(read_subjects(merged(two, []))[0]) == {"holiday", "dog"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_what_was_written(tmp_path):
    for name, before in (("new.xmp", None), ("other.xmp", OTHER)):
        path = tmp_path / name
        path.write_bytes(merged(before, DOG))

        def ask(*what, path=path):
            done = subprocess.run(
                ["exiftool", "-s3", "-sep", ";", *what, str(path)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            return done.stdout.strip()

        assert set(ask("-Subject").split(";")) >= {"animal", "dog"}
        assert ask("-HierarchicalSubject") == "animal;animal|dog"
        assert ask("-validate") == "OK"
        if before is not None:
            assert ask("-Rating") == "4"
