"""CLIP as a whole system: two towers, one embedding space."""
