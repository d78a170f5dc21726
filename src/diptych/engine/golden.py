"""Does a model give the numbers that its publisher printed? The test of a download.

The picture is fetched once, into our cache; pixels are the publisher's (mode="original") and the
arithmetic is fp32.
"""

import hashlib
from dataclasses import dataclass

from diptych import zoo
from diptych.engine.encoder import Encoder
from diptych.errors import DiptychError

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of one golden output.

    found: probabilities, in the order of `golden.texts`; None if it could not be computed.
    why_not: the reason, then.
    """

    golden: zoo.Golden
    found: tuple[float, ...] | None = None
    why_not: str | None = None

    @property
    def difference(self) -> float | None:
        """Largest difference of a probability."""
        if self.found is None:
            return None
        pairs = zip(self.found, self.golden.probabilities, strict=True)
        return max(abs(a - b) for a, b in pairs)

    @property
    def differs(self) -> bool:
        return self.difference is not None and not self.difference <= self.golden.tolerance

    def __str__(self) -> str:
        """One line: REPRODUCES, DIFFERS BY or NOT COMPARED, then the figures and their source."""
        if self.found is None:
            return f"NOT COMPARED with {self.golden.source}: {self.why_not}"
        if not self.differs:
            return (
                f"REPRODUCES {self.golden.source}: largest difference {self.difference:.2g}, "
                f"{self.golden.tolerance:g} is allowed"
            )
        return (
            f"DIFFERS BY {self.difference:.4f} from {self.golden.source}, where "
            f"{self.golden.tolerance:g} is allowed: {_numbers(self.found)}, published "
            f"{_numbers(self.golden.probabilities)}"
        )


def compare(encoder: Encoder, golden: zoo.Golden, *, offline: bool | None = None) -> Comparison:
    """Classify the golden picture with its texts; fetches the picture if it is not here.

    Args:
        encoder: in mode "original" and fp32, as the publisher computed.
    """
    name = hashlib.sha256(golden.image.url.encode()).hexdigest()[:16]
    folder = zoo.cache_folder() / "golden" / name
    try:
        picture = zoo.fetch_url(golden.image, folder, offline=offline)
        ranked = encoder.classify(picture, golden.texts)[0]
    except DiptychError as error:
        return Comparison(golden=golden, why_not=str(error))
    by_text = dict(ranked)
    return Comparison(golden=golden, found=tuple(by_text[text] for text in golden.texts))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6f}" for value in values)
