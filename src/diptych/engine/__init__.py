"""`Encoder`: a loaded model with everything that belongs to it, and how it is made and run."""

from diptych.engine.encoder import Encoder
from diptych.engine.load import build, load
from diptych.engine.stream import Batch

__all__ = ["Batch", "Encoder", "build", "load"]
