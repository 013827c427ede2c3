# SPDX-License-Identifier: MIT
"""Stages die while clients stream: each client gets the text of an undisturbed run, every token once, and nobody is refused."""
import json
import os
import random
import signal
import threading
import time

import tandem
import test_vulkan
from http_client import Server, Stream, joined
from tandem import check, wait_until

CLIENTS = 8
LENGTH = 500
KEEPS_ON = {"1": -100, "9": -100}  # no end: every stream is long enough to be hit
PARAMS = [{"prompt": ["Once upon a time", "One day", "The cat", "Tom and"][i % 4], "max_tokens": LENGTH, "logit_bias": KEEPS_ON,
           "logprobs": 1, "stream_options": {"include_usage": True}, "temperature": 0 if i % 4 == 0 else 1, "seed": i}
          for i in range(CLIENTS)]


class Client(threading.Thread):
    def __init__(self, server, **params):
        super().__init__()
        self.server, self.params, self.events, self.failure = server, params, [], None
        self.start()

    def run(self):
        try:
            with Stream(self.server, "/v1/completions", **self.params) as stream:
                for event in stream:
                    self.events.append(event)
        except BaseException as e:  # told by the one that waits
            self.failure = e

    def tokens(self):
        return sum(len(c["logprobs"]["tokens"]) for e in list(self.events) for c in e["choices"] if c["logprobs"])

    def answer(self):
        self.join()
        check(self.failure is None, self.params, self.failure)
        return joined(self.events)


def kill(server, name):
    try:
        os.kill(server.stage(name), signal.SIGKILL)
    except (tandem.Failure, ProcessLookupError):  # it is on its way back
        pass


def restarts(server):
    return {p["name"]: p["restarts"] for p in server.stats()["processes"]}


def all_streams(server, *moments):
    """Eight streams at once, and what happens when so many tokens of them were read."""
    clients = [Client(server, **p) for p in PARAMS]
    for count, what in moments:
        wait_until(lambda: sum(c.tokens() for c in clients) >= count or any(c.failure for c in clients), 120,
                   lambda: [c.tokens() for c in clients])
        what()
    return [c.answer() for c in clients]


def test_each_stage():
    keys = {"sequences": CLIENTS, "context": 1024, "restarts": 1000, "restarts_per_minute": 1000}
    with Server("q8_0", **keys) as s:
        want = all_streams(s)
        for choices, usage in want:
            check(len(choices[0]["logprobs"]["tokens"]) == usage["completion_tokens"] == LENGTH, usage)
        check(set(restarts(s).values()) == {0}, restarts(s))
        rng = random.Random(5)
        for n, victim in enumerate(tandem.STAGES):
            moments = [(CLIENTS * rng.randint(20, LENGTH - 100), lambda v=victim: kill(s, v))]
            got = all_streams(s, *moments)
            check(got == want, victim, "another text")
            check(restarts(s) == {"coordinator": 0, **{v: int(i <= n) for i, v in enumerate(tandem.STAGES)}}, restarts(s))
        moments = [(n, lambda v=v: kill(s, v)) for n, v in zip(range(200, CLIENTS * LENGTH - 500, 500), tandem.STAGES * 2)]
        check(all_streams(s, *moments) == want, "one after the other: another text")
        check(sum(restarts(s).values()) >= 3 + 4, restarts(s))


def test_waits_while_a_stage_is_down():
    """/health says what is the matter; what is asked meanwhile is answered, and /v1/stats at once."""
    with Server("q8_0", restarts=1000, restarts_per_minute=1000) as s:
        want = s.complete("Once upon a time", max_tokens=20, temperature=0)["choices"]
        ids = [s.get("/health")]

        def recovering():
            kill(s, "npu_worker")
            ids[0] = s.get("/health")
            return ids[0][0] == 503
        wait_until(recovering, 60, lambda: s.log)
        check(ids[0][1]["status"] == "recovering" and ids[0][1]["reason"] == "npu_worker ended and is started again", ids)
        clients = [Client(s, prompt="Once upon a time", max_tokens=20, temperature=0, logprobs=0) for _ in range(3)]
        for c in clients:
            choices, _ = c.answer()
            check(choices[0]["text"] == want[0]["text"], choices, want)
        s.wait_ready()
        check(s.stats()["state"] == "running" and restarts(s)["npu_worker"] > 0, s.stats())


def test_statistics_of_a_stage_that_dies():
    """Who asks at the moment of a death is answered by those that live, and does not wait for a stage that will not answer."""
    with Server("q8_0", restarts=1000, restarts_per_minute=1000) as s:
        took = []
        for _ in range(5):
            kill(s, "gpu_worker")
            begin = time.monotonic()
            check([p["name"] for p in s.stats()["processes"]][3] == "gpu_worker", "stats")
            took.append(time.monotonic() - begin)
            s.wait_ready()
        took.sort()
        print(f"  answers after {took[0]:.3f} to {took[-1]:.3f} s, median {took[2]:.3f}")
        check(took[2] < 1.9, "half of them waited the two seconds that a living stage is given", took)


def test_health_of_what_others_start():
    """Nobody but others can help it: so it is they who are named."""
    socket = os.path.join(tandem.WORK, "stages")
    with Server("q8_0", wait=False, npu__spawn="false", stage_socket=socket) as s:
        wait_until(lambda: s.stats()["processes"][3]["pid"] > 0, 60, lambda: s.log)
        status, j = s.get("/health")
        check(status == 503 and j["status"] == "loading" and j["reason"].startswith("npu_worker has not connected; 'npu.spawn' is false"), j)


def test_next_backend():
    """A device that is lost again and again: the stream goes on with the processor, and says so; the next one has nothing to say."""
    keys = test_vulkan.device()
    layer = os.path.join(os.path.dirname(tandem.BIN), "tests", "layer")
    env = {"VK_LAYER_PATH": layer, "VK_INSTANCE_LAYERS": "VK_LAYER_TANDEM_fault", "TANDEM_FAULT": "lost:8"}
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "logit_bias": KEEPS_ON}
    with Server("q8_0", env=env, gpu__without="host_import", restarts=2, **keys) as s:
        events = s.stream("/v1/completions", **body)
        last = [e["choices"][0] for e in events][-1]
        check(last["finish_reason"] == "length" and last["numerics_changed"] is True, last)
        check(all("numerics_changed" not in e["choices"][0] for e in events[:-1]), events)
        worker, = (p for p in s.stats()["processes"] if p["name"] == "gpu_worker")
        check(worker["backend"].startswith("cpu ") and worker["restarts"] == 3, worker)
        chat = json.dumps(s.chat("Hello", max_tokens=4))
        check("numerics_changed" not in chat and "numerics_changed" not in str(s.ask("/v1/completions", **body)), chat)


if __name__ == "__main__":
    tandem.main(globals())
