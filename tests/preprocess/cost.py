"""Run in a child: what images cost. A line for each: MB above the start, CPU seconds, outcome.

    python tests/preprocess/cost.py SMALL FILE...

Every file in mode "right" and then in mode "original".

SMALL is read first, so that Pillow's plugins and torch's threads are not counted.
"""

import resource
import sys
import time
from pathlib import Path

from diptych.config import PreprocessConfig
from diptych.errors import ImageError
from diptych.preprocess import Preprocess


def peak() -> float:
    """MB; Linux counts in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    config = PreprocessConfig(size=(224, 224))
    modes = [Preprocess(config, "right"), Preprocess(config, "original")]
    for preprocess in modes:
        preprocess(Path(sys.argv[1]))
    before = peak()
    for path in sys.argv[2:]:
        for preprocess in modes:
            start = time.process_time()
            try:
                outcome = f"ok {tuple(preprocess(Path(path)).shape)}"
            except ImageError as error:
                outcome = f"refused: {error}"
            print(f"{peak() - before:.0f} {time.process_time() - start:.3f} {outcome}")


if __name__ == "__main__":
    main()
