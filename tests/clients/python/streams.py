"""What a caller does with streams of responses, and the rules that each whole stream obeys."""

from typing import get_args

from openai.types.responses import Response, ResponseStreamEvent

from world import here, until

UNDER_WAY = ("queued", "in_progress")
ENDINGS = {
    "completed": "response.completed",
    "failed": "response.failed",
    "incomplete": "response.incomplete",
    # The schema has no event for it.
    "cancelled": "response.incomplete",
}


def begin(client=here, input="go", model="helper", **more):
    """A response in the background."""
    return client.responses.create(model=model, input=input, background=True, **more)


def tail(client, response, after=None):
    """The stream of a response that exists, from its beginning or behind an event."""
    behind = {} if after is None else {"starting_after": after}
    return client.responses.retrieve(response.id, stream=True, **behind)


def read(client, response, after=None):
    """All of its events as they came."""
    with tail(client, response, after) as stream:
        return raw(stream)


def raw(events):
    return [plain(event) for event in events]


def plain(event):
    # The strict helper builds events whose types the package itself warns of.
    return event.to_dict(warnings=False)


def ended(client, response):
    """The response when it is over, by asking for it again and again."""
    return until(lambda: (now := client.responses.retrieve(response.id)).status not in UNDER_WAY and now)


def follow(stream, seen):
    """Puts the events of a stream where another thread can see them."""
    for event in stream:
        seen.append(plain(event))


def shows(seen, kind):
    until(lambda: any(event["type"] == kind for event in seen))


def marks(attempt, turn, count):
    """All marks of one answer of the model, in order."""
    return "".join(f"a{attempt}.s{turn}.{i} " for i in range(count))


def kinds(output):
    return [item["type"] for item in output]


def said(output):
    """The text of all messages."""
    return "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])


def of(schema):
    """The classes of the package's schema by their `type`."""
    classes = get_args(get_args(schema)[0])
    return {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in classes}


EVENTS = of(ResponseStreamEvent)

# Which pieces of an item arrive in deltas, and what numbers them in the item.
PIECES = {
    "response.output_text": "content_index",
    "response.reasoning_text": "content_index",
    "response.reasoning_summary_text": "summary_index",
    "response.function_call_arguments": None,
    "response.mcp_call_arguments": None,
}
PARTS = {
    "response.content_part": "content_index",
    "response.reasoning_summary_part": "summary_index",
}


def pieces(item):
    """The same pieces of an item that is whole."""
    if "arguments" in item:
        return [item["arguments"]]
    return [part["text"] for part in item.get("summary", []) + (item.get("content") or [])]


PROMISED = """
    error incomplete_details usage tools tool_choice parallel_tool_calls metadata
    background previous_response_id instructions
""".split()


def in_schema(kind, value):
    """Whether the package's own types, taken strictly, accept it."""
    response = value.get("response", value)
    if (response.get("incomplete_details") or {}).get("reason") == "cancelled":
        # This reason is ours.
        lesser = {**response, "incomplete_details": None}
        value = {**value, "response": lesser} if "response" in value else lesser
    kind.model_validate(value, strict=True)


def response_obeys(response):
    """What each Response object has, whoever hands it out."""
    in_schema(Response, response)
    for name in PROMISED:
        assert name in response, name
    assert isinstance(response["tools"], list) and isinstance(response["metadata"], dict)
    assert response["object"] == "response"
    status = response["status"]
    assert (response["error"] is not None) == (status == "failed"), response["error"]
    details = response["incomplete_details"]
    assert (details is not None) == (status in ("incomplete", "cancelled")), details
    if status in UNDER_WAY:
        assert response["usage"] is None
    if status == "completed":
        assert response["completed_at"] >= response["created_at"]
        usage = response["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    if status == "cancelled":
        assert details == {"reason": "cancelled"}
    return response


class Item:
    """An item as the events so far have it."""

    def __init__(self, item):
        self.id, self.type, self.done = item["id"], item["type"], None
        self.pieces = {0: ""} if "arguments" in item else {}
        assert item.get("status") in ("in_progress", None), item
        if self.type == "message":
            assert item["role"] == "assistant" and item["content"] == [], item
        elif "call" in self.type:
            assert item["arguments"] == "", item
        if self.type == "function_call":
            assert item["call_id"]

    def take(self, event):
        name, _, what = event["type"].rpartition(".")
        assert self.done is None, "nothing comes behind what is done"
        assert event["item_id"] == self.id, "the id of its item"
        if name in PARTS:
            at, part = event[PARTS[name]], event["part"]
            if what == "added":
                assert at == len(self.pieces) and part["text"] == "", event
                self.pieces[at] = ""
            else:
                assert part["text"] == self.pieces[at], event
        elif name in PIECES:
            number = PIECES[name]
            at = event[number] if number else 0
            if what == "delta":
                self.pieces[at] += event["delta"]
            else:
                assert event["text" if number else "arguments"] == self.pieces[at], event

    def close(self, item):
        assert self.done is None and (item["id"], item["type"]) == (self.id, self.type), item
        assert item["status"] in ("completed", "incomplete", "failed"), item
        assert pieces(item) == list(self.pieces.values()), item
        self.done = item


def obeys(events):
    """All rules of a stream from its beginning to its end. Returns the response that it leads to."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created", events[0]
    assert not any(event["type"] in ENDINGS.values() for event in events[:-1]), "one end, at the end"
    first, last = events[0]["response"], events[-1]["response"]
    items = []
    for event in events:
        kind = event["type"]
        assert kind in EVENTS, f"the package does not know {kind}"
        in_schema(EVENTS[kind], event)
        assert not event.get("error"), "the package takes it for its own failure"
        if "response" in event:
            response = response_obeys(event["response"])
            for name in ("id", "created_at", "model", "metadata"):
                assert response[name] == first[name], name
            if event is not events[-1]:
                assert response["status"] in UNDER_WAY and response["output"] == [], "as it was then"
        elif kind == "response.output_item.added":
            assert event["output_index"] == len(items), "each index once, in order"
            items.append(Item(event["item"]))
        elif kind == "response.output_item.done":
            items[event["output_index"]].close(event["item"])
        else:
            items[event["output_index"]].take(event)
    assert events[-1]["type"] == ENDINGS[last["status"]], last["status"]
    assert len({item.id for item in items}) == len(items), "ids are not used twice"
    assert all(item.done for item in items), "each item is done before the end"
    # What is left out of the output was torn, or stood in a step with something torn.
    done = [item.done for item in items]
    left = [item for item in done if item not in last["output"]]
    assert [item for item in done if item in last["output"]] == last["output"], "as it was streamed"
    assert not left or any(item["status"] == "incomplete" for item in done), left
    if last["status"] == "completed":
        assert all(item["status"] != "in_progress" for item in last["output"])
    return last
