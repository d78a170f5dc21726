"""`diptych doctor`: what this machine and installation have."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import click

from diptych.cli.common import emit, json_option

# extra: the packages that it brings
EXTRAS = {
    "parquet": ("pyarrow",),
    "photos": ("pillow-heif", "rawpy", "av"),
    "ray": ("ray",),
    "search": ("faiss-cpu",),
}
VARIABLES = (
    *("DIPTYCH_HOME", "DIPTYCH_CACHE", "DIPTYCH_OFFLINE", "DIPTYCH_MIRROR", "DIPTYCH_THREADS"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"),
)
SECRETS = {"HF_TOKEN"}
PROXIES = ("http", "https", "no")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, devices, precision, folders, environment and optional packages."""
    found = _findings()
    if as_json:
        emit(found)
        return
    for section, rows in found.items():
        click.echo(section)
        width = max(len(name) for name in rows)
        for name, value in rows.items():
            click.echo(f"  {name:<{width}}  {value}")


def _findings() -> dict[str, dict[str, Any]]:
    from urllib.request import getproxies

    import torch

    from diptych import zoo
    from diptych.engine.device import has_fast_bf16, pick_device
    from diptych.engine.stream import num_threads
    from diptych.search.records import collection_folder

    device = pick_device("auto")
    packages = ("diptych", "torch", "numpy", "pillow", "safetensors", "sentencepiece", "tokenizers")
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    cache = zoo.cache_folder()
    return {
        "versions": versions,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "device": str(device),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
            "bf16 in the CPU": "yes: the default of transformers" if has_fast_bf16() else "no",
            "model threads": torch.get_num_threads(),
            "decoding threads": num_threads(),
        },
        "folders": {
            "cache": str(cache),
            "collections": str(collection_folder("default").parent),
            "writable": "yes" if _writable(cache) else "NO: set DIPTYCH_CACHE to a folder that is",
        },
        "network": {
            "downloads": "none: offline" if zoo.is_offline() else "when a model is not here",
            "hub": zoo.hub(),
            # they may hold a password
            **{f"{p} proxy": "set" if p in getproxies() else "not set" for p in PROXIES},
        },
        "environment": {name: _variable(name) for name in VARIABLES},
        "extras": {extra: _extra(extra, packages) for extra, packages in sorted(EXTRAS.items())},
    }


def _writable(folder) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        return "not set"
    return "set" if name in SECRETS else value


def _extra(extra: str, packages: tuple[str, ...]) -> str:
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    except importlib.metadata.PackageNotFoundError as error:
        return f"no {error.name}. Type: pip install 'diptych[{extra}]'"
