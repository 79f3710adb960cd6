"""The queue before the devices, with made-up work: who is computed together, who is told what, and that nobody is
forgotten."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Hashable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.serve.engine import Engine, Job, Watcher
from twofold.serve.refused import Refused


class Work:
    """Work that takes as many steps as the largest `asked` of a group, and notes what it did. A gate holds every group
    before its first step while it is shut."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.steps: list[Hashable] = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def __call__(self, place: Any, jobs: Any) -> Generator[None, None, None]:
        self.groups.append([job.asked for job in jobs])
        self.started.set()
        assert self.gate.wait(60)
        for _ in range(max(job.images for job in jobs)):
            self.steps.append(jobs[0].key)
            yield
        for job in jobs:
            job.done((place, job.asked))


def running(engine: Engine, body: Callable[[], Awaitable[Any]]) -> Any:
    """What `body` returns, with the engine at work; ended when nothing waits."""

    async def whole() -> Any:
        engine.start()
        try:
            return await asyncio.wait_for(body(), 60)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, engine.close)

    return asyncio.run(whole())


async def started(work: Work) -> None:
    assert await asyncio.get_running_loop().run_in_executor(None, work.started.wait, 60)


def test_jobs_of_a_key_are_computed_together_in_their_order() -> None:
    engine, work, batches = Engine(["cpu"], batch=3), Work(), []
    engine.watcher = Watcher(batch=lambda key, images: batches.append((key, images)))
    work.gate.clear()

    async def body() -> list[Any]:
        first = engine.submit(Job("a", 1, work, 0, 60))
        await started(work)
        others = [engine.submit(Job("ab"[i % 2], 1, work, i, 60)) for i in range(1, 9)]
        work.gate.set()
        return [await job.answer for job in [first, *others]]

    assert running(engine, body) == [("cpu", i) for i in range(9)]
    assert work.groups[0] == [0]
    together = {tuple(group) for group in work.groups[1:]}
    assert together == {(2, 4, 6), (8,), (1, 3, 5), (7,)}
    assert sorted(batches) == [("a", 1), ("a", 1), ("a", 3), ("b", 1), ("b", 3)]


def test_a_batch_counts_images_and_holds_at_least_one_job() -> None:
    engine, work = Engine(["cpu"], batch=4), Work()
    work.gate.clear()

    async def body() -> None:
        first = engine.submit(Job("a", 1, work, "first", 60))
        await started(work)
        jobs = [engine.submit(Job("a", images, work, images, 60)) for images in (3, 9, 1, 2)]
        work.gate.set()
        await asyncio.gather(first.answer, *(job.answer for job in jobs))

    running(engine, body)
    assert work.groups == [["first"], [3, 1], [9], [2]]


def test_who_comes_alone_does_not_wait_for_long_and_company_is_waited_for() -> None:
    work = Work()

    async def body() -> None:
        one = engine.submit(Job("a", 1, work, 0, 60))
        two = engine.submit(Job("a", 1, work, 1, 60))  # at once: they share a batch although the device was idle
        await asyncio.gather(one.answer, two.answer)

    engine = Engine(["cpu"], wait=1.0)
    start = time.monotonic()
    running(engine, body)
    assert work.groups == [[0, 1]]
    assert time.monotonic() - start < 30  # and not for ever


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    engine, work = Engine(["cpu"], queue=2), Work()
    work.gate.clear()

    async def body() -> Refused:
        jobs = [engine.submit(Job("first", 1, work, 0, 60))]
        await started(work)
        jobs += [engine.submit(Job("a", 1, work, i, 60)) for i in (1, 2)]
        assert engine.waiting == 2
        with pytest.raises(Refused) as refused:
            engine.submit(Job("a", 1, work, 3, 60))
        work.gate.set()
        await asyncio.gather(*(job.answer for job in jobs))
        return refused.value

    found = running(engine, body)
    assert found.status == 503
    assert int(found.headers()["Retry-After"]) >= 1
    assert str(found) == "queue: 2 requests are waiting already; try again a little later"
    assert sorted(asked for group in work.groups for asked in group) == [0, 1, 2]


def test_who_has_left_takes_no_place_in_the_queue() -> None:
    engine, work = Engine(["cpu"], queue=1), Work()
    work.gate.clear()

    async def body() -> None:
        first = engine.submit(Job("first", 1, work, 0, 60))
        await started(work)
        engine.submit(Job("a", 1, work, 1, 60)).leave()
        last = engine.submit(Job("a", 1, work, 2, 60))
        work.gate.set()
        await asyncio.gather(first.answer, last.answer)

    running(engine, body)
    assert work.groups == [[0], [2]]


def test_a_deadline_passes_while_waiting() -> None:
    engine, work = Engine(["cpu"]), Work()
    work.gate.clear()

    async def body() -> None:
        first = engine.submit(Job("a", 1, work, 0, 60))
        await started(work)
        late = engine.submit(Job("a", 1, work, 1, 0.01))
        await asyncio.sleep(0.02)
        work.gate.set()
        with pytest.raises(Refused, match="deadline: not answered within 0.01 seconds") as refused:
            await late.answer
        assert refused.value.status == 504
        await first.answer

    running(engine, body)
    assert work.groups == [[0]]  # it was never begun


def test_a_deadline_passes_while_computing_and_computing_stops() -> None:
    engine, work = Engine(["cpu"]), Work()

    async def body() -> None:
        long = engine.submit(Job("a", 10**9, work, 0, 0.05))
        with pytest.raises(Refused) as refused:
            await long.answer
        assert refused.value.status == 504

    running(engine, body)
    assert len(work.steps) < 10**9


def test_a_deadline_passes_while_the_device_is_in_the_middle_of_a_long_step() -> None:
    """Of whoever waits for that step, and of whoever waits behind it."""
    engine, work = Engine(["cpu"]), Work()
    work.gate.clear()

    async def body() -> None:
        stuck = engine.submit(Job("a", 1, work, 0, 0.05))
        await started(work)
        behind = engine.submit(Job("b", 1, work, 1, 0.05))
        for job in (stuck, behind):
            with pytest.raises(Refused, match="deadline: not answered within 0.05 seconds"):
                await job.answer
        work.gate.set()

    running(engine, body)


def test_a_deadline_counts_from_when_the_request_had_arrived() -> None:
    engine, work = Engine(["cpu"]), Work()

    async def body() -> None:
        late = engine.submit(Job("a", 1, work, 0, 60, arrived=time.monotonic() - 61))
        with pytest.raises(Refused, match="deadline"):
            await late.answer

    running(engine, body)
    assert work.groups == []


def test_computing_stops_when_all_callers_have_left_and_goes_on_for_those_who_have_not() -> None:
    engine, work = Engine(["cpu"], batch=200), Work()
    work.gate.clear()

    async def body() -> Any:
        alone = engine.submit(Job("a", 10**9, work, 0, 60))
        await started(work)
        left, stays = (engine.submit(Job("b", 50, work, i, 60)) for i in (1, 2))
        work.gate.set()
        while "b" not in work.steps:
            await asyncio.sleep(0.001)
        alone.leave()
        left.leave()
        return await stays.answer

    assert running(engine, body) == ("cpu", 2)
    assert work.steps.count("b") == 50
    assert work.groups == [[0], [1, 2]]


def test_what_is_told_reaches_only_those_who_are_there() -> None:
    told: dict[str, list[int]] = {"stays": [], "left": []}

    def telling(place: Any, jobs: Any) -> Generator[None, None, None]:
        for step in range(5):
            for job in jobs:
                job.tell(step)
            if step == 1:
                next(job for job in jobs if job.asked == "left").over = True
            yield
        for job in jobs:
            job.done(None)

    async def body() -> None:
        jobs = [Job("a", 1, telling, name, 60, on_progress=told[name].append) for name in told]
        for job in jobs:
            engine.submit(job)
        await jobs[0].answer

    engine = Engine(["cpu"], wait=1.0)
    running(engine, body)
    assert told == {"stays": [0, 1, 2, 3, 4], "left": [0, 1]}


def at_once(place: Any, jobs: Any) -> Any:
    """Fails before its first step, and is no generator."""
    raise ValueError("at once")


def at_the_end(place: Any, jobs: Any) -> Generator[None, None, None]:
    try:
        yield
    finally:
        raise ValueError("at the end")


def forgetful(place: Any, jobs: Any) -> Generator[None, None, None]:
    """Answers all but the last."""
    for job in jobs[:-1]:
        job.done("remembered")
    yield


@pytest.mark.parametrize(
    ("failing", "says"), [(at_once, "at once"), (at_the_end, "at the end"), (forgetful, "was not answered")]
)
def test_a_failure_is_told_to_its_group_alone(failing: Any, says: str) -> None:
    seen: list[BaseException] = []
    engine, work = Engine(["cpu"], watcher=Watcher(failed=seen.append)), Work()

    async def body() -> None:
        bad = engine.submit(Job("bad", 1, failing, 0, 60))
        good = engine.submit(Job("good", 3, work, 1, 60))
        with pytest.raises(Exception, match=says):
            await bad.answer
        assert await good.answer == ("cpu", 1)
        assert await engine.submit(Job("good", 1, work, 2, 60)).answer == ("cpu", 2)  # and the device goes on

    running(engine, body)
    assert len(seen) == (failing is not forgetful)


def test_failing_while_nobody_is_there_does_not_end_the_device() -> None:
    """Closing a generator may fail too."""
    engine, work = Engine(["cpu"]), Work()

    async def body() -> None:
        gone = engine.submit(Job("bad", 1, at_the_end, 0, 60))
        while not engine.working and not gone.over:
            await asyncio.sleep(0)
        gone.leave()
        assert await engine.submit(Job("good", 1, work, 1, 60)).answer == ("cpu", 1)

    running(engine, body)


class Fatal(BaseException):
    """Nothing that is made for failures catches it."""


def fatal(place: Any, jobs: Any) -> Generator[None, None, None]:
    yield
    raise Fatal("the card has fallen off the bus")


def test_who_waits_for_a_device_that_dies_is_told_at_once_and_so_is_who_comes_after() -> None:
    """Also whose group takes turns with the one that killed it, and of a lone device everybody in the queue."""
    seen: list[BaseException] = []
    engine, work = Engine(["cpu"], groups=2, wait=0, watcher=Watcher(failed=seen.append)), Work()
    work.gate.clear()

    async def body() -> list[Exception]:
        jobs = [engine.submit(Job("beside", 10**9, work, 0, 60))]
        await started(work)
        jobs += [engine.submit(Job(key, 1, compute, 1, 60)) for key, compute in (("bad", fatal), ("behind", work))]
        work.gate.set()
        found = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        with pytest.raises(Refused) as late:
            engine.submit(Job("late", 1, work, 0, 60))
        return [*found, late.value]  # type: ignore[list-item]

    found = running(engine, body)  # which also shows that the end of the engine does not wait for its dead device
    says = "device 0: has died of Fatal; start the server again; its log says more"
    assert [(one.status, str(one)) for one in found] == [(503, says)] * 4
    assert found[0].headers() == {"Retry-After": "30"}
    assert [str(error) for error in seen] == ["the card has fallen off the bus"]
    assert engine.living == engine.working == engine.waiting == 0


def test_others_go_on_when_one_device_dies() -> None:
    engine, work = Engine(["one", "two"]), Work()

    async def body() -> None:
        with pytest.raises(Refused, match="device [01] of 2: has died of Fatal"):
            await engine.submit(Job("a", 1, fatal, 0, 60)).answer
        for i in range(4):
            assert await engine.submit(Job("a", 1, work, i, 60)).answer == (
                engine.places[1 - next(iter(engine.dead))],
                i,
            )

    running(engine, body)
    assert engine.living == 1


def test_a_device_is_asked_whether_it_lives_after_each_failure() -> None:
    """After some errors of CUDA everything fails for good, and nothing of it ends a thread."""
    asked: list[str] = []

    def check(place: str) -> None:
        asked.append(place)
        if len(asked) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = Engine(["cuda:0"], check=check)

    async def body() -> None:
        with pytest.raises(ValueError, match="at once"):
            await engine.submit(Job("a", 1, at_once, 0, 60)).answer
        with pytest.raises(Refused, match="device 0: has died of RuntimeError"):
            await engine.submit(Job("a", 1, at_once, 0, 60)).answer

    running(engine, body)
    assert asked == ["cuda:0"] * 2


def test_a_users_mistake_is_422_and_no_failure() -> None:
    seen: list[BaseException] = []

    def mistaken(place: Any, jobs: Any) -> Generator[None, None, None]:
        yield
        raise UserError("steps=0", "too few")

    async def body() -> None:
        with pytest.raises(Refused) as refused:
            await engine.submit(Job("a", 1, mistaken, 0, 60)).answer
        assert (refused.value.status, str(refused.value)) == (422, "steps=0: too few")

    engine = Engine(["cpu"], watcher=Watcher(failed=seen.append))
    running(engine, body)
    assert seen == []


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_does_not_go_into_memory_is_503_and_told_to_the_log(error: Exception) -> None:
    seen: list[BaseException] = []

    def large(place: Any, jobs: Any) -> Generator[None, None, None]:
        yield
        raise error

    async def body() -> None:
        with pytest.raises(Refused, match="device: has not enough memory for this now; ask for fewer") as refused:
            await engine.submit(Job("a", 1, large, 0, 60)).answer
        assert refused.value.status == 503

    engine = Engine(["cpu"], watcher=Watcher(failed=seen.append))
    running(engine, body)
    assert seen == [error]


def test_groups_take_turns_and_no_more_than_asked_for() -> None:
    engine, work = Engine(["cpu"], groups=2, wait=0), Work()
    work.gate.clear()
    most = 0

    def counted(place: Any, jobs: Any) -> Generator[None, None, None]:
        nonlocal most
        for step in work(place, jobs):
            most = max(most, engine.working)
            yield step

    async def body() -> None:
        first = engine.submit(Job("0", 5, counted, 0, 60))
        await started(work)
        jobs = [engine.submit(Job(key, 5, counted, key, 60)) for key in "123"]
        work.gate.set()
        await asyncio.gather(first.answer, *(job.answer for job in jobs))

    running(engine, body)
    assert most == 2
    firsts = [work.steps.index(key) for key in "0123"]
    lasts = [len(work.steps) - 1 - work.steps[::-1].index(key) for key in "0123"]
    assert firsts[1] < lasts[0]  # a turn for the second before the first had ended
    assert firsts == sorted(firsts)


def test_several_devices_share_the_queue() -> None:
    engine, work = Engine(["one", "two"], batch=1), Work()
    both = threading.Barrier(2)

    def meeting(place: Any, jobs: Any) -> Generator[None, None, None]:
        both.wait(60)  # passes only where two groups are computed at the same time
        yield from work(place, jobs)

    async def body() -> set[str]:
        jobs = [engine.submit(Job(("a", i), 1, meeting, i, 60)) for i in range(2)]
        return {(await job.answer)[0] for job in jobs}

    assert running(engine, body) == {"one", "two"}


def test_closing_finishes_what_was_accepted_and_takes_nothing_more() -> None:
    engine, work = Engine(["cpu"], batch=1), Work()
    work.gate.clear()

    async def body() -> list[Any]:
        loop = asyncio.get_running_loop()
        jobs = [engine.submit(Job("a", 3, work, i, 60)) for i in range(5)]
        await started(work)
        closing = loop.run_in_executor(None, engine.close)
        while not engine._closing:
            await asyncio.sleep(0.001)
        with pytest.raises(Refused, match="server: is shutting down") as refused:
            engine.submit(Job("a", 1, work, 9, 60))
        assert refused.value.status == 503
        assert refused.value.headers()["Retry-After"] == "5"
        work.gate.set()
        await closing
        return [await job.answer for job in jobs]

    assert running(engine, body) == [("cpu", i) for i in range(5)]


def test_an_answer_for_a_loop_that_has_ended_is_dropped() -> None:
    """The process is on its way out."""
    work = Work()
    work.gate.clear()
    engine = Engine(["cpu"])

    async def body() -> Job:
        engine.start()
        job = engine.submit(Job("a", 1, work, 0, 60))
        await started(work)
        return job

    job = asyncio.run(body())
    work.gate.set()
    engine.close()
    assert job.over and not job.answer.done()


SCHEDULES = st.lists(
    st.tuples(
        st.integers(0, 3),  # key
        st.integers(1, 5),  # images, and steps
        st.sampled_from(["stay", "stay", "stay", "leave", "hurry", "fail", "forget", "kill"]),
        st.booleans(),  # whether others have a turn before the next comes
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(SCHEDULES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
def test_every_job_is_answered_exactly_once(schedule: Any, batch: int, groups: int, devices: int, most: int) -> None:
    """Whatever comes, in whatever order: a result that is its own, a refusal, or nothing where its caller has left."""
    engine = Engine(list(range(devices)), most, batch, wait=0.001, groups=groups)
    answered: dict[int, int] = {}

    def compute(place: Any, jobs: Any) -> Generator[None, None, None]:
        for _ in range(max(job.images for job in jobs)):
            yield
        hows = [job.asked[1] for job in jobs]
        if "kill" in hows:
            raise Fatal
        if "fail" in hows:
            raise ValueError("failed")
        for job in jobs:
            if job.asked[1] != "forget":
                job.done(job.asked[0])

    async def body() -> None:
        jobs: list[tuple[int, str, Job]] = []
        for i, (key, images, how, pause) in enumerate(schedule):
            try:
                job = engine.submit(Job(key, images, compute, (i, how), 0.002 if how == "hurry" else 60))
            except Refused as refused:
                assert refused.status == 503 and engine.waiting <= most
                continue
            job.answer.add_done_callback(lambda _, i=i: answered.__setitem__(i, answered.get(i, 0) + 1))
            jobs.append((i, how, job))
            if pause:
                await asyncio.sleep(0.0005)
            if how == "leave":
                job.leave()
        for i, how, job in jobs:
            try:
                assert await job.answer == i
            except asyncio.CancelledError:
                assert how == "leave"
            except Refused as refused:
                assert (refused.status == 503 and engine.dead) or (how, refused.status) == ("hurry", 504)
            except (ValueError, RuntimeError) as error:
                assert str(error) in ("failed", "was not answered")
        await asyncio.sleep(0)  # callbacks come a turn later
        assert all(answered[i] == 1 for i, _, _ in jobs)

    running(engine, body)
    assert engine.waiting == engine.working == 0
