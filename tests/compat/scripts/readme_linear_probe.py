"""openai/CLIP's README, linear probe: logistic regression on image features."""

import clip
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR100

model, preprocess = clip.load("ViT-B/32", "cpu")
train = CIFAR100(".", download=True, train=True, transform=preprocess)
test = CIFAR100(".", download=True, train=False, transform=preprocess)


def get_features(dataset):
    features, labels = [], []
    with torch.no_grad():
        for images, targets in DataLoader(dataset, batch_size=16):
            features.append(model.encode_image(images))
            labels.append(targets)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


train_features, train_labels = get_features(train)
test_features, test_labels = get_features(test)
classifier = LogisticRegression(random_state=0, C=0.316, max_iter=1000)
classifier.fit(train_features, train_labels)
predictions = classifier.predict(test_features)
accuracy = np.mean((test_labels == predictions).astype(float)) * 100.0
print(f"Accuracy = {accuracy:.3f}")

RESULT = {
    "images": [picture for picture, _ in CIFAR100(".", train=False)],
    "image_features": test_features,
    "train_features": train_features,
    "predictions": predictions,
    "accuracy": accuracy,
    "probabilities": classifier.predict_proba(test_features),
}
