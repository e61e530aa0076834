"""What the readers do with kinds of image file and folder entry, each among good images: a table, in both modes.

What is right stands with each kind in ``tests/data/image_kinds.py``. The exit code is 1 where one is wrong.
Run as ``python tests/benchmarks/run_image_files.py [WORD]``; a word chooses the kinds whose names hold it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from image_kinds import KINDS, tried


def main(word: str = "") -> int:
    """Print the table and return how many kinds are wrong."""
    torch.set_num_threads(1)
    print(f"| kind | right | error | skip | |\n|{'---|' * 5}")
    wrong = []
    chosen = [kind for kind in KINDS if word in kind.name]
    for kind in chosen:
        error, skip = tried(kind, "error"), tried(kind, "skip")
        ok = error.right and skip.right
        print(f"| {kind.name} | {kind.right} | {error.word} | {skip.word} | {'ok' if ok else 'WRONG'} |", flush=True)
        if not ok:
            wrong.append((kind, error, skip))
    for kind, error, skip in wrong:
        print(f"\n{kind.name}\n  error: {error.text.strip()}\n  skip: {skip.text.strip()}")
    print(f"\n{len(chosen) - len(wrong)} of {len(chosen)} kinds are right in both modes")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]) > 0)
