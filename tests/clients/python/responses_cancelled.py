"""Responses that are cancelled or deleted, and those who watch."""

import openai

from streams import UNDER_WAY, begin, ended, follow, kinds, marks, obeys, raw, read, response_obeys, said
from streams import shows, tail
from world import Gate, LosesReplies, call, check, client, here, kill_workers, later, play, refused
from world import replace_workers, script, there, together, turn, until


def held(token=6, count=30, **more):
    """A response that stands in the middle of its answer, with a gate that goes on closed."""
    script(turn(count, **more))
    closed = Gate(token)
    response = begin()
    closed.reached()
    return response, closed


def cancelled(client, response):
    """The response after a cancel, which may have to reach a worker first."""
    answer = client.responses.cancel(response.id)
    assert answer.id == response.id and answer.status in (*UNDER_WAY, "cancelled"), answer.status
    response_obeys(answer.to_dict())
    stored = until(lambda: (now := client.responses.retrieve(response.id)).status == "cancelled" and now, 10)
    assert answer.status in UNDER_WAY or answer.to_dict() == stored.to_dict()
    return stored


def is_cancelled_whole(events):
    last = obeys(events)
    assert events[-1]["type"] == "response.incomplete", events[-1]["type"]
    assert (last["status"], last["incomplete_details"]) == ("cancelled", {"reason": "cancelled"})
    return last


@check
def a_cancel_in_the_middle_ends_the_response_and_all_its_streams():
    response, closed = held(reasoning=["Hm. "])
    seen, other = [], []
    one, two = tail(here, response), tail(there, response)
    watching = [later(lambda: follow(one, seen)), later(lambda: follow(two, other))]
    shows(seen, "response.output_text.delta")
    shows(other, "response.output_text.delta")
    stored = cancelled(there, response).to_dict()
    for watcher in watching:
        watcher.result()
    closed.open()
    assert seen == other == read(here, response)
    assert is_cancelled_whole(seen) == stored
    torn = [event["item"] for event in seen if event["type"] == "response.output_item.done"][-1]
    assert torn["status"] == "incomplete" and marks(1, 1, 6).startswith(torn["content"][0]["text"])
    assert here.responses.retrieve(response.id).to_dict() == stored, "and so it stays"


@check
def a_cancel_again_changes_nothing():
    response, closed = held()
    stored = cancelled(here, response).to_dict()
    for api in (here, there, here):
        assert api.responses.cancel(response.id).to_dict() == stored
    closed.open()
    assert is_cancelled_whole(read(here, response)) == stored


@check
def cancels_at_the_same_time_are_one():
    response, closed = held()
    answers = together(*[lambda n=n: cancelled((here, there)[n % 2], response).to_dict() for n in range(8)])
    closed.open()
    assert all(answer == answers[0] for answer in answers)
    assert is_cancelled_whole(read(here, response)) == answers[0]


@check
def a_cancel_that_comes_too_late_changes_nothing():
    for turns in ((turn(3),), (turn(3, finishReason="length"),), (turn(3, status=400),)):
        script(*turns)
        response = ended(here, begin())
        before = read(here, response)
        for api in (here, there):
            assert api.responses.cancel(response.id).to_dict() == response.to_dict()
        assert response.status != "cancelled"
        assert there.responses.retrieve(response.id).to_dict() == response.to_dict()
        assert read(there, response) == before


@check
def a_cancel_and_the_end_at_the_same_time_agree():
    script(turn(3))
    ends = set()
    for n in range(24):
        closed = Gate(2 + n % 2)
        response = begin()
        closed.reached()
        answer, _ = together(lambda: there.responses.cancel(response.id), closed.open)
        last = obeys(read(here, response))
        assert last["status"] in ("completed", "cancelled")
        # What was acknowledged holds.
        assert last["status"] == "cancelled" if answer.status in UNDER_WAY else answer.to_dict() == last
        assert there.responses.retrieve(response.id).to_dict() == last
        ends.add(last["status"])
    assert ends == {"completed", "cancelled"}, ends


@check
def a_cancel_whose_reply_is_lost_is_made_again():
    response, closed = held()
    flaky = client(0, LosesReplies(1))
    try:
        flaky.responses.cancel(response.id)
        raise AssertionError("the reply was not lost")
    except openai.APIConnectionError:
        pass
    cancelled(flaky, response)
    closed.open()
    is_cancelled_whole(read(there, response))
    # The package by itself.
    response, closed = held()
    cancelled(client(0, LosesReplies(1), max_retries=2), response)
    closed.open()


@check
def a_cancel_that_its_client_gives_up_is_made_again():
    response, closed = held()
    for timeout in (0.001, 0.005):
        try:
            here.with_options(timeout=timeout).responses.cancel(response.id)
        except openai.APITimeoutError:
            pass
    cancelled(there, response)
    closed.open()
    is_cancelled_whole(read(here, response))


@check
def a_cancel_ends_what_the_strict_helper_reads():
    response, closed = held()
    with here.responses.stream(response_id=response.id) as stream:
        event = next(event for event in stream if event.type == "response.output_text.delta")
        assert marks(1, 1, 6).startswith(event.snapshot)
        stored = cancelled(there, response)
        rest = raw(stream)
    closed.open()
    assert rest[-1]["type"] == "response.incomplete" and rest[-1]["response"] == stored.to_dict()
    # The whole again.
    with there.responses.stream(response_id=response.id) as stream:
        is_cancelled_whole(raw(stream))


@check
def a_cancel_reaches_a_response_that_nobody_works_on():
    script(turn(3))
    kill_workers()
    try:
        response = begin()
        watching = later(lambda: read(there, response))
        stored = cancelled(here, response)
        assert is_cancelled_whole(watching.result()) == stored.to_dict()
        assert stored.output == []
    finally:
        replace_workers()


@check
def a_cancel_ends_the_wait_for_a_tool_of_the_client_too_late():
    script(turn(1, calls=[["get_weather", {"city": "Oslo"}]]))
    tools = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}]
    response = ended(here, begin(tools=tools))
    assert kinds(response.to_dict()["output"]) == ["message", "function_call"]
    assert there.responses.cancel(response.id).to_dict() == response.to_dict(), "it is completed"


def is_gone(response):
    for api in (here, there):
        for act in (
            lambda: api.responses.retrieve(response.id),
            lambda: list(api.responses.retrieve(response.id, stream=True)),
            lambda: list(api.responses.retrieve(response.id, stream=True, starting_after=1)),
            lambda: api.responses.cancel(response.id),
            lambda: api.responses.delete(response.id),
            lambda: list(api.responses.input_items.list(response.id)),
        ):
            refused(act, openai.NotFoundError)
        again = {"model": "helper", "input": "go", "previous_response_id": response.id}
        error = refused(lambda: api.responses.create(**again), openai.BadRequestError, openai.NotFoundError)
        assert error.code == "previous_response_not_found", error.body


@check
def what_is_deleted_is_gone_for_every_verb():
    script(turn(3))
    response = ended(here, begin())
    assert here.responses.delete(response.id) is None
    is_gone(response)


@check
def the_answer_to_a_delete_says_what_was_deleted():
    script(turn(3))
    response = ended(here, begin())
    answer = call("DELETE", f"/v1/responses/{response.id}")
    assert answer.status_code // 100 == 2
    assert answer.json() == {"id": response.id, "object": "response", "deleted": True}


@check
def a_delete_cancels_what_is_running():
    response, closed = held()
    seen = []
    watching = later(lambda: follow(tail(there, response), seen))
    shows(seen, "response.output_text.delta")
    here.responses.delete(response.id)
    is_gone(response)
    # The gate is closed, so that nothing else can end it.
    until(lambda: not any(running(status) for status in ("queued", "pending", "running", "waiting")))
    try:
        watching.result()
        assert seen[-1]["type"] == "response.incomplete", "a clean end is an end of the run"
    except openai.APIConnectionError:
        pass
    closed.open()


def running(status):
    return call("GET", f"/v1/runs?status={status}").json()["data"]


@check
def a_delete_of_a_parent_leaves_the_child():
    script(turn(3))
    parent = here.responses.create(model="helper", input="one")
    child = there.responses.create(model="helper", input="two", previous_response_id=parent.id)
    here.responses.delete(parent.id)
    stored = there.responses.retrieve(child.id)
    assert (stored.status, stored.output_text) == ("completed", marks(1, 1, 3))
    assert said(obeys(read(here, child))["output"]) == marks(1, 1, 3)


play()
