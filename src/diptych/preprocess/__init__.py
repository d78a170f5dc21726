"""Image -> pixels: safe opening, the publisher's exact arithmetic, batches, a tensor backend.

- Pillow is the reference. `mode="original"` gives the publisher's bits for every file;
  `mode="right"` gives the same bits for plain 8-bit RGB and grey files, and for the others what
  the file means: EXIF orientation, 16 bits, palettes and alpha are honoured.
- `pixels="near"` and `"fast"` are quicker and say how far they are from that: see `Preprocess`.
- Embedded ICC profiles are ignored in both modes: the models were trained so.
- One opener for every door (command line, training, server): what a file may cost is checked from
  its header, before it is decoded.
"""

from diptych.config import Patches
from diptych.preprocess.batch import collate, patchify
from diptych.preprocess.open import Limits, open_image
from diptych.preprocess.pipeline import Image, Preprocess, denormalise, normalise_batch
from diptych.preprocess.tensor import tensor_preprocess

__all__ = [
    "Image",
    "Limits",
    "Patches",
    "Preprocess",
    "collate",
    "denormalise",
    "normalise_batch",
    "open_image",
    "patchify",
    "tensor_preprocess",
]
