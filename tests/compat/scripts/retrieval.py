"""Image-text retrieval with open_clip: recall in both directions, and its classifier helper."""

from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms(
    "ViT-B/32", pretrained="laion2b-s34b-b79k", device="cpu"
)
model = model.eval()
tokenizer = open_clip.get_tokenizer("ViT-B-32")
files = sorted(path.name for path in Path().glob("*.jpg"))
captions = [f"a picture of a {file.removesuffix('.jpg')}, taken outdoors" for file in files]

with torch.no_grad():
    images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    image_features = F.normalize(model.encode_image(images), dim=-1)
    text_features = model.encode_text(tokenizer(captions), normalize=True)
    pair = model(images, tokenizer(captions))
    logits = model.get_logits(images, tokenizer(captions))[0]

scores = text_features @ image_features.t()
order = scores.argsort(dim=1, descending=True)
for k in (1, 5):
    hit = (order[:, :k] == torch.arange(len(files))[:, None]).any(dim=1).float().mean()
    print(f"text to image R@{k}: {100 * hit:.1f}")

weights = open_clip.build_zero_shot_classifier(
    model, tokenizer, ["cat", "dog", "boat"], ["a photo of a {}.", "art of a {}"]
)

RESULT = {
    "images": files,
    "texts": captions,
    "image_features": image_features,
    "text_features": text_features,
    "pair": torch.cat(pair[:2]),
    "scale": pair[2],
    "logits": logits,
    "order": order[:, :1],
    "weights": weights,
}
