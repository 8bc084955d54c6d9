"""What every fuzz target shares: its shape, mutations, ways to cut a stream, and the check that time stays linear.

A target is one function of bytes that raises if a promise is broken. Nothing here needs Atheris: `make test` runs the
seeds and deterministic mutations of them, `make fuzz` the same functions under coverage guidance (`__main__.py`).
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

Run = Callable[[bytes], object]

FUZZ = Path(__file__).parent
TESTS = FUZZ.parent

GROWN_BYTES = 128 * 1024
"""The size at which time is measured first."""

GROWTH = 4
"""How much smaller the input is that a slow one is compared with."""

MAX_RATIO = 2.5 * GROWTH
"""Linear time takes 4 times as long for 4 times as much, quadratic time 16 times."""

FLOOR_SECONDS = 0.05
"""Below this, fixed costs and the clock decide."""

CONFIRMATIONS = 3
RUNS_BETWEEN_MEASUREMENTS = 48
PIECE_BYTES = 256

NUMBERS = (
    b"0", b"3", b"5000", b"-1", b"1.5", b"1e999", b"9" * 20, b"9" * 5000, b"true", b"null", b"NaN", b"-0",
    b"18446744073709551616",
)  # fmt: skip
EDGES = (
    b"", b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\u0000", b"\\ud800",
    b" ",
)  # fmt: skip
BREAKS = b'\n\r,;:{}[]" '


class SuperLinear(AssertionError):
    """An input whose cost grows faster than its size."""


class Target(NamedTuple):
    """`check` raises if a promise is broken; `cost` is the part of it whose time must be linear in the input."""

    name: str
    check: Run
    cost: Run
    words: tuple[bytes, ...]
    shared_seeds: tuple[str, ...] = ()
    """Patterns under `tests/` of files that are seeds too."""
    grown_bytes: int = GROWN_BYTES
    max_bytes: int = 8 * 1024

    def seeds(self) -> list[Path]:
        """All seeds, in a stable order."""
        own = FUZZ.glob(f"seeds/{self.name}/*")
        shared = itertools.chain.from_iterable(map(TESTS.glob, self.shared_seeds))
        return sorted([*own, *(path for path in shared if path.name != "expected.json")])

    def run(self, data: bytes, *, measured: bool = False) -> None:
        """Check one input, and for each n-th of them, chosen by its bytes, that time stays linear."""
        self.check(data)
        random = randomness(data)
        if data and (measured or random.randrange(RUNS_BETWEEN_MEASUREMENTS) == 0):
            self.check_growth(data, random)

    def check_growth(self, data: bytes, random: Random) -> None:
        """Raise SuperLinear if a part of the input, repeated, takes more time than its size explains."""
        pumped = _pump(data, random)
        grown = pumped(self.grown_bytes)
        if _seconds(self.cost, grown) < FLOOR_SECONDS:
            return
        smaller = pumped(self.grown_bytes // GROWTH)
        # Confirmed again and again, since the machine may be busy; one fair measurement clears it.
        for attempt in range(1, CONFIRMATIONS + 1):
            slow = min(_seconds(self.cost, grown) for _ in range(attempt))
            quick = min(_seconds(self.cost, smaller) for _ in range(attempt))
            if slow < FLOOR_SECONDS or slow <= MAX_RATIO * quick:
                return
        raise SuperLinear(
            f"{self.name}: {len(smaller)} bytes take {quick:.3f} s, {len(grown)} take {slow:.3f} s: {smaller[:80]!r}"
        )


def randomness(data: bytes, salt: int = 0) -> Random:
    """Randomness that follows from the input, so that each input can be tried again as it was."""
    return Random(zlib.crc32(data, salt))


def _pump(data: bytes, random: Random) -> Callable[[int], bytes]:
    """Repeat a slice of the input up to a size; half of the slices begin and end where a value does."""
    breaks = [0, *(at + 1 for at, byte in enumerate(data) if byte in BREAKS), len(data)]
    places = breaks if random.random() < 0.5 else range(len(data) + 1)
    start, end = sorted(random.choices(places, k=2))
    if start == end:
        start, end = 0, len(data)
    before, part, after = data[:start], data[start:end], data[end:]
    return lambda size: before + part * max(1, (size - len(before) - len(after)) // len(part)) + after


def _seconds(run: Run, data: bytes) -> float:
    begun = time.thread_time()
    run(data)
    return time.thread_time() - begun


def mutated(data: bytes, random: Random, words: tuple[bytes, ...]) -> bytes:
    """One to four changes of the kinds that parsers stumble over."""
    for _ in range(random.randint(1, 4)):
        start, end = sorted(random.randint(0, len(data)) for _ in range(2))
        end = min(end, start + random.choice((0, 1, 8, 200)))
        word = random.choice(random.choice((words, words, NUMBERS, EDGES)))
        match random.randrange(6):
            case 0:
                data = data[:start] + word + data[start:]
            case 1:
                data = data[:start] + word + data[end:]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:end] * random.choice((1, 2, 30)) + data[end:]
            case 4:
                data = _with_number(data, random)
            case 5:
                data = data[:start] + bytes((random.randrange(256),)) + data[start + 1 :]
    return data


def _with_number(data: bytes, random: Random) -> bytes:
    digits = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not digits:
        return data
    start = end = random.choice(digits)
    while end < len(data) and 0x30 <= data[end] <= 0x39:
        end += 1
    return data[:start] + random.choice(NUMBERS) + data[end:]


def mutations(target: Target, number: int) -> Iterator[bytes]:
    """The first inputs of an endless, always equal sequence of mutated seeds."""
    seeds = [path.read_bytes() for path in target.seeds()]
    random = Random(0)
    for index in range(number):
        data = mutated(seeds[index % len(seeds)], random, target.words)
        if random.random() < 0.1:
            other = random.choice(seeds)
            data = data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]
        yield data[: target.max_bytes]


def pieces(data: bytes, size: int = PIECE_BYTES) -> list[bytes]:
    """Parts of equal size."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def segmentations(data: bytes) -> Iterator[list[bytes]]:
    """The input whole, cut in places that follow from it, and, if it is short, in single bytes."""
    yield [data] if data else []
    random = randomness(data, salt=1)
    for most in (1, 12):
        places = {random.randrange(1, len(data)) for _ in range(most)} if len(data) > 1 else set()
        yield [data[start:end] for start, end in itertools.pairwise([0, *sorted(places), len(data)])]
    if len(data) <= 600:
        yield pieces(data, 1)
