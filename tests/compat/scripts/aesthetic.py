"""An aesthetic score: a small network on normalised image features, as the LAION predictor is."""

from pathlib import Path

import clip
import numpy as np
import torch
from PIL import Image
from torch import nn

model, preprocess = clip.load("ViT-B/32", device="cpu")


class Head(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, 32), nn.Dropout(0.2), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def forward(self, x):
        return self.layers(x)


def normalized(a, axis=-1, order=2):
    norm = np.atleast_1d(np.linalg.norm(a, order, axis))
    norm[norm == 0] = 1
    return a / np.expand_dims(norm, axis)


torch.manual_seed(0)
head = Head(model.visual.output_dim).eval()
files = sorted(path.name for path in Path().glob("*.jpg"))
rows, scores = [], []
for file in files:
    image = preprocess(Image.open(file)).unsqueeze(0)
    with torch.no_grad():
        features = normalized(model.encode_image(image).cpu().detach().numpy())
        scores.append(head(torch.from_numpy(features).type(torch.FloatTensor)).item())
    rows.append(features)
    print(file, f"{scores[-1]:.4f}")

RESULT = {"images": files, "image_features": np.concatenate(rows), "scores": np.array(scores)}
