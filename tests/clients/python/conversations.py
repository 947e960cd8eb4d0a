"""What is kept between responses: chains, conversations, and lists of items."""

import json
import re
import time

import openai

from streams import begin, ended, marks, raw
from world import Gate, asked, check, here, play, refused, script, there, turn


def told(request=-1):
    """What the model was told, without what the agent tells it: roles and texts."""
    said = [one for one in asked()[request]["messages"] if one["role"] not in ("system", "developer")]
    return [(one["role"], text_of(one["content"])) for one in said]


def text_of(content):
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def say(text, client=here, **more):
    return client.responses.create(model="helper", input=text, **more)


ANSWER = ("assistant", marks(1, 1, 2))


@check
def a_chain_of_three_is_told_oldest_first():
    script(turn(2))
    one = say("one")
    two = say("two", there, previous_response_id=one.id)
    three = say("three", here, previous_response_id=two.id)
    assert told() == [("user", "one"), ANSWER, ("user", "two"), ANSWER, ("user", "three")]
    assert (three.status, three.previous_response_id) == ("completed", two.id)
    assert there.responses.retrieve(one.id).to_dict() == one.to_dict()


@check
def branches_do_not_see_each_other():
    script(turn(2))
    root = say("root")
    left = say("left", previous_response_id=root.id)
    right = say("right", there, previous_response_id=root.id)
    assert told() == [("user", "root"), ANSWER, ("user", "right")]
    say("further left", there, previous_response_id=left.id)
    assert told() == [("user", "root"), ANSWER, ("user", "left"), ANSWER, ("user", "further left")]
    raw(say("further right", previous_response_id=right.id, stream=True))
    assert told() == [("user", "root"), ANSWER, ("user", "right"), ANSWER, ("user", "further right")]
    ended(here, begin(there, input="root again", previous_response_id=root.id))
    assert told() == [("user", "root"), ANSWER, ("user", "root again")]


@check
def instructions_are_not_handed_down():
    script(turn(2))
    parent = say("one", instructions="Speak like a parent.")
    assert "Speak like a parent." in json.dumps(asked()[-1])
    child = say("two", previous_response_id=parent.id)
    assert "Speak like a parent." not in json.dumps(asked()[-1])
    say("three", there, previous_response_id=child.id, instructions="Speak like a child.")
    assert "Speak like a child." in json.dumps(asked()[-1])
    assert "Speak like a parent." not in json.dumps(asked()[-1])


@check
def a_chain_goes_on_with_another_model():
    script(turn(2))
    parent = say("one")
    child = there.responses.create(model="fake/tokens-3", input="two", previous_response_id=parent.id)
    assert (child.model, child.output_text) == ("fake/tokens-3", marks(1, 1, 3))
    roles = [message["role"] for message in asked("tokens-3")[-1]["messages"] if message["role"] != "system"]
    assert roles == ["user", "assistant", "user"]


@check
def a_list_of_items_is_a_history_too():
    script(turn(2))
    history = [
        {"role": "system", "content": "In verse."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "uno"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
    ]
    say(history)
    assert told() == [("user", "one"), ("assistant", "uno"), ("user", "two")]
    assert "In verse." in json.dumps(asked()[-1]["messages"])


@check
def a_parent_that_is_unknown_is_named():
    script(turn(2))
    before = len(asked())
    for id in ("resp_" + "0" * 32, "resp_nonsense", "nonsense"):
        kinds = (openai.BadRequestError, openai.NotFoundError)
        error = refused(lambda: say("go", previous_response_id=id), *kinds)
        assert error.code == "previous_response_not_found", error.body
    assert len(asked()) == before


@check
def a_parent_that_still_runs_is_refused():
    script(turn(4))
    closed = Gate(2)
    parent = begin()
    refused(lambda: say("go", there, previous_response_id=parent.id), openai.BadRequestError)
    closed.reached()
    refused(lambda: say("go", here, previous_response_id=parent.id, stream=True), openai.BadRequestError)
    closed.open()
    ended(here, parent)
    say("now", there, previous_response_id=parent.id)
    assert told() == [("user", "go"), ("assistant", marks(1, 1, 4)), ("user", "now")]


@check
def a_conversation_is_kept():
    made = here.conversations.create(metadata={"a": "b"})
    assert re.fullmatch(r"conv_[0-9a-f]{32}", made.id), made.id
    assert (made.object, made.metadata) == ("conversation", {"a": "b"})
    assert abs(made.created_at - time.time()) < 60
    assert there.conversations.retrieve(made.id).to_dict() == made.to_dict()
    changed = there.conversations.update(made.id, metadata={"c": "d"})
    assert (changed.id, changed.created_at, changed.metadata) == (made.id, made.created_at, {"c": "d"})
    assert here.conversations.retrieve(made.id).to_dict() == changed.to_dict()
    assert list(here.conversations.items.list(made.id)) == []


@check
def two_turns_of_a_conversation_see_each_other():
    script(turn(2))
    conversation = here.conversations.create()
    other = here.conversations.create()
    one = say("one", conversation=conversation.id)
    say("elsewhere", conversation=other.id)
    two = say("two", there, conversation={"id": conversation.id})
    assert told() == [("user", "one"), ANSWER, ("user", "two")]
    assert one.conversation.id == two.conversation.id == conversation.id
    three = raw(say("three", conversation=conversation.id, stream=True))[-1]["response"]
    assert three["conversation"] == {"id": conversation.id} and three["status"] == "completed"
    assert told() == [("user", "one"), ANSWER, ("user", "two"), ANSWER, ("user", "three")]
    in_order = list(there.conversations.items.list(conversation.id, order="asc"))
    assert [(item.role, item.content[0].text) for item in in_order] == [*told(), ANSWER]
    assert in_order[1].to_dict() == one.output[0].to_dict()
    assert [item.content[0].text for item in other_items(other)] == ["elsewhere", ANSWER[1]]


def other_items(conversation):
    return list(here.conversations.items.list(conversation.id, order="asc"))


@check
def calls_of_tools_are_items_of_the_conversation():
    script(turn(1, calls=[["look", {"op": "x"}]]), turn(2))
    conversation = here.conversations.create()
    response = say("look", conversation=conversation.id)
    in_order = list(there.conversations.items.list(conversation.id, order="asc"))
    assert [item.type for item in in_order] == ["message", "message", "mcp_call", "message"]
    assert [item.to_dict() for item in in_order[1:]] == response.to_dict()["output"]


def check_pages(list_page, count):
    """All ways through a list of so many items."""
    whole = [item.to_dict() for item in list_page(order="asc", limit=100)]
    ids = [item["id"] for item in whole]
    assert len(ids) == len(set(ids)) == count and all(ids)
    for order, expected in (("asc", whole), ("desc", whole[::-1])):
        for limit in range(1, count + 2):
            page = list_page(order=order, limit=limit)
            raw = page.to_dict()
            assert raw["object"] == "list" and raw["has_more"] is (limit < count), (limit, raw["has_more"])
            assert [item["id"] for item in raw["data"]] == [item["id"] for item in expected[:limit]]
            assert (raw["first_id"], raw["last_id"]) == (raw["data"][0]["id"], raw["data"][-1]["id"])
            assert [item.to_dict() for item in page] == expected, "page by page to its end"
        for n, item in enumerate(expected):
            behind = list_page(order=order, after=item["id"])
            assert [one.id for one in behind.data] == [one["id"] for one in expected[n + 1 :]]
            assert behind.has_more is False
    assert [item.id for item in list_page().data] == ids[::-1][:20], "the newest first, and 20"
    not_a_number = {"extra_query": {"limit": "x"}}
    for bad in ({"limit": 0}, {"limit": 101}, {"limit": -1}, {"order": "up"}, not_a_number):
        refused(lambda: list_page(**bad), openai.BadRequestError)
    refused(lambda: list_page(after="msg_nobody"), openai.BadRequestError, openai.NotFoundError)


@check
def the_items_of_a_conversation_are_paged_in_both_orders():
    script(turn(2))
    conversation = here.conversations.create()
    for n in range(3):
        say(f"turn {n}", (here, there)[n % 2], conversation=conversation.id)
    check_pages(lambda **how: there.conversations.items.list(conversation.id, **how), 6)


@check
def the_input_items_of_a_response_are_paged_in_both_orders():
    script(turn(2))
    input = [{"role": ("user", "assistant")[n % 2], "content": f"word {n}"} for n in range(5)]
    response = say(input)
    check_pages(lambda **how: there.responses.input_items.list(response.id, **how), 5)
    in_order = list(here.responses.input_items.list(response.id, order="asc"))
    said = [{"role": item.role, "content": item.content[0].text} for item in in_order]
    assert said == input


@check
def more_input_items_than_a_page_holds_are_twenty_at_first():
    script(turn(2))
    input = [{"role": ("user", "assistant")[n % 2], "content": f"word {n}"} for n in range(45)]
    response = say(input)
    page = there.responses.input_items.list(response.id)
    assert (len(page.data), page.has_more) == (20, True)
    words = [item.content[0].text for item in page]
    assert words == [f"word {n}" for n in range(45)][::-1], "the iterator ends"


@check
def input_that_is_a_text_is_a_message():
    script(turn(2))
    response = say("Grüße")
    page = there.responses.input_items.list(response.id)
    (item,) = page.data
    assert page.has_more is False and item.id
    assert {**item.to_dict(), "id": None} == {
        "id": None,
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "Grüße"}],
    }
    include = ["message.input_image.image_url", "reasoning.encrypted_content"]
    assert list(here.responses.input_items.list(response.id, include=include)) == [item]


@check
def a_conversation_that_is_deleted_is_gone():
    script(turn(2))
    conversation = here.conversations.create()
    say("one", conversation=conversation.id)
    gone = there.conversations.delete(conversation.id)
    assert gone.id == conversation.id and gone.deleted is True
    before = len(asked())
    for id in (conversation.id, "conv_" + "0" * 32, "conv_nonsense", "päge / one?"):
        for act in (
            lambda: here.conversations.retrieve(id),
            lambda: here.conversations.update(id, metadata={"a": "b"}),
            lambda: here.conversations.delete(id),
            lambda: here.conversations.items.list(id),
        ):
            refused(act, openai.NotFoundError)
        refused(lambda: say("two", conversation=id), openai.NotFoundError, openai.BadRequestError)
    assert len(asked()) == before


@check
def a_conversation_has_sixteen_pairs_of_metadata_at_most():
    pairs = {f"key {n}": "x" for n in range(16)}
    made = here.conversations.create(metadata=pairs)
    assert made.metadata == pairs
    more = {**pairs, "one": "more"}
    refused(lambda: here.conversations.create(metadata=more), openai.BadRequestError)
    refused(lambda: here.conversations.update(made.id, metadata=more), openai.BadRequestError)
    assert there.conversations.retrieve(made.id).metadata == pairs


play()
