"""The world of a test, as its script sees it: where the API is, and what may be made to happen."""

import asyncio
import faulthandler
import inspect
import json
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import httpx2
from openai import AsyncOpenAI, OpenAI

# Whatever proxy the environment names is not on the way.
os.environ["NO_PROXY"] = "127.0.0.1"

apis = os.environ["LONGHAUL_APIS"].split()
key = os.environ["LONGHAUL_KEY"]
headers = {"authorization": f"Bearer {key}"}


def options(api, more):
    # A failure that the package would get over by itself is one that we want to see.
    return {"base_url": f"{apis[api]}/v1", "api_key": key, "max_retries": 0, "timeout": 30, **more}


def client(api=0, transport=None, **more):
    """The package's client of one API process."""
    http = transport and httpx2.Client(transport=transport)
    return OpenAI(http_client=http, **options(api, more))


def async_client(api=0, **more):
    return AsyncOpenAI(**options(api, more))


here, there = client(0), client(1)


def call(method, path, api=0, **more):
    """A call without the package."""
    sent = {"content-type": "application/json", **headers}
    return httpx2.request(method, apis[api] + path, headers=sent, timeout=30, **more)


# Wishes are fulfilled one after the other.
one_wish = threading.Lock()


def wish(**wish):
    with one_wish:
        print(f"\n@{json.dumps(wish)}", flush=True)
        answer = sys.stdin.readline()
    if not answer:
        os._exit(1)  # The world is gone.
    return json.loads(answer)


def turn(marked=0, **more):
    """One answer of a model; see `TurnWish`."""
    return {"marked": marked, **more}


def script(*turns, model="helper"):
    wish(do="script", model=model, turns=turns)


def asked(model="helper"):
    """The bodies of all requests for this model so far."""
    return wish(do="asked", model=model)


def tool(name, status=None):
    wish(do="tool", name=name, status=status)


def new_key(workspace="default", role="admin"):
    return wish(do="key", workspace=workspace, role=role)


def kill_workers():
    wish(do="kill_workers")


def replace_workers():
    wish(do="replace_workers")


def restart_api(api, gently=False):
    wish(do="restart_api", api=api, gently=gently)


class Gate:
    closed = []

    def __init__(self, token, model="helper"):
        self.number = wish(do="gate", model=model, token=token)
        self.closed.append(self)

    def reached(self, by=1):
        wish(do="reached", gate=self.number, by=by)

    def open(self):
        self.closed.remove(self)
        wish(do="open", gate=self.number)


class LosesReplies(httpx2.HTTPTransport):
    """Lets all requests through and loses the first replies."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def handle_request(self, request):
        response = super().handle_request(request)
        if self.left > 0:
            self.left -= 1
            response.close()
            raise httpx2.ReadError("lost", request=request)
        return response


class CutsStreams(httpx2.HTTPTransport):
    """Breaks each stream off after so many bytes, as a lost network does."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def handle_request(self, request):
        response = super().handle_request(request)
        if response.headers["content-type"].startswith("text/event-stream"):
            response.stream = CutStream(response.stream, self.count())
        return response


class CutStream(httpx2.SyncByteStream):
    def __init__(self, stream, left):
        self.stream, self.left = stream, left

    def __iter__(self):
        for chunk in self.stream:
            yield chunk[: self.left]
            self.left -= len(chunk)
            if self.left <= 0:
                raise httpx2.ReadError("cut")

    def close(self):
        self.stream.close()


threads = ThreadPoolExecutor(64)
later = threads.submit


def together(*calls):
    """What these calls return that are made at the same time."""
    return [future.result() for future in [later(call) for call in calls]]


def until(holds, patience=20):
    end = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def refused(call, *kinds):
    """The error with which a call is refused. It is of one of these kinds, whole, and final."""
    try:
        answer = call()
    except kinds as error:
        assert {"message", "type", "param", "code"} <= set(error.body), error.body
        assert isinstance(error.body["message"], str) and isinstance(error.body["type"], str), error.body
        assert error.request_id, "an id of the request"
        return error
    raise AssertionError(f"not refused: {answer}")


checks = []


def check(function):
    checks.append(function)
    return function


def play():
    """All checks of a script one after the other, or those whose name contains LONGHAUL_TEST_CHECK."""
    only, failed = os.environ.get("LONGHAUL_TEST_CHECK", ""), []
    for function in [function for function in checks if only in function.__name__]:
        name = function.__name__.replace("_", " ")
        faulthandler.dump_traceback_later(90, exit=True)
        begin = time.monotonic()
        try:
            result = function()
            if inspect.iscoroutine(result):
                asyncio.run(result)
            assert not Gate.closed, "a gate was left closed"
            print(f"ok     {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
            # Those who wait behind it must not hold up the next check.
            for gate in list(Gate.closed):
                gate.open()
    faulthandler.cancel_dump_traceback_later()
    print("".join(f"FAILED {name}\n" for name in failed) or "all is well", flush=True)
    # Threads of failed checks are not waited for.
    os._exit(bool(failed))
