"""Downloads on a bad day: what four libraries leave on the disk when a host misbehaves.

    scripts/bench downloading

A server on this machine gives a file of 64 MB and misbehaves as the row says; then it is well. Each
library fetches twice, in a process and a cache of its own. "sent" is what the server sent in both
tries, in sizes of the file. huggingface_hub and diptych are asked for a file of the hub, which
states its SHA-256; open_clip and openai/CLIP for an address that holds the SHA-256, as theirs do.
"error" is an error with nothing under the file's name. huggingface_hub speaks plain HTTP here;
the hub's own xet protocol, which it prefers where it is offered, was not measured.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "zoo"), str(ROOT / "tests" / "oracle")]

import faulty_server as bad  # noqa: E402

CONTENT = save({"weights": torch.arange(16_000_000, dtype=torch.float32)})
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)
HUB = "/org/name/resolve/main/model.safetensors"
PATHS = {
    "diptych": HUB,
    "huggingface_hub": HUB,
    "open_clip": f"/mlfoundations/open_clip/model-{SHA256[:8]}.pt",
    "openai/CLIP": f"/clip/models/{SHA256}/model.pt",
}


# what the server does to the first question for the bytes
FAULTS = {
    "nothing": (),
    "breaks off at 60 %": (bad.cut(6 * SIZE // 10),),
    "breaks off three times": tuple(bad.cut(SIZE // 4) for _ in range(3)),
    "answers 503 twice": (bad.status(503), bad.status(503)),
    "sends a login page": (bad.web_page(),),
    "flips one bit": (bad.corrupts,),
    "claims a shorter length": (bad.claims(-SIZE // 2),),
}
CLIENTS = {
    "diptych": """
from diptych.zoo.net.download import download
from pathlib import Path
print(download(url, Path(folder) / "model.safetensors").path)
""",
    "huggingface_hub": """
from huggingface_hub import hf_hub_download
print(hf_hub_download("org/name", "model.safetensors", cache_dir=folder))
""",
    "open_clip": """
import peers; peers.torchvision_stub()
from open_clip.pretrained import download_pretrained_from_url
print(download_pretrained_from_url(url, folder))
""",
    "openai/CLIP": """
import peers; peers.torchvision_stub()
from clip.clip import _download
print(_download(url, folder))
""",
}
PACKAGES = {
    "diptych": "diptych",
    "huggingface_hub": "huggingface_hub",
    "open_clip": "open_clip_torch",
    "openai/CLIP": "clip-anytorch",
}


class Handler(bad.Handler):
    """HEAD too, which huggingface_hub asks first; it is always answered well."""

    def do_HEAD(self):
        self.asked = bad.Asked(self.path, dict(self.headers))
        self.close_connection = True
        known = self.path.removeprefix("/cdn") in self.server.files
        self.healthy(self.file) if known else self.answer(404, b"")

    def send(self, body, wrap=bytes):
        if self.command != "HEAD":
            super().send(body, wrap)


def fetch(client: str, url: str, folder: Path, home: Path) -> bool:
    """Whether the library says that it has the file; in a process of its own."""
    start = "import sys, warnings; warnings.simplefilter('ignore'); url, folder = sys.argv[1:]\n"
    env = os.environ | {
        "HOME": str(home),
        "HF_ENDPOINT": url.partition("/org/")[0],
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(ROOT / "tests" / "oracle"),
    }
    command = [sys.executable, "-c", start + CLIENTS[client], url, str(folder)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def on_disk(client: str, folder: Path) -> str:
    """The file under the name that the library gives a whole one: "right", "wrong" or "none"."""
    names = {
        "diptych": "model.safetensors",
        "huggingface_hub": "models--org--name/snapshots/*/model.safetensors",
        "open_clip": "model-*.pt",
        "openai/CLIP": "model.pt",
    }
    for path in folder.glob(names[client]):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return "right" if digest == SHA256 else "wrong"
    return "none"


def outcome(says_so: bool, found: str) -> str:
    match says_so, found:
        case True, "right":
            return "right"
        case True, _:
            return "WRONG, UNNOTICED"
        case False, "wrong":
            return "error, wrong file kept"
    return "error"


def case(client: str, faults: tuple) -> dict:
    with bad.Server() as server, tempfile.TemporaryDirectory() as home:
        server.RequestHandlerClass = Handler
        path, folder = PATHS[client], Path(home, "cache")
        hub = path == HUB
        served = bad.Served(CONTENT, linked=hub, commit=bad.COMMIT if hub else None)
        server.files[path] = served
        asked = f"/cdn{path}" if hub else path
        server.faults[asked] = list(faults)
        began = time.perf_counter()
        first = outcome(
            fetch(client, server.url + path, folder, Path(home)), on_disk(client, folder)
        )
        seconds = time.perf_counter() - began
        server.faults.clear()
        again = outcome(
            fetch(client, server.url + path, folder, Path(home)), on_disk(client, folder)
        )
        sent = sum(a.sent for a in server.asked if a.path == asked) / SIZE
    return {"first": first, "second": again, "sent": sent, "seconds": seconds}


def main() -> None:
    versions = {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    print(
        f"{SIZE / 1e6:.0f} MB from this machine; "
        + ", ".join(" ".join(v) for v in versions.items())
    )
    print(
        f"{'the server':24} {'library':16} {'first try':24} {'second try':24} {'sent':>5} {'s':>6}"
    )
    for what, faults in FAULTS.items():
        for client in CLIENTS:
            row = case(client, faults)
            print(
                f"{what:24} {client:16} {row['first']:24} {row['second']:24} "
                f"{row['sent']:5.2f} {row['seconds']:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
