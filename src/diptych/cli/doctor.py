"""`diptych doctor`: what this machine and installation have, and whether data can be used."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import click

from diptych.cli.common import DEFAULT_MODEL, emit, json_option, progress
from diptych.cli.main import on_a_line

# extra: the packages that it brings
EXTRAS = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "jpeg": ("simplejpeg",),
    "parquet": ("pyarrow",),
    "photos": ("pillow-heif", "rawpy", "av"),
    "ray": ("ray",),
    "search": ("faiss-cpu",),
    "train": ("tensorboard",),
}
VARIABLES = (
    *("DIPTYCH_HOME", "DIPTYCH_CACHE", "DIPTYCH_OFFLINE", "DIPTYCH_MIRROR", "DIPTYCH_THREADS"),
    *("DIPTYCH_PROCESSES", "DIPTYCH_RESIDENT"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"),
)
SECRETS = {"HF_TOKEN"}
PROXIES = ("http", "https", "no")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, devices, precision, folders, environment and optional packages.

    With `data`: examine pairs of images and captions.
    """
    if context.invoked_subcommand is not None:
        return
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
    from diptych.engine.probe import bf16_gain
    from diptych.engine.stream import num_threads
    from diptych.processors import num_processors
    from diptych.search.records import collection_folder

    device = pick_device("auto")
    packages = ("diptych", "torch", "numpy", "pillow", "safetensors", "sentencepiece", "tokenizers")
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in packages}
    cache = zoo.cache_folder()
    auto = "bf16 for transformers, fp32 for other towers"
    if device.type != "cpu" or not has_fast_bf16():
        auto = "fp32"
    return {
        "versions": versions,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "device": str(device),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
            "bf16 in the CPU": f"{bf16_gain():.1f} times as fast as fp32, measured",
            "precision auto": auto,
            "processors": f"{num_processors()} of {os.cpu_count()} may be used",
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


@doctor.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Whose tokens are counted.")
@click.option("--check", type=click.IntRange(1), help="Decode so many pictures. Default: all.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Of the run."
)
@json_option
def data(
    paths: tuple[str, ...], model: str, check: int | None, batch_size: int, as_json: bool
) -> None:
    """Examine pairs of images and captions before a training run.

    PATHS are folders of pictures with a .txt each or with a captions.csv, lists (CSV, TSV, JSON
    lines, Parquet), or tar shards; "{0000..0099}" and "*" are understood. Exit code 0: all is fit;
    1: something would be dropped; 2: there is nothing to train on.
    """
    from diptych import zoo
    from diptych.data.doctor import examine
    from diptych.engine import load
    from diptych.engine.stream import num_threads
    from diptych.preprocess import open_image

    tokenizer = load(model, device="cpu").tokenizer
    with progress("Decoding", None, printing=False) as advance:
        found = examine(
            paths,
            folder=zoo.cache_folder() / "pairs",
            decode=lambda data, name: open_image(data, name=name).size,
            count=tokenizer.count,
            context=tokenizer.context_length,
            batch_size=batch_size,
            check=check,
            threads=num_threads(),
            progress=advance,
        )
    if as_json:
        emit(found)
    else:
        _show(found)
    if not found["fit"]:
        raise SystemExit(1 if found["samples"] else 2)


def _show(found: dict[str, Any]) -> None:
    for source in found["sources"]:
        files = f"{source['files']:,} file{'s' * (source['files'] != 1)}"
        click.echo(f"{on_a_line(source['path'])}: {source['samples']:,} pairs in {files}")
        click.echo(f"  {'has':<12}{_counts(source['names'])}")
    pictures, captions, twice = found["pictures"], found["captions"], found["duplicates"]
    bad = f"{pictures['bad']:,} cannot be decoded"
    rows = {
        "pictures": f"{pictures['checked'] - pictures['bad']:,} decoded, {bad}",
        "width": _spread(pictures["width"]),
        "height": _spread(pictures["height"]),
        "captions": f"{captions['number']:,}; {captions['counted']:,} of them counted",
        "tokens": f"{_spread(captions['tokens'])}; {captions['cut']:,} longer than "
        f"{captions['context']}, cut",
        "twice": f"{twice['captions']:,} captions, {twice['images']:,} pictures",
        "licences": _counts(found["origin"]["licence"]),
        "sources": _counts(found["origin"]["source"]),
        "without": _counts(found["origin"]["without"]),
        "dropped": _counts(found["drops"]),
        "lost": _counts(found["flaws"]),
        "first loss": f"{found['loss']['ln_n']:.3f} = ln {found['loss']['batch_size']}, of a model "
        "that knows nothing yet",
    }
    for name, text in rows.items():
        click.echo(f"  {name:<12}{text}")
    for reason, name, detail in found["told"]:
        click.echo(on_a_line(f"    {reason}: {name}  {detail}"))
    some = "Not all of it can be used" if found["samples"] else "There is nothing to train on"
    click.echo("Fit to train on." if found["fit"] else f"{some}: see above.")


def _counts(counts: dict[str, int]) -> str:
    return on_a_line(", ".join(f"{name} {n:,}" for name, n in counts.items() if n)) or "none"


def _spread(quantiles: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in quantiles.items()) or "none"
