"""Judgements on pictures: how well a text fits, how they look, what they show, what is wrong."""

__all__: list[str] = []
