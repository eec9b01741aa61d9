"""Which sizes are captured where nobody says."""

from __future__ import annotations


def default_capture_sizes(largest: int) -> tuple[int, ...]:
    """Sizes worth capturing up to ``largest``: 1, 2, 4, each 8 to 256, then each 16; and ``largest``.

    What serving engines use. Up to 8 rows a decode step waits for its weights, so a padded row costs next to
    nothing; from there on steps of 8 fill whole tiles of a matrix unit, and waste less the larger the batch.
    """
    sizes = {1, 2, 4, *range(8, 257, 8), *range(272, largest + 1, 16), largest}
    return tuple(sorted(size for size in sizes if 1 <= size <= largest))
