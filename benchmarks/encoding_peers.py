"""The peers of `encoding.py`: open_clip, transformers, ONNX Runtime, OpenVINO, on one batch.

Each is a name, a call that gives features of the batch, the type of its products, the positions of
a text that it reads, and the fp32 features that it is compared with. A peer that is not installed,
or fails, is left out with a line that says so.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from peers import clip_ids, hf_clip, open_clip_by_name, pixels
from torch import Tensor, nn

from diptych.config import CLIPConfig

__all__ = ["Case", "Variant", "open_clip_model", "peers_of"]

BASE = "open_clip fp32"  # the 1.00x


@dataclass(frozen=True)
class Case:
    """What is encoded: `batch` is pixels [n 3 H W] or ids [n s]; `longest` ids of a text."""

    name: str
    side: str  # "image" or "text"
    batch: Tensor
    config: CLIPConfig
    longest: int
    threads: int


@dataclass(frozen=True)
class Variant:
    """One way to run a case. dtype: of its large products, for the roof that it has."""

    name: str
    call: Callable[[], Tensor]
    dtype: str
    positions: int | None
    reference: Tensor


class Side(nn.Module):
    """One tower of an open_clip model, for what exports a module with one input."""

    def __init__(self, model: nn.Module, side: str):
        super().__init__()
        self.encode = {"image": model.encode_image, "text": model.encode_text}[side]
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        return self.encode(batch)


def open_clip_model(arch: str, config: CLIPConfig) -> nn.Module:
    quick = config.text.act == "quick_gelu"
    return open_clip_by_name(arch, quick_gelu=quick).eval()


def peers_of(
    case: Case, model: nn.Module, folder: Path, *, compile_: bool, graphs: bool
) -> Iterator[Variant]:
    """The peers that are installed, each ready to run `case`; `model` is open_clip's in fp32.

    `folder` keeps exported and quantised graphs: the next case of the same tower reads them.
    `graphs`: whether to make them.
    """
    with torch.no_grad():
        reference = Side(model, case.side)(case.batch)
    path = folder / f"{case.name}-{case.side}.onnx"
    makers = [
        ("open_clip_torch", lambda: _open_clip(case, model, reference)),
        ("transformers", lambda: _transformers(case)),
    ]
    exports = [
        ("onnxruntime", lambda: _onnxruntime(case, _exported(case, model, path), reference)),
        ("openvino", lambda: _openvino(case, _exported(case, model, path), reference)),
        ("nncf", lambda: _nncf(case, _exported(case, model, path), reference)),
    ]
    makers += exports if graphs else []
    if compile_:
        makers.insert(1, ("open_clip_torch", lambda: _compiled(case, reference)))
    for package, make in makers:
        try:
            metadata.version(package)
            yield from make()
        except metadata.PackageNotFoundError as error:
            print(f"  left out: {error.name or package} is not installed", flush=True)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            print(f"  left out: the rest of {package} ({error!r:.200})", flush=True)


def _exported(case: Case, model: nn.Module, path: Path) -> Path:
    """The tower as an ONNX file of any batch, made once."""
    metadata.version("onnx")
    if not path.exists():
        torch.onnx.export(
            Side(model, case.side), (case.batch[:1],), path, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )  # fmt: skip
    return path


def _has_bf16() -> bool:
    """Without it torch's products of bfloat16 take seven times as long as those of fp32."""
    has = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not has:
        print("  left out: a peer in bf16, which this CPU does not multiply", flush=True)
    return has


def _width(case: Case) -> int | None:
    return case.batch.shape[1] if case.side == "text" else None


def _half(case: Case) -> tuple[nn.Module, Tensor]:
    model = open_clip_model(case.name, case.config).bfloat16()
    batch = case.batch.bfloat16() if case.side == "image" else case.batch
    return Side(model, case.side), batch


def _open_clip(case: Case, model: nn.Module, reference: Tensor) -> Iterator[Variant]:
    fp32, width = Side(model, case.side), _width(case)
    yield Variant(BASE, lambda: fp32(case.batch), "fp32", width, reference)
    if not _has_bf16():
        return

    def autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fp32(case.batch)

    yield Variant("open_clip autocast bf16", autocast, "bf16", width, reference)
    half, batch = _half(case)
    yield Variant("open_clip bf16", lambda: half(batch), "bf16", width, reference)


def _compiled(case: Case, reference: Tensor) -> Iterator[Variant]:
    import torch._inductor.config as inductor

    inductor.freezing = True
    half, batch = _half(case)
    fast = torch.compile(half)
    with torch.no_grad():
        fast(batch)  # compiles, and fails here where it does
    yield Variant("open_clip compiled bf16", lambda: fast(batch), "bf16", _width(case), reference)


def _transformers(case: Case) -> Iterator[Variant]:
    """Its own weights, of the same kind; its texts are padded to the longest."""
    visual, text = case.config.visual, case.config.text
    same = {"hidden_act": text.act}
    model = hf_clip(
        {
            "hidden_size": text.width, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "intermediate_size": text.mlp_dim, **same,
        },
        {
            "hidden_size": visual.width, "num_hidden_layers": visual.layers,
            "num_attention_heads": visual.heads, "intermediate_size": visual.mlp_dim,
            "patch_size": visual.patch_size, **same,
        },
        case.config.embed_dim,
    )  # fmt: skip
    model.set_attn_implementation("sdpa")
    image = case.side == "image"
    encode = model.get_image_features if image else model.get_text_features
    batch = case.batch if image else case.batch[:, : case.longest]
    positions = None if image else case.longest
    with torch.no_grad():
        reference = encode(batch).pooler_output.clone()
    yield Variant(
        "transformers fp32", lambda: encode(batch).pooler_output, "fp32", positions, reference
    )
    if not _has_bf16():
        return
    small = deepcopy(model).bfloat16()
    half = batch.bfloat16() if image else batch
    run = small.get_image_features if image else small.get_text_features
    yield Variant(
        "transformers bf16", lambda: run(half).pooler_output, "bf16", positions, reference
    )


def _onnxruntime(case: Case, path: Path, reference: Tensor) -> Iterator[Variant]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.log_severity_level = 3
    batch = {"x": case.batch.numpy()}

    def variant(name: str, file: Path, dtype: str) -> Variant:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        return Variant(
            name, lambda: torch.from_numpy(session.run(None, batch)[0]), dtype, _width(case),
            reference,
        )  # fmt: skip

    yield variant("onnxruntime fp32", path, "fp32")
    small = path.with_suffix(".int8.onnx")
    if not small.exists():
        quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8, per_channel=True)
    yield variant("onnxruntime dynamic int8", small, "int8")


def _openvino(case: Case, path: Path, reference: Tensor) -> Iterator[Variant]:
    yield _on_openvino("OpenVINO f32", case, path, reference, "fp32", hint="f32")
    yield _on_openvino("OpenVINO bf16", case, path, reference, "bf16", hint="bf16")


def _nncf(case: Case, path: Path, reference: Tensor) -> Iterator[Variant]:
    """Static int8, calibrated on 16 other inputs of the same kind."""
    import nncf
    import openvino

    small = path.with_suffix(".int8.xml")
    if not small.exists():
        inputs = pixels(16, 224, seed=1) if case.side == "image" else clip_ids(16, 77, 49408)
        samples = [part.numpy() for part in inputs.split(4)]
        graph = openvino.Core().read_model(path)
        graph.reshape(list(samples[0].shape))
        data = nncf.Dataset(samples)
        made = nncf.quantize(graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=4)
        openvino.save_model(made, small, compress_to_fp16=False)
    yield _on_openvino("OpenVINO int8 (nncf)", case, small, reference, "int8", hint="f32")


def _on_openvino(
    name: str, case: Case, path: Path, reference: Tensor, dtype: str, *, hint: str
) -> Variant:
    import openvino

    graph = openvino.Core().read_model(path)
    graph.reshape(list(case.batch.shape))
    options = {"INFERENCE_NUM_THREADS": case.threads, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_PRECISION_HINT"] = hint
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    batch = case.batch.numpy()

    def call() -> Tensor:
        return torch.from_numpy(np.array(next(iter(request.infer([batch]).values()))))

    return Variant(name, call, dtype, _width(case), reference)
