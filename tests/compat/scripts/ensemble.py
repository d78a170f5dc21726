"""Zero-shot classification of a folder with an ensemble of prompts a class."""

from pathlib import Path

import clip
import torch
from PIL import Image

CLASSES = ["cat", "dog", "bridge", "guitar", "crab"]
TEMPLATES = [
    "a photo of a {}.",
    "a blurry photo of the {}.",
    "itap of my {}.",
    "a {} in a video game.",
]

model, preprocess = clip.load("ViT-B/32", device="cpu", jit=False)


def zeroshot_classifier(classnames, templates):
    with torch.no_grad():
        weights = []
        for classname in classnames:
            texts = clip.tokenize([template.format(classname) for template in templates])
            embeddings = model.encode_text(texts)
            embeddings /= embeddings.norm(dim=-1, keepdim=True)
            mean = embeddings.mean(dim=0)
            weights.append(mean / mean.norm())
        return torch.stack(weights, dim=1)


weights = zeroshot_classifier(CLASSES, TEMPLATES)
files = sorted(path.name for path in Path().glob("*.jpg"))
batch = torch.stack([preprocess(Image.open(file)) for file in files])
with torch.no_grad():
    image_features = model.encode_image(batch)
    image_features /= image_features.norm(dim=-1, keepdim=True)
logits = 100.0 * image_features @ weights
for file, row in zip(files, logits, strict=True):
    print(file, CLASSES[int(row.argmax())])

RESULT = {
    "images": files,
    "image_features": image_features,
    "weights": weights,
    "logits": logits,
    "top": logits.topk(2, dim=1).indices,
}
