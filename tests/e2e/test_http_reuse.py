# SPDX-License-Identifier: MIT
"""The next turn of a conversation begins where the last one ended: usage says so, and tokens and log-probabilities are those of a
server that never saw the conversation, to the last digit."""
import os
import signal

import tandem
from http_client import Server, Stream, joined, plain
from tandem import check, wait_until

NEVER = {"1": -100, "9": -100}
STORY = {"temperature": 1, "seed": 4, "max_tokens": 90, "logprobs": True, "top_logprobs": 3, "logit_bias": NEVER}


def cached(answer):
    usage = answer["usage"]
    check(0 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"], usage)
    return usage["prompt_tokens_details"]["cached_tokens"]


def forget(server):
    """Something else takes the one sequence there is."""
    check(cached(server.complete([2, *range(300, 400)], max_tokens=1)) == 0, "nothing in common")


def conversation(server, turns, between=None, **params):
    """[(messages, answer)] of a chat in which each turn is one more message of the user."""
    messages, all_turns = [], []
    for i in range(turns):
        messages = messages + [{"role": "user", "content": f"Tell me more about the dog, the cat and the kite, part {i}."}]
        answer = server.ask("/v1/chat/completions", messages=messages, **params)
        all_turns.append((messages, answer))
        messages = messages + [{"role": "assistant", "content": answer["choices"][0]["message"]["content"]}]
        if between:
            between(i)
    return all_turns


def afresh(keys, path, bodies):
    """What a server answers that has nothing in its cache."""
    answers = []
    with Server("q8_0", sequences=1, **keys) as s:
        for body in bodies:
            answers.append(s.ask(path, **body))
            check(cached(answers[-1]) == 0, answers[-1]["usage"])
            forget(s)
    return answers


def test_conversation():
    """Eight turns, far beyond the window of local layers, in chunks of two sizes and with every type of the cache."""
    for keys in ({"kv_type": "f16"}, {"kv_type": "q8_0", "chunk_tokens": 16}, {"kv_type": "f32", "chunk_tokens": 7}):
        with Server("q8_0", sequences=1, **keys) as s:
            turns = conversation(s, 8, **STORY)
        wanted = afresh(keys, "/v1/chat/completions", [{"messages": m, **STORY} for m, _ in turns])
        before = 0
        for i, ((_, got), want) in enumerate(zip(turns, wanted)):
            check(plain(got) == plain(want), keys, i, got, want)
            # What the answer's text is cut into need not be the tokens that were drawn: at least the prompt is there.
            check(i == 0 or cached(got) >= before, i, got["usage"], before)
            before = got["usage"]["prompt_tokens"] - 2


def test_ids():
    """With ids everything is known: all but the last token is there."""
    bodies = [{"prompt": [2, *(100 + 7 * i % 3000 for i in range(60 + 40 * turn))], "max_tokens": 1, "temperature": 0, "logprobs": 5}
              for turn in range(20)]
    wanted = afresh({}, "/v1/completions", bodies)
    with Server("q8_0", sequences=2) as s:
        total = 0
        for turn, (body, want) in enumerate(zip(bodies, wanted)):
            n = len(body["prompt"])
            got = s.ask("/v1/completions", **body)
            check(plain(got) == plain(want), turn, got, want)
            check(cached(got) == (0 if turn == 0 else n - 40), turn, got["usage"])
            with Stream(s, "/v1/completions", stream_options={"include_usage": True}, **body) as stream:
                events = list(stream)
            check(joined(events) == plain(want) and cached(events[-1]) == n - 1, "the same again, streamed", events[-1])
            total += cached(got) + cached(events[-1])
        stats = s.stats()["tokens"]
        check(stats["cached"] == total > 1000, stats, total)
        _, _, body = s.request("GET", "/metrics")
        check(f'vllm:prefix_cache_hits_total{{model_name="demo-q8_0"}} {total}\n' in body.decode(), body)


def test_after_a_death():
    """npu_worker's death takes what was kept with it, another's does not; the text is the same."""
    bodies, texts = [], []
    with Server("q8_0", sequences=1, restarts=100) as s:
        for victim in tandem.STAGES:
            def die(i, victim=victim):
                if i == 0:
                    os.kill(s.stage(victim), signal.SIGKILL)
                    wait_until(lambda: any(p["name"] == victim and p["restarts"] == 1 for p in s.stats()["processes"]), 60, s.log)
            forget(s)
            turns = conversation(s, 2, die, **STORY)
            check((cached(turns[1][1]) == 0) == (victim == "npu_worker"), victim, turns[1][1]["usage"])
            bodies += [{"messages": m, **STORY} for m, _ in turns]
            texts += [plain(answer) for _, answer in turns]
    check(texts == [plain(a) for a in afresh({}, "/v1/chat/completions", bodies)], "another text")


def test_chat_on_a_terminal():
    """The command line's chat reuses too: its text is that of the server's clients."""
    cfg = tandem.config(tandem.model("demo", "q8_0"))
    r = tandem.run("coordinator", "--config", cfg, "--temperature", "0", "--max-tokens", "30", stdin="Tell me a story.\nTell me a story.\n")
    lines = [l for l in r.stdout.split("\n") if l]
    check(lines and lines[:len(lines) // 2] == lines[len(lines) // 2:], r.stdout)


if __name__ == "__main__":
    tandem.main(globals())
