"""open_clip's README, usage: the probability of each label for one picture."""

import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms(
    "ViT-B-32", pretrained="laion2b_s34b_b79k"
)
model.eval()
tokenizer = open_clip.get_tokenizer("ViT-B-32")

labels = ["a diagram", "a dog", "a cat"]
image = preprocess(Image.open("cat.jpg")).unsqueeze(0)
text = tokenizer(labels)

with torch.no_grad(), torch.autocast("cpu", enabled=False):
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)

print("Label probs:", text_probs)

RESULT = {
    "images": ["cat.jpg"],
    "texts": labels,
    "image_features": image_features,
    "text_features": text_features,
    "probs": text_probs,
}
