"""Responses in good weather: what is created, streamed, handed to the model and refused."""

import json
import os
import pathlib
import re
import time

import httpx2
import openai
from pydantic import BaseModel

from streams import begin, ended, kinds, marks, obeys, raw, read, response_obeys, said, tail
from world import Gate, apis, asked, async_client, call, check, client, headers, here, later, play
from world import new_key, refused, script, there, tool, turn, until

WITH_TOOL = (turn(3, reasoning=["Let ", "me ", "look."], calls=[["look", {"op": "weather"}]]), turn(20))

PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
GET_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": PLACE,
    "strict": True,
}


@check
def a_response_without_a_stream_is_whole():
    script(turn(5))
    response = here.responses.create(model="helper", input="go", metadata={"a": "b"})
    assert re.fullmatch(r"resp_[0-9a-f]{32}", response.id), response.id
    assert (response.status, response.model, response.output_text) == ("completed", "helper", marks(1, 1, 5))
    assert (response.usage.input_tokens, response.usage.output_tokens) == (10, 5)
    assert abs(response.created_at - time.time()) < 60
    assert response._request_id
    response_obeys(response.to_dict())
    for api in (here, there):
        assert api.responses.retrieve(response.id).to_dict() == response.to_dict()


@check
def one_whole_stream_keeps_all_rules_and_leads_to_what_is_stored():
    script(*WITH_TOOL)
    with here.responses.create(model="helper", input="go", stream=True, metadata={"a": "b"}) as stream:
        events = raw(stream)
    last = obeys(events)
    assert kinds(last["output"]) == ["reasoning", "message", "mcp_call", "message"]
    assert said(last["output"]) == marks(1, 1, 3) + marks(1, 2, 20)
    assert last["metadata"] == {"a": "b"} and last["status"] == "completed"
    types = [event["type"] for event in events]
    assert types[1:3] == ["response.queued", "response.in_progress"]
    for api in (here, there):
        stored = api.responses.retrieve(last["id"])
        assert stored.to_dict() == last
        assert read(api, stored) == events


@check
def the_final_state_can_be_read_before_its_event_is_sent():
    script(turn(2))
    for n in range(5):
        with here.responses.create(model="helper", input=f"go {n}", stream=True) as stream:
            for event in stream:
                if event.type == "response.completed":
                    assert there.responses.retrieve(event.response.id).to_dict() == event.response.to_dict()


@check
def reasoning_is_an_item_of_its_own():
    script(turn(2, reasoning=["Let ", "me ", "think."]))
    response = here.responses.create(model="helper", input="go")
    thought = response.output[0]
    assert kinds(response.to_dict()["output"]) == ["reasoning", "message"]
    texts = [part.text for part in thought.summary + (thought.content or [])]
    assert "".join(texts) == "Let me think."
    assert response.output_text == marks(1, 1, 2)


@check
def a_tool_of_the_server_is_a_call_with_its_output():
    script(*WITH_TOOL)
    events = read(there, begin(here))
    item = obeys(events)["output"][2]
    assert (item["name"], json.loads(item["arguments"])) == ("look", {"op": "weather"})
    assert json.loads(item["output"])["ok"] is True and item["status"] == "completed"
    assert not item.get("error") and item["server_label"]
    of_call = [event["type"] for event in events if event.get("item_id") == item["id"]]
    assert of_call[0] == "response.mcp_call.in_progress" and of_call[-1] == "response.mcp_call.completed"
    assert "response.mcp_call_arguments.done" in of_call


@check
def a_tool_of_the_server_that_fails_says_so_and_the_response_goes_on():
    script(turn(1, calls=[["put", {"op": "fails"}]]), turn(3))
    tool("put", status=422)
    try:
        events = read(here, begin(there))
    finally:
        tool("put")
    last = obeys(events)
    assert kinds(last["output"]) == ["message", "mcp_call", "message"] and last["status"] == "completed"
    assert last["output"][1]["status"] == "failed" and last["output"][1]["error"]
    assert any(event["type"] == "response.mcp_call.failed" for event in events)


@check
def the_background_is_answered_at_once():
    script(turn(4))
    closed = Gate(0)
    response = begin()
    assert (response.status, response.output, response.usage) == ("queued", [], None)
    response_obeys(response.to_dict())
    closed.reached()
    now = until(lambda: (now := there.responses.retrieve(response.id)).status == "in_progress" and now)
    assert now.output == []
    response_obeys(now.to_dict())
    closed.open()
    done = ended(there, response)
    assert (done.status, done.output_text, done.background) == ("completed", marks(1, 1, 4), True)
    assert done.created_at == response.created_at


@check
def a_background_stream_is_created_and_read_at_once():
    script(turn(4))
    with there.responses.create(model="helper", input="go", background=True, stream=True) as stream:
        last = obeys(raw(stream))
    assert last["background"] is True and said(last["output"]) == marks(1, 1, 4)


@check
def the_headers_of_a_stream_are_what_clients_and_proxies_need():
    script(turn(2))
    created = here.responses.create(model="helper", input="go", stream=True)
    last = obeys(raw(created))
    again = there.responses.retrieve(last["id"], stream=True)
    raw(again)
    for stream in (created, again):
        got = stream.response.headers
        assert got["content-type"].split(";")[0] == "text/event-stream"
        assert {"no-cache", "no-transform"} <= set(re.split(r",\s*", got["cache-control"])), got
        assert got["x-accel-buffering"] == "no"
        assert "content-encoding" not in got and got["x-request-id"]


@check
def a_stream_begins_before_its_first_event():
    script(turn(2))
    closed = Gate(0)
    response = begin()
    closed.reached()
    stream = tail(there, response, after=1000)
    assert stream.response.status_code == 200
    closed.open()
    assert raw(stream) == []


@check
def the_frames_are_as_every_parser_reads_them():
    script(*WITH_TOOL)
    response = ended(here, begin())
    path = f"/v1/responses/{response.id}?stream=true"
    answers = [call("GET", path, api) for api in (0, 1, 0)]
    assert len({answer.content for answer in answers}) == 1, "the same bytes for ever"
    *frames, done, rest = answers[0].content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for n, frame in enumerate(frames):
        event, data = [line for line in frame.split("\n") if not line.startswith(":")]
        data = json.loads(data.removeprefix("data: "))
        assert event == f"event: {data['type']}" and data["sequence_number"] == n
    created = json.loads(frames[0].split("data: ")[1])["response"]
    assert (created["status"], created["output"]) == ("queued", []), "as it was then"


@check
def silence_is_filled_with_comments_that_no_parser_trips_over():
    script(turn(4))
    closed = Gate(2)
    response = begin()
    closed.reached()
    # Heartbeats are a second apart here.
    short = httpx2.Timeout(10, read=2.5)
    by_package = later(lambda: read(client(1, timeout=short), response))
    beats, path = b"", f"{apis[0]}/v1/responses/{response.id}?stream=true"
    with httpx2.stream("GET", path, headers=headers, timeout=short) as stream:
        for chunk in stream.iter_raw():
            beats = beats + chunk
            if beats.count(b": hb\n") >= 4:
                break
    # Not a line more: for the package a blank one would end an event.
    assert b": hb\n\n" not in beats, beats
    assert not any(line.startswith((b"id:", b"retry:")) for line in beats.split(b"\n"))
    closed.open()
    assert said(obeys(by_package.result())["output"]) == marks(1, 1, 4)


@check
def text_of_any_kind_arrives_as_it_is():
    tokens = ["Grüße ", "😀", "ﷺ", "\u2028\u2029\x85", "\t, \r, \n\n", 'data: "q" \\ ', "\nevent: x\n\n"]
    script(turn(text=tokens))
    with here.responses.create(model="helper", input="".join(tokens), stream=True) as stream:
        last = obeys(raw(stream))
    assert said(last["output"]) == "".join(tokens)
    assert there.responses.input_items.list(last["id"]).data[0].content[0].text == "".join(tokens)


@check
def the_strict_helper_reads_a_new_stream_to_its_response():
    script(*WITH_TOOL)
    with here.responses.stream(model="helper", input="go") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[-1].type == "response.completed"
    assert final.output_text == marks(1, 1, 3) + marks(1, 2, 20)
    assert there.responses.retrieve(final.id).output_text == final.output_text


@check
async def the_asynchronous_client_reads_the_same():
    script(*WITH_TOOL)
    async with async_client(0) as here, async_client(1) as there:
        async with here.responses.stream(model="helper", input="go") as stream:
            final = await stream.get_final_response()
        again = [event.to_dict() async for event in await there.responses.retrieve(final.id, stream=True)]
        assert obeys(again) == (await there.responses.retrieve(final.id)).to_dict()
        assert (await here.responses.create(model="helper", input="go")).output_text == final.output_text


class Weather(BaseModel):
    city: str
    degrees: int


@check
def an_answer_in_a_given_form_is_parsed():
    script(turn(text=['{"city":', '"Oslo",', '"degrees":-3}']))
    response = here.responses.parse(model="helper", input="go", text_format=Weather)
    assert response.output_parsed == Weather(city="Oslo", degrees=-3)
    with there.responses.stream(model="helper", input="go", text_format=Weather) as stream:
        assert stream.get_final_response().output_parsed == Weather(city="Oslo", degrees=-3)
    wanted = asked()[-1]["response_format"]
    assert wanted["type"] == "json_schema" and wanted["json_schema"]["name"] == "Weather"
    assert wanted["json_schema"]["strict"] is True
    assert set(wanted["json_schema"]["schema"]["properties"]) == {"city", "degrees"}
    assert response.to_dict()["text"]["format"]["type"] == "json_schema"


@check
def what_is_asked_of_the_model_reaches_it_and_is_echoed():
    script(turn(1))
    wanted = {
        "instructions": "Speak like a pirate.",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 77,
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "tools": [GET_WEATHER],
        "truncation": "disabled",
        "metadata": {f"key {n}": "x" * 512 for n in range(16)},
    }
    response = here.responses.create(
        model="helper",
        input=[{"role": "developer", "content": "In verse."}, {"role": "user", "content": "go"}],
        reasoning={"effort": "low"},
        text={"format": {"type": "json_object"}},
        **wanted,
    )
    echo = response_obeys(response.to_dict())
    for name, value in wanted.items():
        assert echo[name] == value, name
    assert (echo["reasoning"]["effort"], echo["text"]["format"]) == ("low", {"type": "json_object"})
    request = asked()[-1]
    assert (request["temperature"], request["top_p"], request["parallel_tool_calls"]) == (0.5, 0.9, False)
    assert 77 in (request.get("max_tokens"), request.get("max_completion_tokens"))
    assert (request["tool_choice"], request["reasoning_effort"]) == ("required", "low")
    assert request["response_format"] == {"type": "json_object"}
    told = json.dumps(request["messages"])
    assert "Speak like a pirate." in told and "In verse." in told
    ours = {tool["function"]["name"]: tool["function"] for tool in request["tools"]}
    assert ours["get_weather"]["parameters"] == PLACE and "look" in ours
    choice = {"type": "function", "name": "get_weather"}
    named = here.responses.create(model="helper", input="go", tools=[GET_WEATHER], tool_choice=choice)
    assert named.to_dict()["tool_choice"] == choice
    assert asked()[-1]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}


@check
def what_is_not_asked_has_its_default():
    script(turn(1))
    echo = here.responses.create(model="helper", input="go").to_dict()
    assert (echo["tools"], echo["tool_choice"], echo["parallel_tool_calls"]) == ([], "auto", True)
    assert (echo["metadata"], echo["background"], echo["store"]) == ({}, False, True)
    for name in ("previous_response_id", "conversation", "instructions", "max_output_tokens"):
        assert echo.get(name) is None, name


@check
def what_the_server_does_not_know_is_let_through():
    script(turn(1))
    response = here.responses.create(
        model="helper",
        input="go",
        user="somebody",
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        max_tool_calls=5,
        prompt_cache_key="k",
        safety_identifier="s",
        service_tier="auto",
        stream_options={"include_obfuscation": False},
        extra_headers={"x-unheard-of": "1", "openai-beta": "responses=v9"},
        extra_body={"unheard_of": {"a": [1]}},
        extra_query={"unheard": "of"},
    )
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert there.responses.retrieve(response.id, include=include).to_dict() == response.to_dict()
    more = {"include": include, "include_obfuscation": False}
    with there.responses.retrieve(response.id, stream=True, **more) as stream:
        assert obeys(raw(stream)) == response.to_dict()
    assert there.responses.retrieve(response.id, stream=False).to_dict() == response.to_dict()


@check
def a_model_of_a_provider_needs_no_agent_of_its_own():
    response = here.responses.create(model="fake/tokens-3", input="go")
    assert (response.model, response.output_text) == ("fake/tokens-3", marks(1, 1, 3))


@check
def an_answer_that_the_model_cut_off_is_incomplete():
    script(turn(3, finishReason="length"))
    response = here.responses.create(model="helper", input="go")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = read(there, response)
    assert obeys(events) == response.to_dict()
    assert events[-1]["type"] == "response.incomplete" and response.output_text == marks(1, 1, 3)


@check
def a_call_that_the_output_limit_cut_off_is_not_asked_for():
    calls = [["get_weather", {"city": "Rome"}], ["get_weather", "not an obj"]]
    script(turn(1, calls=calls, finishReason="length"))
    response = here.responses.create(model="helper", input="go", tools=[GET_WEATHER])
    kinds_of = [item.type for item in response.output]
    assert (response.status, kinds_of) == ("incomplete", ["message", "function_call"])
    assert json.loads(response.output[1].arguments) == {"city": "Rome"}


@check
def a_choice_of_allowed_tools_is_all_that_the_model_is_told_of():
    other = {**GET_WEATHER, "name": "get_time"}
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_time"}],
    }
    script(turn(1, calls=[["get_time", {"city": "Rome"}]]))
    response = here.responses.create(
        model="helper", input="go", tools=[GET_WEATHER, other], tool_choice=choice
    )
    assert response.tool_choice.to_dict() == choice and len(response.tools) == 2
    told = asked()[-1]
    assert [tool["function"]["name"] for tool in told["tools"]] == ["get_time"]
    assert told["tool_choice"] == "required"
    # A model that calls another one all the same.
    script(turn(1, calls=[["look", {"op": "x"}], ["get_weather", {"city": "Rome"}]]), turn(1))
    response = here.responses.create(
        model="helper", input="go", tools=[GET_WEATHER, other], tool_choice={**choice, "mode": "auto"}
    )
    made = [(item.type, item.name, item.status) for item in response.output if item.type != "message"]
    assert made == [("mcp_call", "look", "failed"), ("mcp_call", "get_weather", "failed")], made


@check
def a_conversation_that_is_too_long_is_cut_or_refused_as_the_client_wants_it():
    previous = None
    for word in ("first", "second"):
        script(turn(1))
        long = here.responses.create(model="helper", input=word * 50_000, previous_response_id=previous)
        assert (long.status, long.truncation) == ("completed", "auto")
        previous = long.id
    for truncation, status in (("auto", "completed"), ("disabled", "failed")):
        script(turn(1))
        response = here.responses.create(
            model="helper", input="third", previous_response_id=previous, truncation=truncation
        )
        assert (response.status, response.truncation) == (status, truncation)
        if status == "completed":
            said = [one["content"][:6] for one in asked()[-1]["messages"] if one["role"] == "user"]
            assert said == ["second", "third"], said
        else:
            assert response.error.to_dict()["type"] == "context_length_exceeded"


@check
def a_provider_that_refuses_makes_a_failed_response():
    script(turn(4, status=400))
    response = here.responses.create(model="helper", input="go")
    assert (response.status, response.output_text) == ("failed", "")
    assert response.error.code and response.error.message
    with there.responses.stream(response_id=response.id) as stream:
        events = raw(stream)
    assert obeys(events) == response.to_dict() and events[-1]["type"] == "response.failed"


def weather_of(*cities):
    return turn(2, calls=[["get_weather", {"city": city}] for city in cities])


def output(item, degrees):
    degrees = json.dumps({"degrees": degrees})
    return {"type": "function_call_output", "call_id": item.call_id, "output": degrees}


@check
def a_tool_of_the_client_goes_round_without_a_stream():
    script(weather_of("Oslo"), turn(4))
    first = here.responses.create(model="helper", input="weather?", tools=[GET_WEATHER])
    item = first.output[-1]
    assert (first.status, kinds(first.to_dict()["output"])) == ("completed", ["message", "function_call"])
    assert (item.name, json.loads(item.arguments)) == ("get_weather", {"city": "Oslo"})
    assert item.call_id and item.id and item.status == "completed"
    second = there.responses.create(
        model="helper", previous_response_id=first.id, input=[output(item, -3)], tools=[GET_WEATHER]
    )
    assert (second.status, second.output_text) == ("completed", marks(1, 2, 4))
    assert second.previous_response_id == first.id
    told = asked()[-1]["messages"][-1]
    assert (told["role"], told["tool_call_id"]) == ("tool", item.call_id)
    assert "-3" in json.dumps(told["content"])
    assert there.responses.retrieve(first.id).to_dict() == first.to_dict(), "what is over does not change"
    got = here.responses.input_items.list(second.id).data
    assert [(one.type, one.call_id) for one in got] == [("function_call_output", item.call_id)]


@check
def a_tool_of_the_client_goes_round_in_streams():
    script(weather_of("Oslo", "Rome"), turn(4))
    with here.responses.stream(model="helper", input="weather?", tools=[GET_WEATHER]) as stream:
        events = list(stream)
        first = stream.get_final_response()
    calls = [item for item in first.output if item.type == "function_call"]
    assert [call.parsed_arguments for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len({call.call_id for call in calls}) == 2
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments for call in calls]
    last = obeys(read(there, first))
    assert kinds(last["output"]) == ["message", "function_call", "function_call"]
    # In another order than they were asked for.
    outputs = [output(calls[1], 30), output(calls[0], -3)]
    again = {"model": "helper", "previous_response_id": first.id, "tools": [GET_WEATHER]}
    with there.responses.stream(input=outputs, **again) as stream:
        second = stream.get_final_response()
    assert second.output_text == marks(1, 2, 4)
    obeys(read(here, second))


@check
def tools_of_both_sides_are_called_in_one_step():
    script(turn(1, calls=[["look", {"op": "x"}], ["get_weather", {"city": "Oslo"}]]), turn(2))
    first = here.responses.create(model="helper", input="both", tools=[GET_WEATHER])
    last = obeys(read(there, first))
    assert sorted(kinds(last["output"])) == ["function_call", "mcp_call", "message"]
    (item,) = [item for item in first.output if item.type == "function_call"]
    (ours,) = [item for item in first.output if item.type == "mcp_call"]
    assert ours.status == "completed" and ours.output
    second = there.responses.create(
        model="helper", previous_response_id=first.id, input=[output(item, -3)], tools=[GET_WEATHER]
    )
    assert second.output_text == marks(1, 2, 2)
    told = [message["role"] for message in asked()[-1]["messages"]]
    assert told[-4:] == ["user", "assistant", "tool", "tool"]


@check
def outputs_must_fit_the_calls():
    script(weather_of("Oslo", "Rome"), turn(4))
    first = here.responses.create(model="helper", input="weather?", tools=[GET_WEATHER])
    one, other = [item for item in first.output if item.type == "function_call"]
    stranger = {**output(one, 1), "call_id": "call_nobody_made"}
    before = len(asked())
    for input in (
        [output(one, 1)],
        "Never mind.",
        [output(one, 1), {"role": "user", "content": "And?"}],
        [output(one, 1), output(other, 2), stranger],
        [output(one, 1), output(one, 2), output(other, 3)],
    ):
        again = {"model": "helper", "previous_response_id": first.id, "input": input, "tools": [GET_WEATHER]}
        refused(lambda: there.responses.create(**again), openai.BadRequestError)
    refused(lambda: here.responses.create(model="helper", input=[stranger]), openai.BadRequestError)
    assert len(asked()) == before, "the model was not asked"


@check
def a_history_that_the_client_keeps_itself_is_taken():
    script(turn(2, calls=[["get_weather", {"city": "Oslo"}]]), turn(3))
    history = [{"role": "user", "content": "weather?"}]
    first = here.responses.create(model="helper", input=history, tools=[GET_WEATHER])
    # As the package's documentation does it.
    history += first.output
    history.append(output(first.output[-1], -3))
    second = there.responses.create(model="helper", input=history, tools=[GET_WEATHER])
    assert second.output_text == marks(1, 2, 3)
    roles = [message["role"] for message in asked()[-1]["messages"] if message["role"] != "system"]
    assert roles == ["user", "assistant", "tool"]


@check
def what_makes_no_sense_is_refused():
    good = {"model": "helper", "input": "go"}
    pairs = {f"key {n}": "x" for n in range(17)}
    id = here.responses.create(model="quick", input="go").id
    conversation = here.conversations.create()
    before = len(asked())
    for bad in (
        {"metadata": pairs},
        {"background": True, "store": False},
        {"previous_response_id": id, "conversation": conversation.id},
        {"input": 5},
        {"input": []},
        {"input": [{"type": "unheard_of"}]},
        {"temperature": "warm"},
        {"tools": "all of them"},
        {"max_output_tokens": -1},
    ):
        error = refused(lambda: here.responses.create(**{**good, **bad}), openai.BadRequestError)
        assert error.status_code == 400, bad
    kinds = (openai.BadRequestError, openai.NotFoundError)
    for model in ("nobody", "nobody/at-all", ""):
        refused(lambda: here.responses.create(model=model, input="go"), *kinds)
    for body in ("{", "[]", '"go"', ""):
        answer = call("POST", "/v1/responses", content=body)
        assert answer.status_code in (400, 422), (body, answer)
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert len(asked()) == before, "the model was not asked"


@check
def what_is_unknown_is_not_found():
    for id in ("resp_" + "0" * 32, "resp_nonsense", "päge / one?", "x" * 3000):
        for act in (
            lambda: here.responses.retrieve(id),
            lambda: list(here.responses.retrieve(id, stream=True)),
            lambda: here.responses.cancel(id),
            lambda: here.responses.delete(id),
            lambda: list(here.responses.input_items.list(id)),
        ):
            refused(act, openai.NotFoundError)


@check
def a_key_that_is_none_opens_nothing():
    for key in ("nonsense", "lh_0123456789abcdef"):
        stranger = client(0, api_key=key)
        for act in (
            lambda: stranger.responses.create(model="helper", input="go"),
            lambda: stranger.responses.create(model="helper", input="go", stream=True),
            lambda: stranger.responses.retrieve("resp_" + "0" * 32),
            lambda: stranger.conversations.create(),
        ):
            refused(act, openai.AuthenticationError)


@check
def another_workspace_sees_nothing_and_joins_nothing():
    script(turn(3))
    again = {"model": "helper", "input": "go", "extra_headers": {"Idempotency-Key": "the same for all"}}
    conversation = here.conversations.create()
    ours = here.responses.create(**again, conversation=conversation.id)
    stranger = client(1, api_key=new_key("elsewhere"))
    for act in (
        lambda: stranger.responses.retrieve(ours.id),
        lambda: list(stranger.responses.retrieve(ours.id, stream=True)),
        lambda: stranger.responses.cancel(ours.id),
        lambda: stranger.responses.delete(ours.id),
        lambda: list(stranger.responses.input_items.list(ours.id)),
        lambda: stranger.conversations.retrieve(conversation.id),
        lambda: stranger.conversations.update(conversation.id, metadata={"a": "b"}),
        lambda: stranger.conversations.delete(conversation.id),
        lambda: list(stranger.conversations.items.list(conversation.id)),
    ):
        refused(act, openai.NotFoundError)
    go = {"model": "helper", "input": "go"}
    kinds = (openai.BadRequestError, openai.NotFoundError)
    error = refused(lambda: stranger.responses.create(**go, previous_response_id=ours.id), *kinds)
    assert error.code == "previous_response_not_found"
    refused(lambda: stranger.responses.create(**go, conversation=conversation.id), *kinds)
    theirs = stranger.responses.create(**again)
    assert theirs.id != ours.id and theirs.status == "completed"
    refused(lambda: here.responses.retrieve(theirs.id), openai.NotFoundError)
    assert here.responses.retrieve(ours.id).to_dict() == ours.to_dict()


@check
def a_key_that_may_only_read_changes_nothing():
    script(turn(3))
    ours = here.responses.create(model="helper", input="go")
    viewer = client(1, api_key=new_key(role="viewer"))
    assert viewer.responses.retrieve(ours.id).to_dict() == ours.to_dict()
    assert read(viewer, ours) == read(here, ours)
    for act in (
        lambda: viewer.responses.create(model="helper", input="go"),
        lambda: viewer.responses.cancel(ours.id),
        lambda: viewer.responses.delete(ours.id),
        lambda: viewer.conversations.create(),
    ):
        refused(act, openai.PermissionDeniedError)


@check
def a_request_for_approval_ends_what_the_strict_helper_reads():
    # No run brings it about yet: the encoder's own test holds it to this text.
    text = pathlib.Path(os.environ["LONGHAUL_VIEWS"], "responses", "approval.sse").read_bytes()
    kind = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=kind, content=text))
    with client(transport=transport).responses.stream(model="helper", input="pay") as stream:
        response = stream.get_final_response()
    message, request = response.output
    assert (message.type, request.type, request.name) == ("message", "mcp_approval_request", "pay")
    assert json.loads(request.arguments) == {"amount": 5}
    response_obeys(response.to_dict())


play()
