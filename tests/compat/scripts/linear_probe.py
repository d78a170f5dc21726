"""A linear probe on open_clip features, through a Dataset whose transform is the preprocess."""

from pathlib import Path

import open_clip
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, Dataset

model, preprocess = open_clip.create_model_from_pretrained("ViT-B-32", "laion2b_s34b_b79k")
model.eval()
for parameter in model.parameters():
    parameter.requires_grad_(False)


class Folder(Dataset):
    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.transform(Image.open(self.files[i])), i % 2


files = sorted(path.name for path in Path().glob("*.jpg"))
features, labels = [], []
for images, targets in DataLoader(Folder(files, preprocess), batch_size=4):
    features.append(model.encode_image(images, normalize=True))
    labels.append(targets)
features, labels = torch.cat(features).numpy(), torch.cat(labels).numpy()
probe = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
print("accuracy", probe.score(features, labels))

RESULT = {
    "images": files,
    "image_features": features,
    "probabilities": probe.predict_proba(features),
}
