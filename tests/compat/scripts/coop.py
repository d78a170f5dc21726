"""A prompt learner in the manner of CoOp (arXiv 2109.01134), which reaches into the text tower."""

import torch
import torch.nn.functional as F
from clip import clip
from PIL import Image
from torch import nn

_tokenizer = clip._tokenizer
url = clip._MODELS["ViT-B/32"]
state_dict = torch.load(clip._download(url), map_location="cpu")
clip_model = clip.build_model(state_dict).float()
_, preprocess = clip.load("ViT-B/32", device="cpu")

CLASSES = ["cat", "dog", "Eiffel Tower", "pair of scissors"]


class TextEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.transformer = model.transformer
        self.positional_embedding = model.positional_embedding
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.dtype = model.dtype

    def forward(self, prompts, tokenized):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = x.permute(1, 0, 2)  # n s d -> s n d
        x = self.transformer(x)
        x = x.permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        return x[torch.arange(x.shape[0]), tokenized.argmax(dim=-1)] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, classnames, model):
        super().__init__()
        start = clip.tokenize("a photo of a")
        num_context = len(_tokenizer.encode("a photo of a"))
        with torch.no_grad():
            context = model.token_embedding(start)[0, 1 : 1 + num_context]
        self.context = nn.Parameter(context.type(model.dtype).clone())
        self.name_lengths = [len(_tokenizer.encode(name)) for name in classnames]
        self.texts = [f"a photo of a {name}." for name in classnames]
        self.tokenized = torch.cat([clip.tokenize(text) for text in self.texts])
        with torch.no_grad():
            embedding = model.token_embedding(self.tokenized).type(model.dtype)
        self.register_buffer("prefix", embedding[:, :1])
        self.register_buffer("suffix", embedding[:, 1 + num_context :])

    def forward(self):
        context = self.context.unsqueeze(0).expand(len(self.texts), -1, -1)
        return torch.cat([self.prefix, context, self.suffix], dim=1)


files = ["cat.jpg", "dog.jpg", "eiffel-tower.jpg", "scissors.jpg"]
images = torch.stack([preprocess(Image.open(file)) for file in files])
for parameter in clip_model.parameters():
    parameter.requires_grad_(False)
learner, encoder = PromptLearner(CLASSES, clip_model), TextEncoder(clip_model)
optimizer = torch.optim.SGD(learner.parameters(), lr=0.02)
with torch.no_grad():
    image_features = F.normalize(clip_model.encode_image(images), dim=-1)
    first = encoder(learner(), learner.tokenized)

losses = []
for _ in range(5):
    text_features = F.normalize(encoder(learner(), learner.tokenized), dim=-1)
    logits = clip_model.logit_scale.exp() * image_features @ text_features.t()
    loss = F.cross_entropy(logits, torch.arange(len(files)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print("losses:", losses)

RESULT = {
    "images": files,
    "texts": learner.texts,
    "image_features": image_features,
    "text_features": first,
    "losses": torch.tensor(losses),
    "context": learner.context.detach(),
    "name_lengths": torch.tensor(learner.name_lengths),
}
