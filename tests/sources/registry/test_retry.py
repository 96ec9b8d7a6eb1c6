"""The order in which addresses are asked, and the waits between attempts."""

from __future__ import annotations

import pytest

from aiodockersave import DockerSaveError, InvalidInputError, RateLimitedError, RegistryError, TransferError
from aiodockersave.sources.registry.answers import InterruptedTransfer
from aiodockersave.sources.registry.cache import Recent
from aiodockersave.sources.registry.endpoint import Retries, Turns
from aiodockersave.sources.waits import Waits

RETRIES = Retries(attempts=3, min_delay=1, max_delay=3, retry_after_limit=100)
BROKEN = RegistryError("blob", "the connection broke", url="https://h.example")


def interrupted(*, retry_after: float | None = None, is_final: bool = False) -> InterruptedTransfer:
    return InterruptedTransfer(BROKEN, retry_after=retry_after, is_final=is_final)


class Naps:
    """A replacement for sleep that records the delays."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


def turns(*places: str, retries: Retries = RETRIES) -> Turns[str]:
    return Turns("blob", places, retries, Waits(Naps().sleep))


@pytest.mark.parametrize("rounds", range(1, 6))
def test_delays_double_up_to_a_limit(rounds: int) -> None:
    longest = [1, 2, 3, 3, 3][rounds - 1]
    assert all(0.75 * longest <= RETRIES.delay(rounds) <= longest for _ in range(100))


def test_delays_of_many_rounds_are_finite() -> None:
    assert Retries(attempts=10_000).delay(9_999) <= 30


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"min_delay": -1}, {"min_delay": 2, "max_delay": 1}, {"retry_after_limit": -1}],
    ids=str,
)
def test_invalid_retries(options: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        Retries(**options)  # type: ignore[arg-type]


def test_one_place_is_asked_as_often_as_it_may() -> None:
    order = turns("registry")
    assert 0.75 <= order.next_turn(interrupted()) <= 1
    assert 1.5 <= order.next_turn(interrupted()) <= 2
    with pytest.raises(TransferError, match=r"given up after 3 attempts: .*the connection broke") as caught:
        order.next_turn(interrupted())
    assert caught.value.__cause__ is BROKEN
    assert (caught.value.what, caught.value.attempts) == ("blob", 3)


def test_progress_starts_the_count_again() -> None:
    order = turns("registry")
    for _ in range(20):
        order.next_turn(interrupted())
        order.next_turn(interrupted())
        order.progressed()
    assert order.failures == 0
    assert order.last_error is BROKEN


def test_every_place_is_asked_before_the_first_wait() -> None:
    order = turns("one", "two", "three")
    asked, delays = [], []
    for _ in range(8):
        asked.append(order.place)
        delays.append(order.next_turn(interrupted()) > 0)
    assert asked == ["one", "two", "three"] * 2 + ["one", "two"]
    assert delays == [False, False, True] * 2 + [False, False]
    with pytest.raises(TransferError, match="9 attempts"):
        order.next_turn(interrupted())


def test_a_place_that_refuses_is_not_asked_again() -> None:
    order = turns("mirror", "other", "registry")
    refusal = RegistryError("blob", "gone", url="https://r.example", status=404)
    assert order.next_turn(refusal) == 0
    assert order.place == "other"
    order.next_turn(interrupted())
    assert order.place == "registry"
    assert order.next_turn(refusal) == 0
    assert order.place == "other"
    with pytest.raises(RegistryError, match="gone"):
        order.next_turn(refusal)


def test_a_registry_is_waited_for_as_long_as_it_asks() -> None:
    assert turns("registry").next_turn(interrupted(retry_after=100)) == 100
    order = turns("one", "two")
    assert order.next_turn(interrupted(retry_after=50)) == 0
    assert order.next_turn(interrupted()) == 50
    assert order.next_turn(interrupted()) == 0
    assert order.next_turn(interrupted()) < 50


def test_a_registry_that_asks_for_too_long_is_not_waited_for() -> None:
    limited = RateLimitedError("blob", "too many", url="https://h.example", retry_after=101)
    with pytest.raises(RateLimitedError) as caught:
        turns("registry").next_turn(InterruptedTransfer(limited, retry_after=101))
    assert (caught.value.status, caught.value.retry_after) == (429, 101)
    assert str(caught.value) == "blob: https://h.example: too many; it may be asked again after 101 s"
    order = turns("mirror", "registry")
    assert order.next_turn(InterruptedTransfer(limited, retry_after=101)) == 0
    assert order.place == "registry"


@pytest.mark.parametrize(
    "fault",
    [interrupted(is_final=True), InterruptedTransfer(RateLimitedError("blob", "many", url="u"))],
    ids=["marked", "rate limit"],
)
def test_an_error_that_says_more_is_raised_itself(fault: InterruptedTransfer) -> None:
    with pytest.raises(type(fault.error)) as caught:
        turns("registry", retries=Retries(attempts=1)).next_turn(fault)
    assert caught.value is fault.error


async def test_run_asks_until_a_place_answers() -> None:
    naps = Naps()
    order = Turns("blob", ["one", "two"], RETRIES, Waits(naps.sleep))
    faults: list[InterruptedTransfer | DockerSaveError] = [interrupted(), interrupted(), BROKEN]
    asked = []

    async def ask(place: str) -> str:
        asked.append(place)
        if faults:
            raise faults.pop(0)
        return f"answer of {place}"

    assert await order.run(ask) == "answer of two"
    assert asked == ["one", "two", "one", "two"]
    assert len(naps.seconds) == 1


async def test_run_lets_foreign_errors_through() -> None:
    async def ask(place: str) -> str:
        raise KeyError(place)

    with pytest.raises(KeyError):
        await turns("registry").run(ask)


# ── a dictionary that forgets ──


def test_recent_forgets_the_least_recently_used_value() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert recent.values() == [1, 3]


def test_recent_counts_weights() -> None:
    recent: Recent[str, bytes] = Recent(10, len)
    recent.put("a", bytes(6))
    recent.put("a", bytes(4))
    recent.put("b", bytes(6))
    assert len(recent.values()) == 2
    recent.put("b", bytes(7))
    assert [recent.get(key) for key in "ab"] == [None, bytes(7)]
    recent.put("c", bytes(11))
    assert recent.get("c") is None
    recent.put("b", bytes(11))
    assert recent.values() == []
