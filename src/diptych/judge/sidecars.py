"""Tags in XMP sidecars: beside the photograph, never in it; what others wrote there stays.

A sidecar is an XML file (ISO 16684-1, XMP). Words go into `dc:subject`, and with their levels into
`lr:hierarchicalSubject` ("animal|dog"), which darktable, digiKam and Lightroom read.

- What was there is kept as it stands: names of spaces, comments, order, white space.
- The words that we added are listed in a bag of our own as well. A later run takes them out again
  where they hold no more, and touches no word that a person or another program wrote.
- The same tags again change not one byte, and the file is then not written.
- A document type, and with it every entity, is refused; so is a file beyond 16 MiB.
"""

from __future__ import annotations

import contextlib
import xml.parsers.expat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.dom import minidom

from diptych.data.lists import file_bytes
from diptych.errors import DataError
from diptych.zoo.atomic import atomic_write

__all__ = ["Naming", "merged", "read_subjects", "sidecar_path", "write_sidecar"]

Naming = Literal["full", "stem"]

MOST_BYTES = 2**24
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"
_OURS = "urn:diptych:xmp:1.0:"
_XMLNS = "http://www.w3.org/2000/xmlns/"
# (namespace, prefix where the file has none, name): the plain words, then those with levels
_PLAIN, _LEVELS = (_DC, "dc", "subject"), (_LR, "lr", "hierarchicalSubject")
_OUR_PLAIN, _OUR_LEVELS = (_OURS, "diptych", "subject"), (_OURS, "diptych", "hierarchicalSubject")

_EMPTY = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="">
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def sidecar_path(photo: Path, naming: Naming) -> Path:
    """`photo.jpg.xmp` ("full": darktable, digiKam) or `photo.xmp` ("stem": Lightroom)."""
    match naming:
        case "full":
            return photo.with_name(f"{photo.name}.xmp")
        case "stem":
            return photo.with_suffix(".xmp")


def write_sidecar(path: Path, paths: Sequence[tuple[str, ...]]) -> bool:
    """Make the sidecar say these tags, each a path of names from the top; whole or not at all.

    Returns:
        Whether anything changed.

    Raises:
        DataError: what is there cannot be read as XMP; it is left as it is.
        CheckpointError: the system refused.
    """
    with contextlib.suppress(OSError):
        path = path.resolve()  # a link is followed, not replaced
    before = None
    if path.exists():
        before, reason, detail = file_bytes(path, MOST_BYTES)
        if before is None:
            raise DataError(f"{path}: {reason} ({detail}). It was left as it is.")
    elif not paths:
        return False
    after = merged(before, paths, name=str(path))
    if after == before:
        return False
    atomic_write(path, lambda part: part.write_bytes(after))
    return True


def merged(before: bytes | None, paths: Sequence[tuple[str, ...]], *, name: str = "") -> bytes:
    """The bytes of a sidecar with these tags, where `before` stood.

    Raises:
        DataError: `before` is no XMP.
    """
    document = _parsed(_EMPTY.encode() if before is None else before, name)
    changed = before is None
    plain = [path[-1] for path in paths]
    levels = ["|".join(path) for path in paths]
    for theirs, ours, values in (
        (_PLAIN, _OUR_PLAIN, plain),
        (_LEVELS, _OUR_LEVELS, levels),
    ):
        changed |= _put(document, theirs, ours, list(dict.fromkeys(values)), name)
    if not changed:
        assert before is not None
        return before
    # minidom would write the declaration on its own; XMP sidecars need none, UTF-8 is the default
    head = b'<?xml version="1.0" encoding="UTF-8"?>\n' if _has_declaration(before) else b""
    body = "\n".join(node.toxml() for node in document.childNodes)
    return head + body.encode() + b"\n"


def read_subjects(data: bytes, *, name: str = "") -> tuple[list[str], list[str]]:
    """(`dc:subject`, `lr:hierarchicalSubject`) of a sidecar. Raises DataError."""
    document = _parsed(data, name)
    return _words(document, _PLAIN, name), _words(document, _LEVELS, name)


# --- reading ------------------------------------------------------------------------------------

_Property = tuple[str, str, str]


def _has_declaration(data: bytes | None) -> bool:
    return data is not None and data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<?xml ")


def _parsed(data: bytes, name: str) -> minidom.Document:
    def refuse(*_: object) -> None:
        raise DataError(
            f"{name}: holds a document type, which XMP does not have and which could name other "
            "files. It was left as it is."
        )

    data = data.strip()
    scout = xml.parsers.expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    try:
        scout.Parse(data, True)
        document = minidom.parseString(data)
    except (xml.parsers.expat.ExpatError, ValueError, LookupError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: is no XML ({error}), so no XMP either. It was left as it is. Mend it, or "
            "move it away."
        ) from error
    if not document.getElementsByTagNameNS(_RDF, "RDF"):
        raise DataError(f"{name}: is XML, but no XMP: it has no rdf:RDF. It was left as it is.")
    return document


def _properties(document: minidom.Document, what: _Property, name: str) -> list[minidom.Element]:
    """The elements of a property, which stand right below a description."""
    found = []
    for one in _descriptions(document):
        if one.hasAttributeNS(what[0], what[2]):
            raise DataError(
                f"{name}: {what[1]}:{what[2]} is an attribute there, not a list. It was left as it "
                "is: let the program that wrote it write it as a list."
            )
        found += [
            node
            for node in one.childNodes
            if isinstance(node, minidom.Element)
            and (node.namespaceURI, node.localName) == (what[0], what[2])
        ]
    return found


def _descriptions(document: minidom.Document) -> list[minidom.Element]:
    return [
        node
        for rdf in document.getElementsByTagNameNS(_RDF, "RDF")
        for node in rdf.childNodes
        if isinstance(node, minidom.Element)
        and (node.namespaceURI, node.localName) == (_RDF, "Description")
    ]


def _items(element: minidom.Element) -> list[minidom.Element]:
    return list(element.getElementsByTagNameNS(_RDF, "li"))


def _text(element: minidom.Element) -> str:
    return "".join(
        node.data for node in element.childNodes if isinstance(node, minidom.Text)
    ).strip()


def _words(document: minidom.Document, what: _Property, name: str) -> list[str]:
    return [_text(li) for one in _properties(document, what, name) for li in _items(one)]


# --- writing ------------------------------------------------------------------------------------


def _put(
    document: minidom.Document, theirs: _Property, ours: _Property, values: list[str], name: str
) -> bool:
    """Make the words of a property theirs and `values`; returns whether anything changed."""
    there, added_before = _words(document, theirs, name), _words(document, ours, name)
    foreign = set(there) - set(added_before)
    added = [value for value in values if value not in foreign]
    changed = False
    stale = set(added_before) - set(added)
    for what, gone in ((theirs, stale), (ours, stale)):
        for one in _properties(document, what, name):
            for item in _items(one):
                if _text(item) in gone:
                    _remove(item)
                    changed = True
    for what in (theirs, ours):
        present = set(_words(document, what, name))
        missing = [value for value in added if value not in present]
        if missing:
            _append(document, what, missing, name)
            changed = True
        for one in _properties(document, what, name):
            if not _items(one) and changed:
                _remove(one)
    return changed


def _append(document: minidom.Document, what: _Property, words: Iterable[str], name: str) -> None:
    found = _properties(document, what, name)
    if not found:
        found = [_new_property(document, what, name)]
    boxes = [
        node
        for node in found[0].childNodes
        if isinstance(node, minidom.Element) and node.namespaceURI == _RDF
        and node.localName in ("Bag", "Seq", "Alt")
    ]  # fmt: skip
    if not boxes:
        raise DataError(
            f"{name}: {what[1]}:{what[2]} is not a list there. It was left as it is: let the "
            "program that wrote it write it as a list."
        )
    for word in words:
        item = document.createElementNS(_RDF, f"{_prefix(boxes[0])}li")
        item.appendChild(document.createTextNode(word))
        _insert(document, boxes[0], item)


def _new_property(document: minidom.Document, what: _Property, name: str) -> minidom.Element:
    descriptions = _descriptions(document)
    if descriptions:
        parent = descriptions[0]
    else:
        rdf = document.getElementsByTagNameNS(_RDF, "RDF")[0]
        parent = document.createElementNS(_RDF, f"{_prefix(rdf)}Description")
        parent.setAttributeNS(_RDF, f"{_prefix(rdf) or 'rdf:'}about", "")
        _insert(document, rdf, parent)
    space, prefix, local = what
    element = document.createElementNS(space, f"{prefix}:{local}")
    # declared here, whatever the prefix means elsewhere: always right, and one line
    element.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)
    _insert(document, parent, element)
    _insert(document, element, document.createElementNS(_RDF, f"{_prefix(parent)}Bag"))
    return element


def _prefix(element: minidom.Element) -> str:
    return f"{element.prefix}:" if element.prefix else ""


def _depth(node: minidom.Node | None) -> int:
    depth = -1
    while node is not None and not isinstance(node, minidom.Document):
        node, depth = node.parentNode, depth + 1
    return depth


def _insert(document: minidom.Document, parent: minidom.Element, child: minidom.Element) -> None:
    """As the last child, on a line of its own; what white space was there stays."""
    depth, last = _depth(parent), parent.lastChild
    if isinstance(last, minidom.Text) and not last.data.strip():
        parent.insertBefore(document.createTextNode("\n" + " " * (depth + 1)), last)
        parent.insertBefore(child, last)
        return
    parent.appendChild(document.createTextNode("\n" + " " * (depth + 1)))
    parent.appendChild(child)
    parent.appendChild(document.createTextNode("\n" + " " * depth))


def _remove(element: minidom.Element) -> None:
    """Take an element out, and the white space before it."""
    parent: Any = element.parentNode  # a Document or an Element: both remove what they hold
    before = element.previousSibling
    if isinstance(before, minidom.Text) and not before.data.strip():
        parent.removeChild(before)
    parent.removeChild(element)
