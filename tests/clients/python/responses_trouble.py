"""Replies that are lost, processes that die, and many at once."""

import asyncio
import json
import uuid

import openai

from streams import begin, ended, follow, kinds, marks, obeys, raw, read, said, shows, tail
from world import Gate, LosesReplies, asked, async_client, check, client, here, later, play, refused
from world import replace_workers, restart_api, script, there, turn


def asked_for(text):
    """How often the model was asked for this."""
    return sum(text in json.dumps(request["messages"]) for request in asked())


def unique():
    return f"go {uuid.uuid4()}"


@check
def a_worker_that_is_killed_tears_its_item_and_the_next_one_begins_anew():
    script(turn(12, reasoning=["Hm. "]))
    closed = Gate(7)
    response, seen = begin(), []
    watching = later(lambda: follow(tail(here, response), seen))
    with there.responses.stream(response_id=response.id) as stream:
        closed.reached()
        shows(seen, "response.output_text.delta")
        replace_workers()
        closed.reached(2)
        assert here.responses.retrieve(response.id).status == "in_progress"
        closed.open()
        strict = stream.get_final_response()
    watching.result()
    last = obeys(seen)
    assert last == there.responses.retrieve(response.id).to_dict()
    added = [event["output_index"] for event in seen if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in seen if event["type"] == "response.output_item.done"]
    assert added == list(range(len(done))), "the next index"
    torn, good = [item for item in done if item["type"] == "message"]
    assert torn["status"] == "incomplete" and marks(1, 1, 6).startswith(torn["content"][0]["text"])
    assert (good["status"], good["content"][0]["text"]) == ("completed", marks(2, 1, 12))
    assert last["status"] == "completed" and kinds(last["output"]) == ["reasoning", "message"]
    assert said(last["output"]) == strict.output_text == marks(2, 1, 12)
    assert read(there, response) == seen
    with here.responses.stream(response_id=response.id) as stream:
        assert stream.get_final_response().output_text == marks(2, 1, 12)


@check
def a_step_that_was_saved_is_not_done_over():
    script(turn(2, calls=[["look", {"op": "x"}]]), turn(8))
    closed = Gate(5)
    response, seen = begin(), []
    watching = later(lambda: follow(tail(there, response), seen))
    closed.reached()
    replace_workers()
    closed.reached(2)
    closed.open()
    watching.result()
    last = obeys(seen)
    assert kinds(last["output"]) == ["message", "mcp_call", "message"]
    assert said(last["output"]) == marks(1, 1, 2) + marks(2, 2, 8)


@check
def a_child_of_a_torn_response_is_told_only_what_is_good():
    script(turn(8))
    closed = Gate(4)
    parent, seen = begin(), []
    watching = later(lambda: follow(tail(there, parent), seen))
    closed.reached()
    shows(seen, "response.output_text.delta")
    replace_workers()
    closed.reached(2)
    closed.open()
    watching.result()
    child = here.responses.create(model="helper", input="and?", previous_response_id=parent.id)
    told = [message for message in asked()[-1]["messages"] if message["role"] == "assistant"]
    assert len(told) == 1 and marks(2, 1, 8).strip() in json.dumps(told) and "a1.s1" not in json.dumps(told)
    assert child.status == "completed"


def outlives_the_end_of_an_api_process(gently):
    script(turn(20))
    closed = Gate(8)
    seen, strict = [], []
    stream = client(0).responses.create(model="helper", input="go", stream=True)
    watching = later(lambda: follow(stream, seen))
    shows(seen, "response.created")
    id = seen[0]["response"]["id"]
    helper = later(lambda: follow_strictly(client(0), id, strict))
    closed.reached()
    shows(seen, "response.output_text.delta")
    shows(strict, "response.output_text.delta")
    restart_api(0, gently)
    for broken in (watching, helper):
        # A clean end would mean that the run is over.
        assert isinstance(broken.exception(), openai.APIConnectionError), broken.exception()
    response = there.responses.retrieve(id)
    assert response.status == "in_progress"
    rest = later(lambda: read(there, response, after=seen[-1]["sequence_number"]))
    with there.responses.stream(response_id=id, starting_after=strict[-1]["sequence_number"]) as stream:
        closed.open()
        follow(stream, strict)
        assert stream.get_final_response().output_text == marks(1, 1, 20)
    seen += rest.result()
    assert obeys(seen) == there.responses.retrieve(id).to_dict()
    numbers = [event["sequence_number"] for event in strict]
    assert numbers == list(range(len(seen))), "the helper has them all"
    assert read(here, response) == seen, "and from the process that was started again"


def follow_strictly(client, id, seen):
    with client.responses.stream(response_id=id) as stream:
        follow(stream, seen)


@check
def an_api_process_that_is_killed_breaks_its_streams_and_the_other_one_goes_on():
    outlives_the_end_of_an_api_process(gently=False)


@check
def an_api_process_that_is_asked_to_end_breaks_them_too():
    outlives_the_end_of_an_api_process(gently=True)


@check
def a_response_without_a_stream_outlives_the_process_that_was_asked():
    script(turn(6))
    closed = Gate(3)
    text, key = unique(), {"idempotency-key": unique()}
    again = {"model": "helper", "input": text, "extra_headers": key}
    waiting = later(lambda: client(0).responses.create(**again))
    closed.reached()
    restart_api(0)
    assert isinstance(waiting.exception(), openai.APIConnectionError), waiting.exception()
    closed.open()
    response = there.responses.create(**again)
    assert (response.status, response.output_text, asked_for(text)) == ("completed", marks(1, 1, 6), 1)


@check
async def the_same_key_and_body_are_one_run():
    script(turn(6))
    closed, text = Gate(3), unique()
    key = {"Idempotency-Key": unique()}
    again = {"model": "helper", "input": text, "metadata": {"a": "b"}, "extra_headers": key}
    async with async_client(0) as here, async_client(1) as there:
        create = [api.responses.create for api in (here, there) * 4]
        responses = await asyncio.gather(*[create(background=True, **again) for create in create])
        await asyncio.to_thread(closed.reached)
        closed.open()
        assert len({response.id for response in responses}) == 1, responses
        response = responses[0]
        while response.status in ("queued", "in_progress"):
            response = await there.responses.retrieve(response.id)
        for api in (here, there):
            late = await api.responses.create(background=True, **again)
            assert late.id == response.id, "and when it is over"
        assert response.status == "completed" and asked_for(text) == 1


@check
async def the_same_key_joins_a_stream_and_a_call_that_waits():
    script(turn(6))
    async with async_client(0) as here, async_client(1) as there:
        for stream in (True, False):
            closed, text = Gate(3), unique()
            key = {"Idempotency-Key": unique()}
            again = {"model": "helper", "input": text, "stream": stream, "extra_headers": key}

            async def whole(api):
                answer = await api.responses.create(**again)
                return [event.to_dict() async for event in answer] if stream else answer.to_dict()

            calls = [asyncio.create_task(whole(api)) for api in (here, there) * 2]
            await asyncio.to_thread(closed.reached)
            closed.open()
            first, *others = await asyncio.gather(*calls)
            assert all(other == first for other in others)
            assert (obeys(first) if stream else first)["status"] == "completed"
            assert await whole(there) == first and asked_for(text) == 1


@check
def the_same_key_with_another_body_is_refused_for_good():
    script(turn(6))
    closed, key = Gate(3), {"extra_headers": {"Idempotency-Key": unique()}}
    patient = client(1, max_retries=2)

    def is_refused():
        for other in ({"input": "two"}, {"input": "one", "temperature": 0.1}):
            error = refused(lambda: begin(patient, **other, **key), openai.APIStatusError)
            assert error.status_code // 100 == 4 and error.response.headers["x-should-retry"] == "false"
            assert error.request.headers["x-stainless-retry-count"] == "0", "the package does not try again"

    before = len(asked())
    response = begin(input="one", **key)
    closed.reached()
    is_refused()
    closed.open()
    ended(here, response)
    is_refused()
    assert len(asked()) == before + 1


@check
def keys_and_bodies_that_differ_are_runs_of_their_own():
    script(turn(2))
    text, key = unique(), unique()
    ids = [begin(input=text).id for _ in range(3)]
    ids += [begin(input=text, extra_headers={"Idempotency-Key": f"{key} {n}"}).id for n in range(3)]
    assert len(set(ids)) == 6, "to say the same twice is no retry"
    for id in ids:
        ended(there, here.responses.retrieve(id))
    assert asked_for(text) == 6


@check
def a_retry_after_a_lost_reply_is_the_same_run():
    script(turn(3))
    for more in ({"background": True}, {}, {"stream": True}):
        for key in ({}, {"extra_headers": {"Idempotency-Key": unique()}}):
            text, flaky = unique(), client(0, LosesReplies(2), max_retries=2)
            answer = flaky.responses.create(model="helper", input=text, **more, **key)
            last = obeys(raw(answer)) if "stream" in more else ended(there, answer).to_dict()
            assert (last["status"], said(last["output"])) == ("completed", marks(1, 1, 3))
            assert asked_for(text) == 1, f"{more} {key}: {asked_for(text)} runs"


@check
async def two_dozen_streams_at_once_keep_apart():
    script(turn(25, delayMs=2))
    async with async_client(0) as here, async_client(1) as there:

        async def one(n):
            api, other = ((here, there), (there, here))[n % 2]
            mine = {"input": f"go {n}", "metadata": {"n": f"{n}"}}
            stream = await api.responses.create(model="helper", stream=True, **mine)
            events = [event.to_dict() async for event in stream]
            last = obeys(events)
            assert said(last["output"]) == marks(1, 1, 25) and last["metadata"] == mine["metadata"]
            assert (await other.responses.retrieve(last["id"])).to_dict() == last
            again = await other.responses.retrieve(last["id"], stream=True)
            assert [event.to_dict() async for event in again] == events
            return last["id"]

        assert len(set(await asyncio.gather(*[one(n) for n in range(24)]))) == 24


play()
