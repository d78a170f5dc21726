"""OpenAI's nine models (arXiv 2103.00020): TorchScript archives, named by their SHA-256."""

from diptych.zoo.row import Golden, Hub, Row, Url
from diptych.zoo.rows import build

__all__ = ["ROWS"]

_ADDRESS = "https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
_README = Golden(
    image=Url(url="https://raw.githubusercontent.com/openai/CLIP/main/CLIP.png"),
    texts=("a diagram", "a dog", "a cat"),
    probabilities=(0.9927937, 0.00421068, 0.00299572),
    source="openai/CLIP, README.md (computed in fp16)",
)
_CATS = Golden(
    image=Url(url="http://images.cocodataset.org/val2017/000000039769.jpg"),
    texts=("a photo of a cat", "a photo of a dog"),
    probabilities=(0.9948573, 0.0051427),  # softmax of the logits 24.5701 and 19.3049
    source="transformers, tests/models/clip/test_modeling_clip.py, test_inference",
)


def _row(
    name: str,
    file: str,
    sha256: str,
    timm: str,
    top1: float,
    *,
    hf: str | None = None,
    goldens: tuple[Golden, ...] = (),
) -> Row:
    """The archive, and the same weights in open_clip's and (of the ViTs) Hugging Face's layout."""
    copies = [Hub(repo=f"timm/{timm}.openai")]
    if hf:
        copies += [Hub(repo=f"openai/{hf}", weights=("model.safetensors", "pytorch_model.bin"))]
    return build(
        f"{name}/openai",
        Url(url=_ADDRESS.format(sha256=sha256, file=file), sha256=sha256),
        *copies,
        quick_gelu=True,
        top1=top1,
        goldens=goldens,
    )


ROWS = (
    _row(
        "RN50",
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        "resnet50_clip",
        59.82,
    ),
    _row(
        "RN101",
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        "resnet101_clip",
        62.28,
    ),
    _row(
        "RN50x4",
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        "resnet50x4_clip",
        66.27,
    ),
    _row(
        "RN50x16",
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        "resnet50x16_clip",
        70.72,
    ),
    _row(
        "RN50x64",
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        "resnet50x64_clip",
        73.91,
    ),
    _row(
        "ViT-B-32",
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "vit_base_patch32_clip_224",
        63.32,
        hf="clip-vit-base-patch32",
        goldens=(_README, _CATS),
    ),
    _row(
        "ViT-B-16",
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "vit_base_patch16_clip_224",
        68.34,
        hf="clip-vit-base-patch16",
    ),
    _row(
        "ViT-L-14",
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "vit_large_patch14_clip_224",
        75.54,
        hf="clip-vit-large-patch14",
    ),
    _row(
        "ViT-L-14-336",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "vit_large_patch14_clip_336",
        76.56,
        hf="clip-vit-large-patch14-336",
    ),
)
