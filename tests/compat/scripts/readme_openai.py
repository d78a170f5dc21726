"""What openai/CLIP's README does first: the probability of each label for one picture."""

import clip
import torch
from PIL import Image

device = "cuda" if torch.cuda.is_available() else "cpu"
model, preprocess = clip.load("ViT-B/32", device=device)

labels = ["a diagram", "a dog", "a cat"]
image = preprocess(Image.open("dog.jpg")).unsqueeze(0).to(device)
text = clip.tokenize(labels).to(device)

with torch.no_grad():
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    logits_per_image, logits_per_text = model(image, text)
    probs = logits_per_image.softmax(dim=-1).cpu().numpy()

print("Label probs:", probs)

RESULT = {
    "images": ["dog.jpg"],
    "texts": labels,
    "image_features": image_features,
    "text_features": text_features,
    "logits": torch.cat([logits_per_image, logits_per_text.T]),
    "probs": probs,
}
