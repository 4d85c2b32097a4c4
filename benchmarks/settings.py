"""The settings of `make bench`."""

from __future__ import annotations

from dataclasses import dataclass

FULL_N, FULL_ROUNDS = 20_000, 3
IMAGE_BYTES = 42_000  # the mean of images, plus the store's overhead


@dataclass(frozen=True, slots=True)
class Settings:
    n: int = FULL_N
    rounds: int = FULL_ROUNDS
    scenes: tuple[str, ...] = ()
    write: bool = True
    keep: bool = False

    @property
    def quick(self) -> bool:
        return self.n < FULL_N

    @property
    def limited(self) -> int:
        """Objects for Ferry from the origin that allows 200 requests/s: 100 s, or a few seconds in a quick run."""
        return self.n if not self.quick else self.limited_peers

    @property
    def limited_peers(self) -> int:
        """Objects for the peers from that origin. With more, they lose objects or take hours."""
        return 2_000 if not self.quick else min(self.n, max(1_000, self.n * 3 // 10))

    @property
    def many(self) -> int:
        """Images that are copied under five prefixes each: 100,000 objects."""
        return self.n // 2 if self.quick else self.n

    @property
    def large(self) -> tuple[int, int]:
        """The number of large objects, and megabytes of each."""
        return (4, 50) if self.quick else (20, 200)

    @property
    def room(self) -> int:
        """The most bytes that a bench needs: f keeps one copy for g and checks another; h reads and writes."""
        count, megabytes = self.large
        return max(2 * 5 * self.many * IMAGE_BYTES, 2 * count * megabytes * 1_000_000)

    @property
    def patience(self) -> tuple[float, float]:
        """The seconds that a run may take, and the longest wait for an idle machine before it."""
        return (180.0, 1.0) if self.quick else (3600.0, 15.0)
