"""One call's end: what is undone first, who is told, and which of several faults the caller sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from aiodockersave import ContentError, EventLoopError, WriterClosedError
from aiodockersave.blobs.calls import Call, Calls
from aiodockersave.blobs.content import OpenContent
from tests.support.interruption import outcome_of, running_task, step, suspend


class Diary:
    """What happened during one call, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.at_close: BaseException | None = None

    async def content(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"data"
        except (Exception, asyncio.CancelledError) as exc:
            self.entries.append(f"told {type(exc).__name__}")
            if self.at_close is not None:
                raise self.at_close from None
            raise

    async def undo(self, fault: BaseException) -> None:
        self.entries.append(f"undone for {type(fault).__name__}")

    async def close(self) -> None:
        self.entries.append("closed")

    def abandon(self) -> None:
        if self.entries[-1:] != ["closed"]:
            self.entries.append("abandoned")

    async def settle(self, call: Call, fault: BaseException | None = None, **options: Any) -> str:
        """Settle a call that reads its content and then fails, or does not."""
        opened = OpenContent(self.content)

        async def work() -> Callable[[], str]:
            await opened.open()
            await opened.read()
            if fault is not None:
                raise fault
            return self.commit

        options = {"closing": [self]} | options
        return await call.settle(work, undo=self.undo, content=opened, **options)

    def commit(self) -> str:
        self.entries.append("committed")
        return "result"


class Closing:
    """What is closed with a call, by a coroutine of the test's."""

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.close = close

    def abandon(self) -> None:
        """Do nothing."""


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def test_a_call_that_succeeds(diary: Diary) -> None:
    assert await diary.settle(Call(running_task())) == "result"
    assert diary.entries == ["committed", "closed"]


async def test_what_was_done_is_undone_before_the_content_is_told(diary: Diary) -> None:
    with pytest.raises(LookupError):
        await diary.settle(Call(running_task()), LookupError())
    assert diary.entries == ["undone for LookupError", "told LookupError", "closed"]


async def test_what_the_content_raises_comes_before_the_fault(diary: Diary) -> None:
    diary.at_close = TimeoutError()
    with pytest.raises(TimeoutError):
        await diary.settle(Call(running_task()), LookupError())


async def test_a_cancel_comes_before_what_the_content_raises(diary: Diary) -> None:
    diary.at_close = TimeoutError()
    cancel = asyncio.CancelledError()

    async def settle() -> None:
        call = Call(running_task())
        running_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspend()  # where it is delivered
        with pytest.raises(asyncio.CancelledError) as caught:
            await diary.settle(call, cancel)
        assert caught.value is cancel

    await asyncio.create_task(settle())
    assert diary.entries == ["undone for CancelledError", "told CancelledError", "closed"]


async def test_a_cancel_that_was_swallowed_is_found_before_the_commit(diary: Diary) -> None:
    async def settle() -> None:
        call = Call(running_task())
        running_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspend()
        with pytest.raises(asyncio.CancelledError):
            await diary.settle(call)

    await asyncio.create_task(settle())
    assert "committed" not in diary.entries


async def test_a_cancel_from_before_the_call_is_not_its_own(diary: Diary) -> None:
    async def settle() -> None:
        running_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspend()
        assert await diary.settle(Call(running_task())) == "result"

    await asyncio.create_task(settle())


async def test_a_swallowed_cancel_keeps_the_fault_that_hid_it(diary: Diary) -> None:
    fault = LookupError()

    async def settle() -> None:
        call = Call(running_task())
        running_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspend()
        with pytest.raises(asyncio.CancelledError) as caught:
            await diary.settle(call, fault)
        assert caught.value.__cause__ is fault

    await asyncio.create_task(settle())


async def test_a_cancel_that_nobody_asked_for_is_an_error(diary: Diary) -> None:
    with pytest.raises(ContentError, match="gave no reason"):
        await diary.settle(Call(running_task()), asyncio.CancelledError())


async def test_everything_is_closed_whatever_fails(diary: Diary) -> None:
    async def fail() -> None:
        diary.entries.append("failed")
        raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        await diary.settle(Call(running_task()), closing=[Closing(fail), diary])
    assert diary.entries == ["committed", "failed", "closed"]


async def test_a_coroutine_that_is_closed_awaits_nothing(diary: Diary) -> None:
    async def wait_for_ever() -> None:
        diary.entries.append("waiting")
        await asyncio.Event().wait()

    opened = OpenContent(diary.content)

    async def work() -> Callable[[], str]:
        await opened.open()
        await asyncio.Event().wait()
        return diary.commit

    coroutine = Call(running_task()).settle(
        work, undo=diary.undo, content=opened, closing=[Closing(wait_for_ever), diary]
    )
    coroutine.send(None)
    coroutine.close()
    assert diary.entries == ["abandoned"]


@pytest.mark.parametrize("where", ["undoing", "closing the content", "closing"])
async def test_a_coroutine_that_is_closed_while_it_cleans_up(diary: Diary, where: str) -> None:
    """What was not begun to be closed is closed as far as it goes without waiting."""

    async def wait_at(place: str) -> None:
        if place == where:
            diary.entries.append(f"waiting while {place}")
            await asyncio.Event().wait()

    class Slow(OpenContent):
        async def close(self, fault: BaseException | None) -> BaseException | None:
            await wait_at("closing the content")
            return await super().close(fault)

    async def fail() -> Callable[[], str]:
        raise OSError("in the middle")

    coroutine = Call(running_task()).settle(
        fail,
        undo=lambda _: wait_at("undoing"),
        content=Slow(diary.content),
        closing=[Closing(lambda: wait_at("closing")), Closing(lambda: wait_at(where)), diary],
    )
    coroutine.send(None)
    coroutine.close()
    assert diary.entries[0] == f"waiting while {where}"
    assert diary.entries[-1] in {"closed", "abandoned"}


# ── a commit that is interrupted ──


@pytest.mark.parametrize("count", [1, 2])
async def test_a_commit_is_brought_to_its_end(diary: Diary, count: int) -> None:
    """A signal handler raises inside it: what it has begun is done once more, and raised behind that."""
    interrupts = [KeyboardInterrupt(str(number)) for number in range(count)]

    def commit() -> str:
        diary.entries.append("begun")
        if len(diary.entries) <= count:
            raise interrupts[len(diary.entries) - 1]
        return diary.commit()

    async def work() -> Callable[[], str]:
        return commit

    settling = Call(running_task()).settle(work, undo=diary.undo, content=OpenContent(b""), closing=[diary])
    with pytest.raises(KeyboardInterrupt, match="0"):
        await settling
    assert diary.entries == [*["begun"] * (count + 1), "committed", "closed"]


async def test_a_commit_that_always_fails_is_not_taken_back(diary: Diary) -> None:
    def commit() -> str:
        raise LookupError("each time")

    async def work() -> Callable[[], str]:
        return commit

    settling = Call(running_task()).settle(work, undo=diary.undo, content=OpenContent(b""), closing=[diary])
    with pytest.raises(LookupError, match="each time"):
        await settling
    assert diary.entries == ["abandoned"]


@pytest.mark.parametrize("where", ["commit", "content", "closing"])
async def test_an_interrupt_comes_before_every_other_error(diary: Diary, where: str) -> None:
    """Else the program would go on, as if nobody had pressed Ctrl-C."""
    interrupt = KeyboardInterrupt(where)

    async def failing(error: BaseException) -> None:
        raise error

    class Failing(OpenContent):
        async def close(self, fault: BaseException | None) -> BaseException | None:
            await super().close(fault)
            return interrupt if where == "content" else OSError("the content")

    def commit() -> str:
        if where == "commit" and not diary.entries:
            diary.entries.append("begun")
            raise interrupt
        return "result"

    async def work() -> Callable[[], str]:
        return commit

    closing = [
        Closing(partial(failing, OSError("first"))),
        Closing(partial(failing, interrupt if where == "closing" else OSError("second"))),
    ]
    settling = Call(running_task()).settle(
        work, undo=diary.undo, content=Failing(diary.content), closing=closing
    )
    with pytest.raises(KeyboardInterrupt, match=where):
        await settling


async def test_an_interrupt_comes_before_a_cancel(diary: Diary) -> None:
    async def settle() -> None:
        call = Call(running_task())
        running_task().cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspend()
        with pytest.raises(KeyboardInterrupt):
            await diary.settle(call, KeyboardInterrupt())

    # As a task it would end the loop, too.
    coroutine = settle()
    await coroutine


# ── who may interrupt ──


async def test_a_call_that_is_interrupted_raises_the_reason() -> None:
    calls = Calls()
    entered = asyncio.Event()

    async def work() -> BaseException | None:
        async def call() -> None:
            with calls.enter():
                entered.set()
                await asyncio.Event().wait()

        outcome = await outcome_of(call())
        assert running_task().cancelling() == 0
        return outcome

    task = asyncio.create_task(work())
    await entered.wait()
    calls.interrupt(lambda: WriterClosedError(aborted=True))
    calls.interrupt(lambda: WriterClosedError(aborted=False))  # the first reason stays
    await calls.wait()
    outcome = await task
    assert isinstance(outcome, WriterClosedError)
    assert outcome.aborted


async def test_a_call_that_ends_well_though_it_was_interrupted() -> None:
    calls = Calls()

    async def work() -> str:
        with calls.enter() as call:
            call.interrupt(WriterClosedError(aborted=True))
            with pytest.raises(asyncio.CancelledError):
                await suspend()
        assert running_task().cancelling() == 0
        return "result"

    assert await asyncio.create_task(work()) == "result"


async def test_a_call_that_fails_by_itself_though_it_was_interrupted() -> None:
    calls = Calls()

    async def work() -> None:
        with calls.enter() as call:
            call.interrupt(WriterClosedError(aborted=True))
            with pytest.raises(asyncio.CancelledError):
                await suspend()
            raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        await asyncio.create_task(work())


async def test_only_calls_that_stage_are_interrupted_where_that_is_asked() -> None:
    calls = Calls()
    go_on = asyncio.Event()

    async def work(*, staging: bool) -> None:
        with calls.enter() as call:
            call.staging = staging
            await go_on.wait()

    tasks = [asyncio.create_task(work(staging=staging)) for staging in (True, False)]
    await asyncio.sleep(0)
    calls.interrupt(lambda: WriterClosedError(aborted=False), only_staging=True)
    go_on.set()
    outcomes = [await outcome_of(task) for task in tasks]
    assert isinstance(outcomes[0], WriterClosedError)
    assert outcomes[1] is None


async def test_a_call_within_a_call_is_refused() -> None:
    calls = Calls()
    with calls.enter():
        with pytest.raises(RuntimeError, match="must not call the writer that reads it"), calls.enter():
            pass
        with pytest.raises(RuntimeError):
            calls.check_entry()
    calls.check_entry()


def test_a_call_needs_a_task() -> None:
    with pytest.raises(EventLoopError), Calls().enter():
        pass


class Interrupted(dict[Any, Any]):
    """Calls of which none can be struck off: a signal handler raises."""

    def pop(self, *_: object) -> Any:
        raise KeyboardInterrupt


async def test_a_call_that_could_not_be_struck_off_is_over_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls()
    monkeypatch.setattr(calls, "_running", Interrupted())
    waiting = None
    with pytest.raises(KeyboardInterrupt), calls.enter():
        waiting = asyncio.create_task(calls.wait())
        await asyncio.sleep(0)
    calls.check_entry()
    calls.interrupt(lambda: WriterClosedError(aborted=True))
    assert waiting is not None
    await asyncio.wait_for(waiting, 60)
    await asyncio.wait_for(calls.wait(), 60)
    assert running_task().cancelling() == 0


async def test_who_waits_is_woken_when_no_call_runs() -> None:
    calls = Calls()
    step(calls.wait())
    with calls.enter():
        waiting = [asyncio.create_task(calls.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert not waiting[1].done()
    assert isinstance(await outcome_of(waiting[0]), asyncio.CancelledError)
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 60)
