"""Rebuild st3/data/embedded/fashion_mnist.xz from the official Fashion-MNIST files.

    python scripts/make_embedded_data.py SOURCE_DIR [--check]

SOURCE_DIR holds the four official *-ubyte.gz files. --check writes nothing and fails where the data differ.
"""

import argparse
import gzip
import hashlib
import lzma
import sys
from pathlib import Path

from st3.data.datasets import EMBEDDED_FILE, EMBEDDED_TEST, EMBEDDED_TRAIN

HEADER_BYTES = {"images-idx3": 16, "labels-idx1": 8}
ITEM_BYTES = {"images-idx3": 28 * 28, "labels-idx1": 1}


def first(source: Path, split: str, part: str, count: int) -> bytes:
    """The first `count` items of one official file, without its header."""
    with gzip.open(source / f"{split}-{part}-ubyte.gz") as file:
        file.read(HEADER_BYTES[part])
        return file.read(count * ITEM_BYTES[part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE_DIR")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    payload = b"".join(
        first(args.source, split, part, count)
        for part in ("images-idx3", "labels-idx1")
        for split, count in (("train", EMBEDDED_TRAIN), ("t10k", EMBEDDED_TEST))
    )
    if not args.check:
        EMBEDDED_FILE.write_bytes(lzma.compress(payload, preset=9 | lzma.PRESET_EXTREME))
    elif payload != lzma.decompress(EMBEDDED_FILE.read_bytes()):
        sys.exit(f"{EMBEDDED_FILE} differs from {args.source}")
    print(f"{EMBEDDED_FILE}: sha256 of the data {hashlib.sha256(payload).hexdigest()}")


if __name__ == "__main__":
    main()
