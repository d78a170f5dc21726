"""Rows beyond the paper: VTAB+, ImageNet's variants, DataComp's rest, retrieval, choices."""

from __future__ import annotations

from dataclasses import replace

from diptych.eval.sets.row import DataSet

__all__ = ["MORE"]

_VTAB, _COMP, _SHIFT, _RETRIEVAL = "vtab+", "datacomp", "imagenet-shifts", "retrieval"
_ASK = "see the publisher; research use"

# --- VTAB+ and DataComp sets whose names and templates lie beside the data ---

_BESIDE = DataSet(
    name="", title="", task="classification", metric="top1", suites=(_VTAB,), licence=_ASK
)
_VTAB_NOTE = "Templates and names are clip_benchmark's; VTAB's test split."


def _vtab(name: str, title: str, num: int | None, size: int | None, source: str) -> DataSet:
    """With clip_benchmark's prompt set of the name; names of classes lie beside the data."""
    return replace(
        _BESIDE,
        name=name,
        title=title,
        num_classes=num,
        size=size,
        source=source,
        templates=f"clip-benchmark-{name}",
        note=_VTAB_NOTE,
    )


_DSPRITES = "https://github.com/google-deepmind/dsprites-dataset"
_NORB = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"

VTAB = (
    replace(
        _vtab("svhn", "SVHN", 10, 26_032, "http://ufldl.stanford.edu/housenumbers/"),
        classes="clip-benchmark-svhn",
        suites=(_VTAB, _COMP),
    ),
    replace(
        _vtab("clevr-distance", "CLEVR Distance", 6, 15_000,
              "https://cs.stanford.edu/people/jcjohns/clevr/"),
        classes="clip-benchmark-clevr-distance",
        suites=(_VTAB, _COMP),
        licence="CC BY 4.0",
        note="Near chance (19.1): a weak anchor. " + _VTAB_NOTE,
    ),
    replace(
        _vtab("diabetic-retinopathy", "Diabetic Retinopathy", 5, None,
              "https://www.kaggle.com/c/diabetic-retinopathy-detection"),
        classes="clip-benchmark-diabetic-retinopathy",
        note="Three of four pictures are of one class: look at the mean per class. No diagnosis.",
    ),
    replace(
        _vtab("dmlab", "DMLab", 6, None, "https://github.com/google-research/task_adaptation"),
        classes="clip-benchmark-dmlab",
    ),
    _vtab("dsprites-orientation", "dSprites, orientation", None, None, _DSPRITES),
    _vtab("dsprites-x-position", "dSprites, x position", None, None, _DSPRITES),
    _vtab("smallnorb-azimuth", "smallNORB, azimuth", 18, None, _NORB),
    _vtab("smallnorb-elevation", "smallNORB, elevation", 9, None, _NORB),
)  # fmt: skip

# --- ImageNet's variants: the classifier knows the set's own classes alone ---

_VARIANT = DataSet(
    name="",
    title="",
    task="classification",
    metric="top1",
    templates="openai-80",
    suites=(_VTAB, _COMP, _SHIFT),
    licence="non-commercial research and education",
)

VARIANTS = (
    replace(
        _VARIANT,
        name="imagenet-v2",
        title="ImageNet-V2, matched frequency",
        classes="imagenet",
        num_classes=1000,
        size=10_000,
        source="https://github.com/modestyachts/ImageNetV2",
        licence="MIT",
        note="Folders are numbers 0 to 999, not WordNet ids: sorted as text (0, 1, 10 ...) "
        "they are another order.",
    ),
    replace(
        _VARIANT,
        name="imagenet-sketch",
        title="ImageNet-Sketch",
        classes="imagenet",
        num_classes=1000,
        size=50_889,
        source="https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    replace(
        _VARIANT,
        name="imagenet-a",
        title="ImageNet-A",
        classes="imagenet-a",
        num_classes=200,
        size=7_500,
        source="https://github.com/hendrycks/natural-adv-examples",
        licence="MIT",
        note="200 classes: a classifier of all 1,000 gives a lower figure. Chosen to fool a "
        "ResNet-50.",
    ),
    replace(
        _VARIANT,
        name="imagenet-r",
        title="ImageNet-R",
        classes="imagenet-r",
        num_classes=200,
        size=30_000,
        source="https://github.com/hendrycks/imagenet-r",
        licence="MIT",
        note="200 classes, others than those of ImageNet-A.",
    ),
    replace(
        _VARIANT,
        name="imagenet-o",
        title="ImageNet-O",
        classes="imagenet-o",
        num_classes=200,
        size=2_000,
        suites=(_COMP, _SHIFT),
        source="https://github.com/hendrycks/natural-adv-examples",
        licence="MIT",
        note="Made for the detection of unknown classes; accuracy among its 200 labels is "
        "DataComp's use of it, and better models are worse at it.",
    ),
    replace(
        _VARIANT,
        name="objectnet",
        title="ObjectNet",
        classes="objectnet",
        num_classes=113,
        size=18_574,
        source="https://objectnet.dev/",
        licence="ObjectNet's own: only for testing, never for training",
        note="113 of 313 classes overlap with ImageNet; a red border of 2 pixels must be cut off, "
        "which is done where the publisher's mappings/ are beside images/.",
    ),
)

# --- DataComp's rest: groups ---

_WILDS = "https://wilds.stanford.edu/datasets/"
_GROUPED = replace(_BESIDE, suites=(_COMP,))

GROUPED = (
    replace(
        _GROUPED,
        name="iwildcam",
        title="iWildCam",
        metric="macro_f1",
        num_classes=182,
        size=42_791,
        source=_WILDS,
        note="Camera traps: most pictures are empty and most classes rare. The group is the place.",
    ),
    replace(
        _GROUPED,
        name="camelyon17",
        title="Camelyon17",
        num_classes=2,
        size=85_054,
        source=_WILDS,
        licence="CC0-1.0",
        note="Near chance for zero-shot models. The group is the hospital. Not for diagnosis.",
    ),
    replace(
        _GROUPED,
        name="fmow",
        title="FMoW",
        metric="worst_group_top1",
        num_classes=62,
        size=22_108,
        source=_WILDS,
        worst_without=("5", "Other"),
        note="The worst region without Other, which is number 5 in the web data set. Do not quote "
        "0.00 of RN50: one small region decides.",
    ),
    replace(
        _GROUPED,
        name="dollar-street",
        title="Dollar Street",
        metric="worst_group_top5",
        num_classes=58,
        size=3_503,
        source="https://www.gapminder.org/dollar-street",
        licence="CC BY 4.0",
        note="Top-5 of the worst group of income; some pictures have several right labels.",
    ),
    replace(
        _GROUPED,
        name="geode",
        title="GeoDE",
        metric="worst_group_top1",
        num_classes=40,
        size=12_488,
        source="https://geodiverse-data-collection.cs.princeton.edu/",
        licence="CC BY 4.0",
        note="Accuracy of the worst of six regions.",
    ),
)

# --- retrieval ---

_PAIRED = DataSet(
    name="",
    title="",
    task="retrieval",
    metric="mean_r1",
    suites=(_RETRIEVAL, _COMP),
    licence="research only; pictures of their owners on Flickr",
)

PAIRED = (
    replace(
        _PAIRED,
        name="coco",
        title="MS COCO, 5k test of Karpathy's split",
        size=5_000,
        source="https://cocodataset.org/",
        licence="annotations CC BY 4.0; pictures of their owners on Flickr",
        note="Five captions a picture, all of them right: a protocol with one is easier in one "
        "direction and harder in the other. The paper puts 'a photo of' before captions, here "
        "nothing is.",
    ),
    replace(
        _PAIRED,
        name="flickr30k",
        title="Flickr30k, 1k test of Karpathy's split",
        size=1_000,
        source="https://shannon.cs.illinois.edu/DenotationGraph/",
        note="Five captions a picture. The paper puts 'a photo of' before them, here nothing is.",
    ),
    replace(
        _PAIRED,
        name="flickr8k",
        title="Flickr8k, 1k test of Karpathy's split",
        size=1_000,
        suites=(_RETRIEVAL,),
        source="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
    ),
)

# --- choices ---

_CHOICE = DataSet(
    name="", title="", task="choice", metric="macro_pair_accuracy", suites=("choice",)
)
_ARO = "https://github.com/mertyg/vision-language-models-are-bows"
_BLIND = "A model of text alone, which never sees the picture, wins most of it: compare with that."

CHOICES = (
    replace(
        _CHOICE,
        name="winoground",
        title="Winoground",
        metric="group_score",
        size=400,
        source="https://huggingface.co/datasets/facebook/winoground",
        licence="pictures of Getty Images, research only",
        note="Strictly greater everywhere, a tie is wrong; chance 25 / 25 / 16.7.",
    ),
    replace(
        _CHOICE,
        name="sugarcrepe",
        title="SugarCrepe",
        size=7_511,
        source="https://github.com/RAIVNLab/sugar-crepe",
        licence="MIT; pictures of COCO",
        note="Seven files, a group each. A tie is wrong: peers count it for the first text, which "
        "is always the right one.",
    ),
    replace(
        _CHOICE,
        name="aro-relation",
        title="ARO, Visual Genome relation",
        size=23_937,
        source=_ARO,
        licence="MIT; pictures of Visual Genome",
        note="Macro over relations, pictures cut to the box of the two things. " + _BLIND,
    ),
    replace(
        _CHOICE,
        name="aro-attribution",
        title="ARO, Visual Genome attribution",
        size=28_748,
        source=_ARO,
        licence="MIT; pictures of Visual Genome",
        note="Macro over pairs of attributes, pictures cut to the box of the two things. " + _BLIND,
    ),
    replace(
        _CHOICE,
        name="winogavil",
        title="WinoGAViL",
        metric="jaccard",
        size=3_563,
        suites=("choice", _COMP),
        source="https://huggingface.co/datasets/nlphuji/winogavil",
        licence="CC BY 4.0",
        note="DataComp's figure is of the riddles with 10 and 12 pictures alone (chance 20.5); the "
        "group is the number of pictures. Text: A cue, An cue.",
    ),
)

MORE: tuple[DataSet, ...] = (*VTAB, *VARIANTS, *GROUPED, *PAIRED, *CHOICES)
