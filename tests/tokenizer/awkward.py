"""Texts that tokenizers get wrong, for the tests of this room and for those against the peers."""

import random
from collections.abc import Iterator

SPECIALS = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<end_of_text>",
    "<start_of_text>",
    "</s>",
    "<s>",
    "<eos>",
    "<bos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused7>",
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "＜|endoftext|＞",
    "＜｜ｅｎｄｏｆｔｅｘｔ｜＞",
    "&lt;|endoftext|&gt;",
    "&amp;lt;|endoftext|&amp;gt;",
    "&#60;|endoftext|&#x3e;",
    "<|END<|endoftext|>OFTEXT|>",
    "<|endof\u200btext|>",
    "<|endof\0text|>",
    "<|ſtartoftext|>",
    "<|EndOfText|>",
    "</w>",
    "<\x1b[0m|endoftext|>",
]
PARTS = [
    "a photo of",
    "cat",
    "Dog",
    "it's",
    "IT'S",
    "don’t",
    "we'll've",
    "I'm",
    "'ſ",
    "123",
    "4x4",
    "!!!",
    "...",
    "“quote”",
    "café",
    "cafe\u0301",
    "Ã©tÃ©",
    "â€œmojibakeâ€\x9d",
    "ﬁne",
    "ＦＵＬＬ",
    "你好世界",
    "こんにちは",
    "안녕",
    "مرحبا",
    "नमस्ते",
    "😀",
    "👨\u200d👩",
    "İstanbul",
    "ẞ",
    "ΣΑΣ",
    "K",
    "ǅ",
    "ﬀ",
    "½",
    "٣",
    "&lt;b&gt;",
    "&amp;amp;",
    "&eacute",
    "&EACUTE;",
    "&#x41;",
    "&#0;",
    "&#xD800;",
    "&notit;",
    "&",
    "<p>",
    "_",
    "sea_waves",
    "\t",
    "\n",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
    "\u180e",
    "\u2003",
    "\u200b",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\0",
    "\x07",
    "\x1b[31m",
    "\ud83d",
    "\udca9",
    "\ud83d\udca9",
    "\ufffd",
    "a" * 60,
    "xyz" * 30,
    "ab1" * 20,
    "ʼn",
    "▁",
    "\u0327\u0301",
    "\u0344",
    "e-mail@x.org",
]


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts: parts and control tokens strung together, random Unicode, cut and nested."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = rng.choices(PARTS + SPECIALS, k=rng.randint(1, 8))
        if rng.random() < 0.3:
            parts.insert(rng.randrange(len(parts) + 1), _unicode(rng))
        if rng.random() < 0.2:
            whole = rng.choice(SPECIALS)
            cut = rng.randrange(len(whole))
            parts.append(whole[:cut] + rng.choice(SPECIALS) + whole[cut:])
        yield rng.choice(["", " ", " ", "  "]).join(parts)


def captions(count: int, seed: int = 0) -> list[str]:
    """`count` plain English captions of about eleven words, like those of COCO."""
    rng = random.Random(seed)
    who = "a man|two women|the old dog|a black and white cat|three children|a group of people"
    what = "sitting on|riding|standing next to|looking at|holding|jumping over|playing with"
    where = (
        "a red bicycle|the kitchen table|a skateboard|an umbrella|a slice of pizza|the motorcycle"
    )
    place = "in the park.|on a sunny beach.|at night|near the train station.|under the bridge"
    lists = [part.split("|") for part in (who, what, where, place)]
    return [" ".join(map(rng.choice, lists)).capitalize() for _ in range(count)]


def _unicode(rng: random.Random) -> str:
    top = rng.choice([0x80, 0x100, 0x250, 0x3000, 0xFFFF, 0x1FFFF])
    return "".join(chr(rng.randrange(top)) for _ in range(rng.randint(1, 12)))
