"""Follows every quota: what is left, how fast it burns, when it is exhausted; report and gauges."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.catalog import Metric
from mcpmeter.catalog import quota as rows
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.rate_limit_headers import MAX_COUNT, NS_PER_S, Sample, read

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

BURN_NS: Final = 300 * NS_PER_S
"""How far back the burn rate looks."""
BETWEEN_POINTS_NS: Final = 5 * NS_PER_S
MIN_BURN_NS: Final = NS_PER_S
RESET_SLACK_NS: Final = NS_PER_S
"""Providers report resets in whole seconds of clocks that differ from ours."""
BETWEEN_READS_NS: Final = NS_PER_S // 10
FORGOTTEN_AFTER_NS: Final = 3600 * NS_PER_S
MAX_QUOTAS: Final = 1024
MAX_POOLS: Final = 16
MAX_SOURCES: Final = 512

PublicName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class QuotaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One quota at one instant; the tightest of several models' quotas of one name."""

    provider: PublicName
    credential: PublicName
    resource: PublicName
    limit: Count | None
    remaining: Count | None
    """As last reported; the limit once the announced reset has passed."""
    reset_at: Instant | None
    resets_in_seconds: Seconds | None
    burn_per_second: Seconds | None
    """Net of refills; None until two responses of one window are known."""
    exhausted_in_seconds: Seconds | None
    """None: it resets first, or nothing burns."""
    reported_at: Instant


class QuotaReport(msgspec.Struct, frozen=True, kw_only=True):
    """Response of `/api/quota`."""

    at: Instant
    quotas: list[QuotaStatus]


class Track:
    """One quota over time: the last report, and points of the present window from which the burn rate is measured.

    A track is in one window. A report stays in it, and may add a point, until the window ends: its announced reset (or
    its known length) has passed, the limit changes, remaining rises without an announced reset, or the clock steps
    back. Then the points are dropped and the report starts the next window. Between reports the track ages by itself:
    after the reset the whole limit is left, and an hour without a report ends the track.
    """

    __slots__ = ("_points", "limit", "remaining", "reset_at_ns", "seen_at_ns", "window_ns")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.remaining: int | None = None
        self.reset_at_ns: int | None = None
        self.window_ns = 0
        self.seen_at_ns = 0
        self._points: deque[tuple[int, int]] = deque(maxlen=BURN_NS // BETWEEN_POINTS_NS + 1)
        """(Unix ns, remaining), the oldest first, at least `BETWEEN_POINTS_NS` apart."""

    def take(self, sample: Sample, now: int) -> None:
        """Record a report."""
        if self._is_another_window(sample, now):
            self._points.clear()
        self.limit = self.limit if sample.limit is None else sample.limit
        self.remaining, self.reset_at_ns, self.window_ns = sample.remaining, sample.reset_at_ns, sample.window_ns
        self.seen_at_ns = now
        if self.remaining is not None and (not self._points or now - self._points[-1][0] >= BETWEEN_POINTS_NS):
            self._points.append((now, self.remaining))

    def _is_another_window(self, sample: Sample, now: int) -> bool:
        if now < self.seen_at_ns or sample.remaining is None or self.remaining is None:
            return True
        if None not in (sample.limit, self.limit) and sample.limit != self.limit:
            return True
        ends_at_ns = self.ends_at_ns
        # A token bucket refills while it burns: a rise before the announced end is not a reset, but less burn.
        return sample.remaining > self.remaining if ends_at_ns is None else now >= ends_at_ns - RESET_SLACK_NS

    @property
    def ends_at_ns(self) -> int | None:
        """When the quota is whole again: the announced reset, else a window's length after the report."""
        if self.reset_at_ns is None and self.window_ns:
            return self.seen_at_ns + self.window_ns
        return self.reset_at_ns

    def has_reset(self, now: int) -> bool:
        """Whether the reported window is over."""
        return self.ends_at_ns is not None and now >= self.ends_at_ns

    def left(self, now: int) -> int | None:
        """What remains; after the reset the whole limit, by every provider's definition."""
        return self.limit if self.has_reset(now) else self.remaining

    def burn_per_second(self, now: int) -> float | None:
        """Net burn over the last minutes of this window; it fades without new responses."""
        first = next((point for point in self._points if point[0] >= now - BURN_NS), None)
        if first is None or self.remaining is None or self.has_reset(now):
            return None
        if self.seen_at_ns == first[0] or now - first[0] < MIN_BURN_NS:
            return None
        return max(0, first[1] - self.remaining) * NS_PER_S / (now - first[0])

    def exhausted_in_seconds(self, now: int) -> float | None:
        """Seconds until nothing is left at the current burn; None if it resets first or nothing burns."""
        left, burn = self.left(now), self.burn_per_second(now)
        if left == 0 and not self.has_reset(now):
            return 0.0
        if left is None or not burn:
            return None
        seconds = left / burn
        resets_first = self.ends_at_ns is not None and now + seconds * NS_PER_S >= self.ends_at_ns
        return None if resets_first else seconds

    def is_over(self, now: int) -> bool:
        """Whether there is nothing more to show: a Retry-After has passed, or the last report is too old."""
        end = self.seen_at_ns if self.ends_at_ns is None else max(self.ends_at_ns, self.seen_at_ns)
        is_empty = self.limit is None and self.left(now) is None
        return now >= end + (0 if is_empty else FORGOTTEN_AFTER_NS)

    def tightness(self, now: int) -> tuple[float, float, int]:
        """Smaller is tighter: exhausted soonest, then the smallest share left, then the latest reset."""
        exhausted = self.exhausted_in_seconds(now)
        return math.inf if exhausted is None else exhausted, self._share(now), -(self.ends_at_ns or 0)

    def _share(self, now: int) -> float:
        left = self.left(now)
        if self.limit == 0 or left == 0:
            return 0.0
        return math.inf if self.limit is None or left is None else left / self.limit


class _Source:
    """Headers of the last response of one credential and model, until they are read."""

    __slots__ = ("headers", "read_at_ns", "seen_at_ns", "style")

    def __init__(self) -> None:
        self.headers: Mapping[str, str] | None = None
        self.style = ""
        self.seen_at_ns = 0
        self.read_at_ns = 0


Quota = tuple[str, str, str]
"""Provider, credential, resource."""


class QuotaTracker:
    """All quotas. Used from one thread; `now` is always Unix ns.

    Providers count models separately, so a call's model is its `pool`: each pool has its own track, and the tightest of
    one credential and resource is shown. Bounded: the quota without a report for longest makes room.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._sources: dict[tuple[str, str, str], _Source] = {}
        self._tracks: dict[Quota, dict[str, Track]] = {}
        self._exported: dict[Quota, dict[str, str]] = {}

    def register(self, credentials: Iterable[str]) -> None:
        """Add credentials' public ids to the label's closed set; others are shown as `other`."""
        self._recorder.label_allowlist.register(rows.CREDENTIAL.allowlist, credentials)

    def note(
        self, provider: str, credential: str, headers: Mapping[str, str], style: str, *, now: int, pool: str = ""
    ) -> None:
        """Record a response's headers, which must not change afterwards: most are read only by a report or scrape."""
        key = (provider, credential, pool)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
            _make_room(self._sources, MAX_SOURCES)
        source.headers, source.style, source.seen_at_ns = headers, style, now
        if not 0 <= now - source.read_at_ns < BETWEEN_READS_NS:
            self._read(key, source)

    def take(self, provider: str, credential: str, samples: Iterable[Sample], *, now: int, pool: str = "") -> None:
        """Record a response's samples."""
        for sample in samples:
            quota = (provider, credential, sample.resource)
            pools = self._tracks.pop(quota, None) or {}
            track = pools.pop(pool, None) or Track()
            track.take(sample, now)
            pools[pool] = track
            self._tracks[quota] = pools  # moves it to the end: the first entry is without a report for longest
            _make_room(pools, MAX_POOLS)
            _make_room(self._tracks, MAX_QUOTAS)

    def report(self, now: int) -> QuotaReport:
        """All quotas, ordered by their names."""
        self._settle(now)
        statuses = [_status(quota, _tightest(pools, now), now) for quota, pools in sorted(self._tracks.items())]
        return QuotaReport(at=_instant(now), quotas=statuses)

    def publish(self, now: int) -> None:
        """Write the gauges and remove those of unknown values. Called just before a scrape's copy."""
        self._settle(now)
        for quota in [quota for quota in self._exported if quota not in self._tracks]:
            self._write(self._exported.pop(quota), dict.fromkeys(rows.ROWS))
        for quota, pools in self._tracks.items():
            if quota not in self._exported:
                names = dict(zip(("provider", "credential", "resource"), quota, strict=True))
                self._exported[quota] = self._recorder.clamp_all(rows.LIMIT, names)
            track = _tightest(pools, now)
            exhausted = track.exhausted_in_seconds(now)
            values = {
                rows.LIMIT: track.limit,
                rows.REMAINING: track.left(now),
                rows.RESET: None if track.reset_at_ns is None else -(-track.reset_at_ns // NS_PER_S),
                rows.EXHAUSTION: None if exhausted is None else int(exhausted),
            }
            self._write(self._exported[quota], values)

    def _write(self, labels: Mapping[str, str], values: Mapping[Metric, int | None]) -> None:
        for row, value in values.items():
            family = self._recorder.families[row.name]
            if value is None:
                family.remove(**labels)  # absent, since a 0 would fire an alert
            else:
                family.cell(**labels).value = value

    def _settle(self, now: int) -> None:
        for key, source in self._sources.items():
            if source.headers is not None:
                self._read(key, source)
        for quota, pools in list(self._tracks.items()):
            for pool in [pool for pool, track in pools.items() if track.is_over(now)]:
                del pools[pool]
            if not pools:
                del self._tracks[quota]

    def _read(self, key: tuple[str, str, str], source: _Source) -> None:
        provider, credential, pool = key
        headers, source.headers = source.headers, None
        source.read_at_ns = source.seen_at_ns
        if headers is not None:
            samples = read(headers, source.style, source.seen_at_ns)
            self.take(provider, credential, samples, now=source.seen_at_ns, pool=pool)


def _make_room(kept: dict[Any, Any], max_length: int) -> None:
    while len(kept) > max_length:
        del kept[next(iter(kept))]


def _tightest(pools: Mapping[str, Track], now: int) -> Track:
    return min(pools.values(), key=lambda track: track.tightness(now))


def _status(quota: Quota, track: Track, now: int) -> QuotaStatus:
    provider, credential, resource = quota
    reset_at_ns = track.reset_at_ns
    return QuotaStatus(
        provider=provider,
        credential=credential,
        resource=resource,
        limit=track.limit,
        remaining=track.left(now),
        reset_at=None if reset_at_ns is None else _instant(reset_at_ns),
        resets_in_seconds=None if reset_at_ns is None else max(0, reset_at_ns - now) / NS_PER_S,
        burn_per_second=track.burn_per_second(now),
        exhausted_in_seconds=track.exhausted_in_seconds(now),
        reported_at=_instant(track.seen_at_ns),
    )


def _instant(unix_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=unix_ns // 1000)
