"""What is said again, referred to or taken back: repeated calls, calls of tools that go round twice, deleted things."""

import openai

from streams import marks
from world import asked, call, check, client, here, new_key, play, refused, script, there, turn

TOOL = {"type": "function", "name": "ask", "description": "Asks.", "parameters": {"type": "object"}}
ASKS = turn(1, calls=[["ask", {"q": 1}]])


def say(input, api=here, **more):
    return api.responses.create(model="helper", input=input, **more)


def output(response, text="two"):
    (asked_for,) = [item for item in response.output if item.type == "function_call"]
    return {"type": "function_call_output", "call_id": asked_for.call_id, "output": text}


def told(request=-1):
    return [one for one in asked()[request]["messages"] if one["role"] != "system"]


@check
def a_key_stands_for_its_response_in_a_conversation_that_went_on():
    script(ASKS, turn(2))
    conversation = here.conversations.create().id
    first = {"conversation": conversation, "tools": [TOOL], "extra_headers": {"Idempotency-Key": "one"}}
    asking = say("How much?", **first)
    assert say("How much?", there, **first).id == asking.id
    second = {**first, "extra_headers": {"Idempotency-Key": "two"}}
    answered = say([output(asking)], **second)
    assert say([output(asking)], there, **second).to_dict() == answered.to_dict()
    assert say("How much?", **first).id == asking.id
    error = refused(lambda: say("How little?", **first), openai.UnprocessableEntityError, openai.BadRequestError)
    assert error.response.headers["x-should-retry"] == "false"
    assert len(list(here.conversations.items.list(conversation))) == 5


@check
def an_output_whose_turn_failed_is_sent_again():
    for how in ("conversation", "chain"):
        script(ASKS, turn(status=400))
        place = {"conversation": here.conversations.create().id} if how == "conversation" else {}
        asking = say("How much?", tools=[TOOL], **place)
        place = place or {"previous_response_id": asking.id}
        assert say([output(asking)], there, **place).status == "failed"
        script(ASKS, turn(2))
        again = place if how == "conversation" else {"previous_response_id": asking.id}
        assert say([output(asking)], **again).output_text == marks(1, 2, 2)
        roles = [one["role"] for one in told()]
        assert roles == ["user", "assistant", "tool"], roles


@check
def an_output_that_is_added_to_a_conversation_answers_its_call():
    script(ASKS, turn(2))
    conversation = here.conversations.create(items=[{"role": "user", "content": "Before."}]).id
    asking = say("How much?", conversation=conversation, tools=[TOOL])
    (added,) = there.conversations.items.create(conversation, items=[output(asking)]).data
    assert added.type == "function_call_output"
    script(turn(2))
    assert say("And?", conversation=conversation).output_text == marks(1, 1, 2)
    assert [one["role"] for one in told()] == ["user", "user", "assistant", "tool", "user"]
    kept = here.conversations.items.retrieve(added.id, conversation_id=conversation)
    assert kept.to_dict() == added.to_dict()
    refused(lambda: here.conversations.items.retrieve("msg_nobody", conversation_id=conversation), openai.NotFoundError)


@check
def a_response_goes_on_though_its_conversation_is_deleted():
    script(turn(2))
    conversation = here.conversations.create().id
    say("one", conversation=conversation)
    two = say("two", conversation=conversation)
    here.conversations.delete(conversation)
    assert say("three", there, previous_response_id=two.id).status == "completed"
    assert [one["content"] for one in told() if one["role"] == "user"] == ["one", "two", "three"]


@check
def what_is_deleted_does_not_come_back():
    script(turn(2))
    keyed = {"extra_headers": {"Idempotency-Key": "deleted"}}
    response = say("A secret.", **keyed)
    here.responses.delete(response.id)
    for more in ({}, {"stream": True}, {"background": True}):
        refused(lambda: say("A secret.", there, **keyed, **more), openai.NotFoundError, openai.UnprocessableEntityError)
    run = response.id.removeprefix("resp_")
    run = f"{run[:8]}-{run[8:12]}-{run[12:16]}-{run[16:20]}-{run[20:]}"
    assert call("GET", f"/v1/runs/{run}").status_code == 404
    chats = call("GET", "/v1/chats").json()["data"]
    assert all(call("GET", f"/v1/chats/{chat['chatId']}/messages").text.find("A secret.") < 0 for chat in chats)


@check
def a_response_that_is_not_to_be_stored_is_gone_when_it_is_over():
    script(turn(2))
    response = say("one", store=False)
    assert response.store is False
    refused(lambda: there.responses.retrieve(response.id), openai.NotFoundError)
    refused(lambda: say("two", previous_response_id=response.id), openai.BadRequestError, openai.NotFoundError)
    assert there.responses.cancel(response.id).to_dict() == response.to_dict()


@check
def a_call_that_failed_is_remembered_as_one_that_failed():
    script(turn(1, calls=[["look", {"wrong": 1}]]), turn(2))
    first = say("look")
    (failed,) = [item for item in first.output if item.type == "mcp_call"]
    assert failed.status == "failed" and failed.error
    history = [{"role": "user", "content": "look"}, *(item.to_dict() for item in first.output)]
    by_reference = [{"role": "user", "content": "look"}]
    by_reference += [{"type": "item_reference", "id": item.id} for item in first.output]
    for input in (history, by_reference):
        say([*input, {"role": "user", "content": "again"}], there)
        (result,) = [one for one in told(-2) if one["role"] == "tool"]
        assert result["content"].startswith("Error: "), result


@check
def no_more_of_the_agents_tools_are_called_than_allowed():
    looks = turn(1, calls=[["look", {"op": "x"}], ["look", {"op": "y"}]])
    script(looks, turn(2))
    response = say("look", max_tool_calls=1)
    states = [item.status for item in response.output if item.type == "mcp_call"]
    assert (response.status, states) == ("completed", ["completed", "failed"])
    assert not asked()[-1].get("tools"), "they are not offered any more"


@check
def items_of_others_and_of_what_is_under_way_cannot_be_referred_to():
    script(turn(2))
    response = say("mine")
    (item,) = response.output
    (question,) = here.responses.input_items.list(response.id).data
    stranger = client(1, api_key=new_key("elsewhere"))
    for id in (item.id, question.id, "msg_nobody", "x"):
        input = [{"type": "item_reference", "id": id}, {"role": "user", "content": "And?"}]
        refused(lambda: say(input, stranger), openai.NotFoundError)
    input = [{"type": "item_reference", "id": id} for id in (question.id, item.id)]
    say([*input, {"role": "user", "content": "And?"}])
    assert [one["role"] for one in told()] == ["user", "assistant", "user"]
    script(turn(text=["x" * 4_000]))
    (item,) = say("Speak long.").output
    refused(lambda: say([{"type": "item_reference", "id": item.id}] * 9_000), openai.BadRequestError)


@check
def keys_of_less_do_less():
    script(turn(2))
    response = say("one")
    conversation = here.conversations.create().id
    operator = client(0, api_key=new_key(role="operator"))
    assert say("two", operator).status == "completed"
    refused(lambda: operator.responses.delete(response.id), openai.PermissionDeniedError)
    refused(lambda: operator.conversations.delete(conversation), openai.PermissionDeniedError)
    run = call("POST", "/v1/runs", json={"agent": "helper", "input": "go"}).json()["runId"]
    token = call("POST", f"/v1/runs/{run}/token").json()["token"]
    holder = client(0, api_key=token)
    for id in (response.id, "resp_" + run.replace("-", "")):
        refused(lambda: holder.responses.retrieve(id), openai.PermissionDeniedError)
    refused(lambda: say("three", holder), openai.PermissionDeniedError)


@check
def nobody_joins_the_response_of_another_key():
    script(turn(2))
    again = {"extra_headers": {"x-stainless-retry-count": "1"}}
    body = {"model": "helper", "input": "the same words"}
    first = call("POST", "/v1/responses", json=body).json()["id"]
    assert client(1, api_key=new_key()).responses.create(**body, **again).id != first, "another caller"
    assert there.responses.create(**{**body, "input": "other words"}, **again).id != first
    assert there.responses.create(**body, **again).id == first


play()
