"""Events of a save: how often they come, and that no count goes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodockersave.core.model import OCI_LAYER, Descriptor, Digest
from aiodockersave.pipeline import progress
from aiodockersave.pipeline.progress import (
    Event,
    LayerAdvanced,
    LayerFinished,
    LayerRetried,
    LayerStarted,
    Meter,
)

FIRST, SECOND = (Descriptor(OCI_LAYER, Digest.of(name), size) for name, size in ((b"1", 1000), (b"2", 500)))


class Clock:
    """Stands still until it is told to go on.

    Attributes:
        now: What it shows, in seconds.
    """

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_layer_is_told_of_at_most_every_100_ms_and_at_its_ends(clock: Clock) -> None:
    events: list[Event] = []
    meter = Meter(events.append, [FIRST, SECOND])
    meter.started(FIRST)
    for done in range(10, 1000, 10):
        clock.now += 0.01
        meter.advanced(FIRST, done)
    meter.started(SECOND, 200)
    clock.now += 0.05
    meter.advanced(SECOND, 300)  # each layer has its own time
    meter.finished(FIRST)
    clock.now += 0.05
    meter.advanced(SECOND, 400)
    meter.finished(SECOND)
    assert meter.total == 1500
    first = [event for event in events if isinstance(event, LayerAdvanced) and event.layer == FIRST]
    assert [event.done for event in first] == [*range(100, 1000, 100)]
    assert [event for event in events if event not in first] == [
        LayerStarted(FIRST),
        LayerStarted(SECOND, 200),
        LayerFinished(FIRST, 1300),
        LayerAdvanced(SECOND, 400, 1400),
        LayerFinished(SECOND, 1500),
    ]


def test_what_is_fetched_again_is_not_counted_again(clock: Clock) -> None:
    events: list[Event] = []
    meter = Meter(events.append, [FIRST])
    meter.started(FIRST)
    clock.now += 1
    meter.advanced(FIRST, 700)
    meter.retried(FIRST)
    meter.started(FIRST)  # once more, from its first byte
    for done in (100, 600, 700, 800):
        clock.now += 1
        meter.advanced(FIRST, done)
    assert meter.retried_since(FIRST, 1, 3) == 3
    assert events == [
        LayerStarted(FIRST),
        LayerAdvanced(FIRST, 700, 700),
        LayerRetried(FIRST, 1),
        LayerAdvanced(FIRST, 800, 800),
        LayerRetried(FIRST, 2),
        LayerRetried(FIRST, 3),
    ]


@given(steps=st.lists(st.tuples(st.sampled_from([FIRST, SECOND]), st.integers(0, 1000)), max_size=40))
def test_no_count_goes_back(steps: list[tuple[Descriptor, int]]) -> None:
    counts: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, LayerAdvanced | LayerFinished):
            counts.append(event.total_done)

    meter = Meter(look, [FIRST, SECOND])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "INTERVAL", 0)  # so that each count is reported
        for layer, done in steps:
            meter.started(layer)
            meter.advanced(layer, min(done, layer.size or 0))
    for layer in (FIRST, SECOND):
        meter.started(layer)
        meter.finished(layer)
    assert counts == sorted(counts)
    assert counts[-1] == meter.total
