# SPDX-License-Identifier: MIT
"""Sixty-four streaming clients at once, beside some that read slowly and some that never finish asking: no error, everybody gets on,
and all of them together faster than one alone. For a minute and with figures: bench/http/load.py."""
import http_load
import soak
import tandem
from http_client import Server
from tandem import check

SECONDS = 4 if tandem.SANITIZE else 10


def test_many_clients():
    with Server("q8_0", sequences=64, context=512, http__max_connections=128, http__timeout=2) as s:
        one = http_load.load(s, 1, 2)
        print(" ", one)
        many = http_load.load(s, 64, SECONDS, slow=4, half=8)
        print(" ", many)
        check(all(c.events for c in many.clients), "somebody got nothing:", [c.events for c in many.clients])
        if not tandem.SANITIZE:  # under them, four seconds are little more than the first answers' prefill
            check(many.least > 0.25, "not fair:", sorted(c.events for c in many.clients))
            check(many.rate > one.rate, one.rate, many.rate)  # how much: bench/http
            for name in soak.PROCESSES:  # in so short a time heaps still grow, and the KV cache is touched; bench/http is stricter
                grown = many.rows[-1][1][name]["private"] - many.rows[len(many.rows) // 4][1][name]["private"]
                check(name == "npu_worker" or grown < 4 << 20, name, "grew by", grown)
                check(soak.highest(many.rows, name, "peak") <= many.rows[-1][1][name]["cap"], name, "above its cap")
        tandem.wait_until(lambda: s.stats()["requests"]["running"] == 0, 60, "somebody's request runs on")


tandem.main(globals())
