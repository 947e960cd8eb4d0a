"""Streams that are left, cut and joined, and come to the same whole."""

import asyncio
import random

import openai

from streams import begin, ended, follow, marks, obeys, read, said, shows, tail
from world import CutsStreams, Gate, async_client, call, check, client, here, kill_workers, later, play
from world import refused, replace_workers, script, there, together, turn

TURNS = (turn(3, reasoning=["Hm. "], calls=[["look", {"op": "x"}]]), turn(16, delayMs=2))
TEXT = marks(1, 1, 3) + marks(1, 2, 16)


@check
def a_stream_that_is_over_is_read_on_from_every_event():
    script(*TURNS)
    response = ended(here, begin())
    events = read(here, response)
    obeys(events)
    for n in range(len(events)):
        assert read((here, there)[n % 2], response, after=n) == events[n + 1 :], f"behind {n}"


@check
def a_stream_that_is_cut_behind_each_event_is_read_on_from_there():
    script(*TURNS)

    def cut(n):
        """Leaves the stream behind event `n` and comes back. Whether it has so many."""
        seen = []
        with here.responses.create(model="helper", input=f"cut {n}", background=True, stream=True) as stream:
            for event in stream:
                seen.append(event.to_dict())
                if event.sequence_number == n:
                    break
        if len(seen) <= n:
            return False
        seen += read(there, stored := here.responses.retrieve(seen[0]["response"]["id"]), after=n)
        assert said(obeys(seen)["output"]) == TEXT
        assert seen == read(here, stored)
        return True

    cuts = 0
    while all(together(*[lambda n=n: cut(n) for n in range(cuts, cuts + 8)])):
        cuts += 8
    assert cuts >= 16, f"{cuts} events"


@check
def the_creating_stream_is_left_and_the_run_goes_on():
    script(turn(8))
    for more in ({}, {"background": True}):
        closed = Gate(4)
        with here.responses.create(model="helper", input="go", stream=True, **more) as stream:
            id = next(iter(stream)).response.id
            closed.reached()
        assert there.responses.retrieve(id).status == "in_progress", "to leave is not to cancel"
        closed.open()
        stored = ended(there, there.responses.retrieve(id))
        assert (stored.status, stored.output_text) == ("completed", marks(1, 1, 8))


@check
def a_stream_that_is_cut_at_random_bytes_again_and_again_arrives_whole():
    script(turn(3, calls=[["look", {"op": "x"}]]), turn(60, delayMs=3))
    dice = random.Random(1)

    def watch(api):
        flaky = client(api, CutsStreams(lambda: dice.randrange(1, dice.choice((30, 300, 900, 10_000)))))
        response, seen, cuts = begin(flaky), [], 0
        while True:
            last = seen[-1]["sequence_number"] if seen else None
            try:
                follow(tail(flaky, response, after=last), seen)
                break
            except openai.APIConnectionError:
                cuts += 1
        assert said(obeys(seen)["output"]) == marks(1, 1, 3) + marks(1, 2, 60)
        assert seen == read(there, response)
        return cuts

    cuts = together(*[lambda n=n: watch(n % 2) for n in range(8)])
    assert sum(cuts) > 24, f"{cuts} cuts"


@check
async def two_tails_see_the_same_and_one_that_leaves_disturbs_nobody():
    script(turn(24, delayMs=2))
    closed = Gate(12)
    async with async_client(0) as here, async_client(1) as there:
        response = await here.responses.create(model="helper", input="go", background=True)

        async def watch(client):
            return await client.responses.retrieve(response.id, stream=True)

        async def collect(stream, leave=None):
            seen = []
            async with stream:
                async for event in stream:
                    seen.append(event.to_dict())
                    if len(seen) == leave:
                        break
            return seen

        tails = [asyncio.create_task(collect(await watch(client))) for client in (here, there)]
        left = await collect(await watch(here), leave=4)
        await asyncio.to_thread(closed.reached)
        late = await watch(there)
        closed.open()
        one, other, late = await asyncio.gather(*tails, collect(late))
        assert one == other == late == await collect(await watch(here)), "as behind the end"
        assert left == one[:4]
        assert said(obeys(one)["output"]) == marks(1, 1, 24)


@check
def the_strict_helper_replays_from_anywhere():
    script(*TURNS)
    response = ended(here, begin())
    count = len(read(here, response))
    for n in (None, *range(count)):
        behind = {} if n is None else {"starting_after": n}
        with (here, there)[count % 2].responses.stream(response_id=response.id, **behind) as stream:
            seen = [event.sequence_number for event in stream]
            final = stream.get_final_response()
        assert seen == list(range(0 if n is None else n + 1, count))
        assert (final.id, final.status, final.output_text) == (response.id, "completed", TEXT)


@check
def the_strict_helper_joins_while_the_run_goes_on():
    script(turn(12))
    closed = Gate(6)
    response = begin()
    closed.reached()
    with there.responses.stream(response_id=response.id, starting_after=1) as stream:
        seen = [next(stream).sequence_number]
        closed.open()
        seen += [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert seen == list(range(2, 2 + len(seen))) and final.output_text == marks(1, 1, 12)


@check
def nothing_follows_the_last_event():
    script(turn(2))
    response = ended(here, begin())
    last = len(read(here, response)) - 1
    assert read(there, response, after=last) == []
    answer = call("GET", f"/v1/responses/{response.id}?stream=true&starting_after={last}")
    lines = [line for line in answer.text.split("\n") if line and not line.startswith(":")]
    assert (answer.status_code, lines) == (200, ["data: [DONE]"])
    try:
        assert read(there, response, after=last + 1000) == []
    except openai.BadRequestError:
        pass  # As good.


@check
def zero_is_a_number_too():
    script(turn(2))
    response = ended(here, begin())
    assert [event["sequence_number"] for event in read(here, response, after=0)][0] == 1


@check
def what_is_no_number_is_refused():
    script(turn(2))
    closed = Gate(1)
    response = begin()
    for status in ("running", "over"):
        for after in ("", "x", "-1", "1.5", "1e3", "0x1", "%00", "null"):
            path = f"/v1/responses/{response.id}?stream=true&starting_after={after}"
            answer = call("GET", path)
            assert answer.status_code == 400, (status, after, answer)
            assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
        refused(lambda: tail(here, response, after=-1), openai.BadRequestError)
        if status == "running":
            closed.reached()
            closed.open()
            ended(here, response)


@check
def a_stream_waits_for_events_that_are_to_come():
    script(turn(6))
    closed = Gate(3)
    response, seen = begin(), []
    watching = later(lambda: follow(tail(here, response), seen))
    closed.reached()
    shows(seen, "response.output_text.delta")
    behind = seen[-1]["sequence_number"]
    rest = later(lambda: read(there, response, after=behind))
    ahead = later(lambda: read(there, response, after=behind + 2))
    closed.open()
    watching.result()
    assert rest.result() == seen[behind + 1 :]
    assert ahead.result() == seen[behind + 3 :]


@check
def a_response_that_nobody_works_on_is_watched_from_any_event():
    script(turn(3))
    kill_workers()
    response, seen = begin(), []
    watching = [later(lambda: follow(tail(here, response), seen))]
    shows(seen, "response.created")
    watching += [later(lambda after=after: read(there, response, after)) for after in (0, 1)]
    assert there.responses.retrieve(response.id).status == "queued"
    replace_workers()
    _, one, two = [watcher.result() for watcher in watching]
    assert said(obeys(seen)["output"]) == marks(1, 1, 3)
    assert (one, two) == (seen[1:], seen[2:])


play()
