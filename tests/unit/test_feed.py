"""Events in order, awaited."""

import asyncio

from qlora_ray.orchestration.pool.feed import EventFeed


def test_events_after_those_seen_come_in_order():
    async def story():
        feed = EventFeed()
        for number in range(3):
            feed.append({"event": str(number)})
        return await feed.after(1, timeout_s=10)

    assert [event["event"] for event in asyncio.run(story())] == ["1", "2"]


def test_whoever_waits_is_woken_by_the_next_event():
    async def story():
        feed = EventFeed()
        # Longer than a test may take: a wake-up that is missed fails by pytest's own limit.
        waiting = [asyncio.create_task(feed.after(0, timeout_s=3600)) for _ in range(2)]
        await asyncio.sleep(0)  # both tasks have begun to wait
        feed.append({"event": "one"})
        return await asyncio.gather(*waiting)

    assert asyncio.run(story()) == [[{"event": "one"}], [{"event": "one"}]]


def test_a_wait_that_ends_without_an_event_gives_none():
    assert asyncio.run(EventFeed().after(0, timeout_s=0)) == []
