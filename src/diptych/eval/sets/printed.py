"""Printed sets whose truth is known: digits, words, and short reviews that please or do not.

The font is Pillow's own (Aileron). The reviews are in the manner of Rendered SST2 (black on white,
448 x 448; CLIP paper, appendix A.2), and their sentences are our own.
"""

from __future__ import annotations

import random
from functools import partial

from PIL import Image, ImageDraw, ImageFont

from diptych.eval.sets.row import Sample, Samples

__all__ = ["rendered_digits", "rendered_reviews", "rendered_words"]

_SIDE, _PAGE, _MARGIN = 224, 448, 32
_PER_DIGIT, _PER_WORD = 20, 3
_INKS = ((16, 16, 16), (150, 20, 24), (20, 50, 150), (18, 90, 40), (90, 30, 110))

_WORDS = tuple(
    word
    for line in (
        "apple bread bridge butter camera candle castle cheese circle clock cloud coffee",
        "dinner doctor dragon engine family finger flower forest garden guitar hammer harbour",
        "honey island jacket kitchen ladder lemon market mirror monkey mountain needle ocean",
        "orange paper pencil piano planet pocket rabbit river rocket saddle salad school",
        "shadow silver spider summer table ticket tiger tractor valley village window winter",
    )
    for word in line.split()
)

_GOOD = (
    "A warm and funny film that I would gladly see again.",
    "The acting is superb and the last scene is unforgettable.",
    "Every minute of it is a pleasure.",
    "A clever story, told with wit and great tenderness.",
    "I left the cinema happy and a little wiser.",
    "One of the best comedies of the year.",
    "Beautiful pictures, wonderful music, perfect timing.",
    "It made me laugh, cry and laugh once more.",
    "A small masterpiece with a big heart.",
    "The children loved it, and so did their grandparents.",
    "A thrilling ride from the first shot to the last.",
    "Fresh, lively and full of surprises.",
    "The director has never been better.",
    "A moving portrait of two brave women.",
    "Rarely has a documentary been so exciting.",
    "Two hours that feel like twenty minutes.",
    "An honest and touching look at growing old.",
    "The jokes land, and the songs are a delight.",
    "Smart, elegant and deeply satisfying.",
    "A joyful adventure that deserves every award.",
    "The cast has real charm and it shows.",
    "Gripping, beautifully written and superbly filmed.",
    "I could not stop smiling.",
    "A triumph of imagination.",
    "It is tender without ever being sweet, and very wise.",
    "The best sequel that I have ever seen.",
    "A gem that nobody should miss.",
    "Brilliant dialogue and a finale that takes your breath away.",
    "This is cinema at its most generous.",
    "Charming from beginning to end.",
)
_BAD = (
    "A dull and noisy film that I wanted to leave.",
    "The acting is wooden and the last scene makes no sense.",
    "Every minute of it is a chore.",
    "A stupid story, told without wit or feeling.",
    "I left the cinema bored and a little angry.",
    "One of the worst comedies of the year.",
    "Ugly pictures, terrible music, hopeless timing.",
    "It made me yawn, sigh and yawn once more.",
    "A big failure with a small idea.",
    "The children hated it, and so did their grandparents.",
    "A tedious ride from the first shot to the last.",
    "Stale, lifeless and without a single surprise.",
    "The director has never been worse.",
    "A clumsy portrait of two annoying women.",
    "Rarely has a documentary been so boring.",
    "Ninety minutes that feel like a week.",
    "A dishonest and shallow look at growing old.",
    "The jokes fall flat, and the songs are a torture.",
    "Silly, careless and deeply disappointing.",
    "A joyless adventure that deserves to be forgotten.",
    "The cast has no charm and it shows.",
    "Confused, badly written and poorly filmed.",
    "I could not stop looking at my watch.",
    "A failure of imagination.",
    "It is loud without ever being funny, and very empty.",
    "The worst sequel that I have ever seen.",
    "A mess that everybody should avoid.",
    "Awful dialogue and a finale that insults your intelligence.",
    "This is cinema at its most cynical.",
    "Irritating from beginning to end.",
)


def rendered_digits() -> Samples:
    """A printed digit, large, in some ink, a little turned; 20 of each."""
    digits = "0123456789"
    samples = [
        Sample(f"{digit}-{i}", partial(_printed, digit, i, 0.45, 0.75), labels=(int(digit),))
        for digit in digits
        for i in range(_PER_DIGIT)
    ]
    return Samples(samples=samples, classes=tuple(digits))


def rendered_words() -> Samples:
    """A printed word of 5 to 8 letters among 60; three pictures of each."""
    samples = [
        Sample(f"{word}-{i}", partial(_printed, word, i, 0.14, 0.2), labels=(label,))
        for label, word in enumerate(_WORDS)
        for i in range(_PER_WORD)
    ]
    return Samples(samples=samples, classes=_WORDS)


def rendered_reviews() -> Samples:
    """A printed sentence about a film, 30 that blame (class 0) and 30 that praise (class 1)."""
    samples = [
        Sample(f"{name}-{i}", partial(_page, text), labels=(label,))
        for label, (name, texts) in enumerate((("negative", _BAD), ("positive", _GOOD)))
        for i, text in enumerate(texts)
    ]
    return Samples(samples=samples, classes=("negative", "positive"))


def _printed(text: str, number: int, least: float, most: float) -> Image.Image:
    """A text on a light ground; its height is between two shares of the side, and it fits."""
    rng = random.Random(f"printed {text} {number}")
    level = rng.randint(228, 255)
    image = Image.new("RGB", (_SIDE, _SIDE), (level, level, level))
    size = rng.uniform(least, most) * _SIDE
    font = ImageFont.load_default(size)
    widest = 0.85 * _SIDE
    if (width := font.getlength(text)) > widest:
        font = ImageFont.load_default(size * widest / width)
    at = tuple(_SIDE / 2 + rng.uniform(-0.04, 0.04) * _SIDE for _ in range(2))
    ImageDraw.Draw(image).text((at[0], at[1]), text, rng.choice(_INKS), font, anchor="mm")
    return image.rotate(
        rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=(level, level, level)
    )


def _page(text: str) -> Image.Image:
    """A sentence in lines, black on white, in the middle of the page."""
    image = Image.new("RGB", (_PAGE, _PAGE), (255, 255, 255))
    font = ImageFont.load_default(34)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > _PAGE - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    ImageDraw.Draw(image).multiline_text(
        (_PAGE / 2, _PAGE / 2), "\n".join(lines), (0, 0, 0), font, anchor="mm", align="center"
    )
    return image
