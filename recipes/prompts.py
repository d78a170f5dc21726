"""The prompt sets and class lists of the package, out of the files of those who published them.

    python recipes/prompts.py fetch FOLDER  # 5 MB of packages: pip
    python recipes/prompts.py build FOLDER  # writes src/diptych/assets/{prompts,classes}.json

`fetch` also says which two files to put into FOLDER by hand, for no package has them: openai/CLIP's
`data/prompts.md`, and wise-ft's copy of ObjectNet's table of ImageNet classes. `build` takes a
second; every file's SHA-256 is checked, so the same two assets come out each time. It prints where
OpenAI's and clip-benchmark's texts of the same set differ.

- Sets are named protocol-set: `openai-food101`, `clip-benchmark-eurosat`, `coop-dtd`. A class list
  without a protocol is OpenAI's; clip-benchmark's is there where its names or its order are others.
- `ids` are what publishers call the folders: WordNet ids, and ObjectNet's own words.
- `rows` of a class are the ImageNet classes that it stands for: the masks of A, R, O and ObjectNet.
"""

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from packages import Package, fetch, unpack

ASSETS = Path(__file__).parents[1] / "src" / "diptych" / "assets"
OPENAI = (
    "openai/CLIP, data/prompts.md at e184f608c5d5e58165682f7c332c3a8b4c1545f2",
    "MIT, Copyright (c) 2021 OpenAI",
)
NOTEBOOK = (
    "openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb, as in open_clip_torch 3.3.0",
    OPENAI[1],
)
BENCHMARK = (
    "LAION-AI/CLIP_benchmark 1.6.2, clip_benchmark/datasets",
    "MIT, Copyright (c) 2022 Mehdi Cherti",
)
COOP = (
    "KaiyangZhou/CoOp, trainers/zsclip.py, CUSTOM_TEMPLATES",
    "MIT, Copyright (c) 2021 Kaiyang Zhou",
)
OURS = ("Diptych's own: no publisher, never measured on medical pictures, not for diagnosis", "MIT")
WISE = (
    "ObjectNet's table of ImageNet classes, as in mlfoundations/wise-ft at "
    "4639a3919b51b20beae5814bc6722b962d93ae47, src/datasets/objectnet_metadata",
    "MIT, Copyright (c) 2021-2022 Mitchell Wortsman, Gabriel Ilharco and others",
)

PACKAGES = (
    Package(
        "pypi",
        "open_clip_torch",
        "3.3.0",
        "open_clip_torch-3.3.0-py3-none-any.whl",
        "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
        "words: templates and names of ImageNet",
        "MIT",
    ),
    Package(
        "pypi",
        "clip-benchmark",
        "1.6.2",
        "clip_benchmark-1.6.2-py2.py3-none-any.whl",
        "6fbfd39b454a036a628b7e227b3d4050015009afe418583f21f27886c74e4998",
        "words: its templates, names, and the classes of ImageNet's variants",
        "MIT",
    ),
    Package(
        "pypi",
        "timm",
        "1.0.31",
        "timm-1.0.31-py3-none-any.whl",
        "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
        "words: the order and the lemmas of the 1,000 classes",
        "Apache-2.0",
    ),
)
BY_HAND = {
    "prompts.md": (
        "https://raw.githubusercontent.com/openai/CLIP/"
        "e184f608c5d5e58165682f7c332c3a8b4c1545f2/data/prompts.md",
        "f98d2d25e78cc1fee650240b519f7cb58a83cfcc5aa538cde52514809cf4a1c9",
    ),
    "objectnet_to_imagenet_1k.json": (
        "https://raw.githubusercontent.com/mlfoundations/wise-ft/"
        "4639a3919b51b20beae5814bc6722b962d93ae47/src/datasets/objectnet_metadata/"
        "objectnet_to_imagenet_1k.json",
        "9a6e167524548a653a8ec7f149d9f0880346f6d0218136f41ae57c37c8deac97",
    ),
}
# OpenAI's headings, and clip-benchmark's names, of the sets of `eval.sets`
OPENAI_SETS = {
    "Birdsnap": "birdsnap",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "CLEVRCounts": "clevr-counts",
    "Caltech101": "caltech101",
    "Country211": "country211",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "FGVCAircraft": "fgvc-aircraft",
    "FacialEmotionRecognition2013": "fer2013",
    "Flowers102": "flowers102",
    "Food101": "food101",
    "GTSRB": "gtsrb",
    "HatefulMemes": "hateful-memes",
    "KITTI": "kitti",
    "Kinetics700": "kinetics700",
    "MNIST": "mnist",
    "OxfordPets": "oxford-pets",
    "PascalVOC2007": "voc2007",
    "PatchCamelyon": "pcam",
    "RESISC45": "resisc45",
    "SST2": "rendered-sst2",
    "STL10": "stl10",
    "SUN397": "sun397",
    "StanfordCars": "stanford-cars",
    "UCF101": "ucf101",
}
BENCHMARK_SETS = {
    "imagenet1k": "imagenet",
    "cars": "stanford-cars",
    "pets": "oxford-pets",
    "flowers": "flowers102",
    "renderedsst2": "rendered-sst2",
    "voc2007_multilabel": "voc2007-multilabel",
    "clevr_count_all": "clevr-counts",
    "clevr_closest_object_distance": "clevr-distance",
    "kitti_closest_vehicle_distance": "kitti",
    "caltech101_vtab": "caltech101-vtab",
    "smallnorb_label_azimuth": "smallnorb-azimuth",
    "smallnorb_label_elevation": "smallnorb-elevation",
    "dsprites_label_x_position": "dsprites-x-position",
    "dsprites_label_orientation": "dsprites-orientation",
    "diabetic_retinopathy": "diabetic-retinopathy",
    "fgvc_aircraft": "fgvc-aircraft",
}
PLAIN = "a photo of a {}."
COOP_SETS = {
    "1": PLAIN,
    "imagenet": PLAIN,
    "caltech101": PLAIN,
    "stanford-cars": PLAIN,
    "sun397": PLAIN,
    "oxford-pets": "a photo of a {}, a type of pet.",
    "flowers102": "a photo of a {}, a type of flower.",
    "fgvc-aircraft": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
DOMAINS = {
    "pets": "oxford-pets",
    "satellite": "resisc45",
    "texture": "dtd",
    "action": "kinetics700",
    "food": "food101",
}
MEDICAL = (
    "a medical image showing {}.",
    "a medical scan showing {}.",
    "a microscope image showing {}.",
    "a clinical photo showing {}.",
)
# ObjectNet's folders that are not called by their class
FOLDERS = {
    "Bath towel": "full_sized_towel",
    "Dishrag or hand towel": "hand_towel_or_rag",
    "Drying rack for plates": "drying_rack_for_dishes",
}
Names = Sequence[Sequence[str]]


def sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def by_hand(folder: Path, name: str) -> str:
    """The text of a file that no package has, whose SHA-256 is the expected one."""
    path, (address, expected) = folder / name, BY_HAND[name]
    if not path.is_file():
        raise ValueError(f"{path} is missing. Put it there, from {address}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path}: SHA-256 {found}, expected {expected}. It is another version.")
    return path.read_text("utf-8")


def parse_prompts(text: str) -> dict[str, tuple[list[list[str]], list[str]]]:
    """data/prompts.md -> {heading: (the names of each class, templates)}."""
    found = {}
    for part in text.split("\n## ")[1:]:
        code = ast.parse(part.split("```bash\n")[1].split("```")[0])
        lists = {step.targets[0].id: ast.literal_eval(step.value) for step in code.body}  # type: ignore
        classes = [[c] if isinstance(c, str) else c for c in lists["classes"]]
        found[part.split("\n", 1)[0].strip()] = (classes, lists["templates"])
    return found


def openai_sets(folder: Path) -> dict[str, tuple[list[list[str]], list[str]]]:
    """The 26 sets under our names."""
    found = parse_prompts(by_hand(folder, "prompts.md"))
    return {OPENAI_SETS[heading]: lists for heading, lists in found.items()}


def constants(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Literals that a Python file assigns anywhere, without running it."""
    tree = ast.parse(path.read_text("utf-8"))
    found = {}
    for step in ast.walk(tree):
        if isinstance(step, ast.Assign) and isinstance(step.targets[0], ast.Name):
            name = step.targets[0].id
            if name in names and name not in found:
                found[name] = ast.literal_eval(step.value)
    return found


def open_clip_constants(root: Path) -> tuple[list[str], list[str], list[str]]:
    """ImageNet's names, the 80 templates and the 7, as open_clip has them."""
    path = root / "open_clip_torch" / "open_clip" / "zero_shot_metadata.py"
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    eighty = [fill("{}") for fill in module.OPENAI_IMAGENET_TEMPLATES]
    seven = [fill("{}") for fill in module.SIMPLE_IMAGENET_TEMPLATES]
    return module.IMAGENET_CLASSNAMES, eighty, seven


def benchmark_json(root: Path, name: str) -> dict[str, list[str]]:
    path = root / "clip-benchmark" / "clip_benchmark" / "datasets" / f"{name}.json"
    found = json.loads(path.read_text("utf-8"))
    return {BENCHMARK_SETS.get(k, k): v for k, v in found.items() if k != "dummy"}


def prompts_row(name: str, templates: Sequence[str], said: tuple[str, str]) -> dict[str, Any]:
    source, licence = said
    return {
        "name": name,
        "source": source,
        "licence": licence,
        "sha256": sha256(templates),
        "templates": list(templates),
    }


def prompt_sets(folder: Path, root: Path) -> Iterator[dict[str, Any]]:
    _, eighty, seven = open_clip_constants(root)
    yield prompts_row("photo", [PLAIN], NOTEBOOK)
    yield prompts_row("openai-80", eighty, NOTEBOOK)
    yield prompts_row("openai-7", seven, NOTEBOOK)
    openai = {name: templates for name, (_, templates) in openai_sets(folder).items()}
    for name, templates in openai.items():
        yield prompts_row(f"openai-{name}", templates, OPENAI)
    for name, template in COOP_SETS.items():
        yield prompts_row(f"coop-{name}", [template], COOP)
    for name, theirs in benchmark_json(root, "en_zeroshot_classification_templates").items():
        templates = [template.replace("{c}", "{}") for template in theirs]
        yield prompts_row(f"clip-benchmark-{name}", templates, BENCHMARK)
        if openai.get(name, templates) != templates:
            sizes = f"OpenAI has {len(openai[name])}, clip-benchmark {len(templates)} others"
            print(f"templates of {name}: {sizes}")
    for domain, name in DOMAINS.items():
        yield prompts_row(domain, openai[name], (f"openai-{name} of {OPENAI[0]}", OPENAI[1]))
    yield prompts_row("medical", MEDICAL, OURS)


def classes_row(
    name: str,
    names: Names,
    said: tuple[str, str],
    ids: Sequence[str] = (),
    rows: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "source": said[0], "licence": said[1]}
    found["sha256"] = sha256(["\t".join(n) for n in names])
    found["names"] = [n[0] if len(n) == 1 else list(n) for n in names]
    if ids:
        found["ids"] = list(ids)
    if rows:
        found["rows"] = [list(r) for r in rows]
    return found


def class_lists(folder: Path, root: Path) -> Iterator[dict[str, Any]]:
    imagenet, _, _ = open_clip_constants(root)
    info = root / "timm" / "timm" / "data" / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    yield classes_row("imagenet", [[n] for n in imagenet], NOTEBOOK, wnids)
    yield from variants(root, info, imagenet, wnids)
    yield objectnet(folder, info, wnids)
    openai = {name: classes for name, (classes, _) in openai_sets(folder).items()}
    for name, names in openai.items():
        yield classes_row(name, names, OPENAI)
    for name, names in benchmark_json(root, "en_classnames").items():
        theirs = [[n] for n in names]
        if theirs == (openai | {"imagenet": [[n] for n in imagenet]}).get(name):
            continue
        yield classes_row(f"clip-benchmark-{name}", theirs, BENCHMARK)
        if name in openai:
            other = sum(a != b for a, b in zip(theirs, openai[name], strict=True))
            print(f"classes of {name}: {other} of {len(names)} are others, or elsewhere")


def variants(
    root: Path, info: Path, imagenet: Sequence[str], wnids: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """ImageNet-A, -R and -O: 200 classes each. timm has those of A and R too, for a check."""
    keys = {which: f"imagenet_{which}_wnids" for which in "aro"}
    builder = root / "clip-benchmark" / "clip_benchmark" / "datasets" / "builder.py"
    found = constants(builder, [*keys.values(), "all_imagenet_wordnet_ids"])
    same = {which: (info / f"imagenet_{which}_synsets.txt").read_text().split() for which in "ar"}
    if found["all_imagenet_wordnet_ids"] != wnids or any(
        set(found[keys[which]]) != set(theirs) for which, theirs in same.items()
    ):
        raise ValueError("timm and clip-benchmark do not agree on ImageNet's classes")
    for which, key in keys.items():
        rows = [i for i, wnid in enumerate(wnids) if wnid in set(found[key])]
        yield classes_row(
            f"imagenet-{which}",
            [[imagenet[i]] for i in rows],
            (f"names: {NOTEBOOK[0]}; which of them: {BENCHMARK[0]}", "MIT"),
            [wnids[i] for i in rows],
            [[i] for i in rows],
        )


def objectnet(folder: Path, info: Path, wnids: list[str]) -> dict[str, Any]:
    """The 113 classes in the order of the folders' names, as peers have it."""
    lemmas: dict[str, int] = {}
    for line in (info / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines():
        wnid, lemma = line.split("\t")
        if wnid in wnids:
            lemmas[lemma.lower()] = wnids.index(wnid)
    table = json.loads(by_hand(folder, "objectnet_to_imagenet_1k.json"))
    found = sorted(
        (
            FOLDERS.get(name) or folder_of(name),
            name.lower(),
            sorted(lemmas[lemma.lower()] for lemma in meant.split("; ")),
        )
        for name, meant in table.items()
    )
    ids, names, rows = zip(*found, strict=True)
    return classes_row("objectnet", [[n] for n in names], WISE, ids, rows)


def folder_of(name: str) -> str:
    """ "Mixing / Salad Bowl" lies in mixing_salad_bowl, "Butcher's knife" in butchers_knife."""
    return re.sub(r"[^a-z0-9-]+", "_", name.lower().replace("'", "")).strip("_")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A row a line, so that a change of one set is a change of one line."""
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


@click.group()
def main() -> None:
    """Prompt sets and class lists of the package."""


@main.command("fetch")
@click.argument("folder", type=click.Path(path_type=Path))
def fetch_(folder: Path) -> None:
    """Download the packages."""
    fetch(folder, PACKAGES)
    for name, (address, _) in BY_HAND.items():
        print(f"now put {folder / name} there, from {address}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def build(folder: Path) -> None:
    """Write both assets."""
    root = unpack(folder, PACKAGES)
    write(ASSETS / "prompts.json", list(prompt_sets(folder, root)))
    write(ASSETS / "classes.json", list(class_lists(folder, root)))


if __name__ == "__main__":
    main()
