"""openai/CLIP's README, zero-shot prediction: the five likeliest of a data set's classes."""

import clip
import torch
from torchvision.datasets import CIFAR100

model, preprocess = clip.load("RN50", "cpu")
cifar100 = CIFAR100(root=".", download=True, train=False)
image, class_id = cifar100[7]
prompts = [f"a photo of a {c}" for c in cifar100.classes]
image_input = preprocess(image).unsqueeze(0)
text_inputs = torch.cat([clip.tokenize(prompt) for prompt in prompts])

with torch.no_grad():
    image_features = model.encode_image(image_input)
    text_features = model.encode_text(text_inputs)
image_features /= image_features.norm(dim=-1, keepdim=True)
text_features /= text_features.norm(dim=-1, keepdim=True)
similarity = (100.0 * image_features @ text_features.T).softmax(dim=-1)
values, indices = similarity[0].topk(5)
for value, index in zip(values, indices, strict=True):
    print(f"{cifar100.classes[index]:>16s}: {100 * value.item():.2f}%")

RESULT = {
    "images": [image],
    "texts": prompts,
    "image_features": image_features,
    "text_features": text_features,
    "values": values,
    "indices": indices,
}
