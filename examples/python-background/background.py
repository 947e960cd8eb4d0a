"""A response in the background: begun, watched, cut off, watched on from there, and asked for once more at its end."""

import os
import time

from openai import APIConnectionError, OpenAI, omit

api = os.environ.get("LONGHAUL_URL", "http://127.0.0.1:4680")
# `longhaul dev` asks for no key, but the package wants one in any case.
client = OpenAI(base_url=f"{api}/v1", api_key=os.environ.get("LONGHAUL_API_KEY", "none"))

ENDS = ("response.completed", "response.incomplete", "response.failed")
CUT = 30


def note(text):
    print(f"\n· {text}", flush=True)


response = client.responses.create(model="demo", input="compare three queues", background=True)
note(f"{response.id} is {response.status}")

last, ended = omit, False
while not ended:
    try:
        with client.responses.retrieve(response.id, stream=True, starting_after=last) as stream:
            for event in stream:
                last = event.sequence_number
                ended = event.type in ENDS
                if event.type.endswith("_text.delta"):
                    print(event.delta, end="", flush=True)
                elif event.type == "response.output_item.done" and event.item.status == "incomplete":
                    note("the step broke off and is done over")
                if last == CUT:
                    note(f"cut on purpose behind event {last}")
                    break
    except APIConnectionError:
        time.sleep(1)

response = client.responses.retrieve(response.id)
note(f"{response.id} is {response.status}")
print(response.output_text)
