"""The losses against open_clip's, value and gradients; and the Triton kernels, interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from report import record

from diptych.model import loss as reference
from diptych.train import streamed

SECTION = "Losses"
REFERENCE = "the readable loss"
BOTH = pytest.mark.parametrize("room", [reference, streamed], ids=["reference", "streamed"])


def batch(n: int = 300, e: int = 64, scale: float = 30.0) -> list[torch.Tensor]:
    """Images, texts, scale, bias in float64: pairs at a cosine of about 0.7."""
    image = F.normalize(torch.randn(n, e).double(), dim=1)
    text = F.normalize(image + torch.randn(n, e).double() / 8, dim=1)
    both = [image, text, torch.tensor(scale).double(), torch.tensor(-10.0).double()]
    return [x.requires_grad_() for x in both]


def with_gradients(function, inputs, *others) -> list[torch.Tensor]:
    value = function(*inputs, *others)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def largest(ours, theirs) -> float:
    """Difference, relative to the largest number of each value or gradient."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@BOTH
def test_softmax(room):
    inputs = batch()[:3]
    theirs = with_gradients(ClipLoss(), inputs)
    error = largest(with_gradients(room.softmax_loss, inputs), theirs)
    record(SECTION, f"softmax, {room.__name__}, float64", error, 1e-11, "open_clip_torch")


@BOTH
def test_sigmoid(room):
    inputs = batch()
    theirs = with_gradients(SigLipLoss(), inputs)
    error = largest(with_gradients(room.sigmoid_loss, inputs), theirs)
    record(SECTION, f"sigmoid, {room.__name__}, float64", error, 1e-11, "open_clip_torch")


@BOTH
def test_distillation(room):
    inputs, teacher = batch()[:3], [x.detach() for x in batch(scale=12.0)[:3]]

    def theirs(image, text, scale, *teacher):
        return DistillClipLoss()(image, text, scale, *teacher)[1]

    expected = with_gradients(theirs, inputs, *teacher)
    error = largest(with_gradients(room.distillation_loss, inputs, *teacher), expected)
    record(SECTION, f"distillation, {room.__name__}, float64", error, 1e-11, "open_clip_torch")


def test_triton_kernels_in_its_interpreter():
    """No GPU here: this shows the arithmetic, not that the compiler takes it."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    record(SECTION, "Triton kernels, float32 to float64", float(done.stdout), 1e-5, REFERENCE)


@pytest.mark.filterwarnings("ignore::UserWarning:triton")
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernels_compile_for_gpus_that_are_not_here(capability):
    """To machine code, with the tensor cores' instruction for bfloat16."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diptych.train import streamed_triton as kernels

    pointers = {"rows": "*bf16", "columns": "*bf16", "out": "*bf16"}
    pointers |= {"row_ids": "*i64", "column_ids": "*i64"}
    sizes = {"b": "i32", "m": "i32", "e": "i32"}
    blocks = {name: getattr(kernels, name) for name in ("BLOCK_R", "BLOCK_C", "BLOCK_E")}
    for kernel in (kernels._logsumexp, kernels._derivative):
        kinds = dict.fromkeys(kernel.arg_names, "*fp32") | pointers | sizes
        kinds |= dict.fromkeys(blocks, "constexpr")
        source = ASTSource(
            fn=kernel,
            signature={name: kinds[name] for name in kernel.arg_names},
            constexprs={(kernel.arg_names.index(name),): size for name, size in blocks.items()},
        )
        target = GPUTarget("cuda", capability, 32)
        code = triton.compile(source, target=target, options={"num_warps": kernels.WARPS}).asm
        assert code["cubin"]
        assert ("wgmma" if capability == 90 else "mma.sync") in code["ptx"]
