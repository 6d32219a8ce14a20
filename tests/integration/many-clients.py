#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""32 clients at once, each with a session of its own, get exactly what each gets alone: ids, text and log-probabilities.

In fast and in exact numerics, and whatever the size of a step and the number of threads.
"""
import os
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dsv4test as t  # noqa: E402
import real_engine_util as u  # noqa: E402
from dsv4test import pb  # noqa: E402

CLIENTS = 32
LIMIT = 120 * u.SCALE  # seconds, for one answer


def inputs(k):
    """Two turns of client k: texts, conversations and ids; some are longer than a step."""
    words = " ".join(f"client {k} says {(k * 7919 + i * i) % 1000}" for i in range(2 + k % 8))
    if k == 5:
        return [{"tokens": pb.TokenIds(id=[2 + (i * (k + 3) + i // 7) % 500 for i in range(700 + k)])}, {"text": words}]
    if k == 22:
        return [{"text": (words + "\n") * (1 + 2500 // len(words))}, {"text": "and then"}]
    if k % 4 == 1:
        first = u.user(words, reasoning=pb.HIGH) if k % 8 == 1 else u.user(words)
        return [{"chat": first}, {"chat": pb.Chat(message=[pb.ChatMessage(role=pb.SYSTEM, content=words),
                                                           pb.ChatMessage(role=pb.USER, content="Grüße, 世界!")])}]
    if k % 4 == 3:
        return [{"tokens": pb.TokenIds(id=[(k * 31 + i * 17) % 512 for i in range(3 + k)])}, {"tokens": pb.TokenIds(id=[k, 5])}]
    return [{"text": words}, {"text": " Noch eins: " + words}]


def options(k, turn):
    o = {"max_tokens": 10 + k % 5 * 5, "sampling": u.sampling(1000 * turn + k + 1)}
    if k % 3 == 0:
        o["logprobs"] = 5
    elif k % 3 == 1:
        o["logprobs"] = 0
    if k % 7 == 2:
        o["sampling"].MergeFrom(pb.Sampling(top_k=40, top_p=0.9, min_p=0.01, frequency_penalty=0.5, presence_penalty=-0.5))
    return o


def client(daemon, k, start=lambda: None):
    """What client k gets: two turns in one session, and one without."""
    with daemon.connect() as c:
        session = c.open_session()
        start()
        got = []
        for turn, given in enumerate(inputs(k)):
            got.append(u.whole(c.generate(LIMIT, session=session, **given, **options(k, turn))))
        got.append(u.whole(c.generate(LIMIT, model="nano", text=f"({k})", **options(k, 2))))
        c.ask(close_session=pb.CloseSession(session=session))
        return got


def all_at_once(daemon):
    results, errors = [None] * CLIENTS, []
    barrier = threading.Barrier(CLIENTS, timeout=t.TIMEOUT)

    def run(k):
        try:
            results[k] = client(daemon, k, barrier.wait)
        except Exception as e:  # told by the test
            errors.append(f"client {k}: {e!r}")
            barrier.abort()
    threads = [threading.Thread(target=run, args=(k,)) for k in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


def assert_same(got, expected, what):
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        for turn, (x, y) in enumerate(zip(a, b, strict=True)):
            differing = [key for key in x if x[key] != y[key]]
            assert not differing, f"{what}: client {k}, turn {turn}: {differing} differ"


def check_numerics(numerics):
    with t.Daemon(args=["--numerics", numerics, "--threads", "2"]) as daemon:
        daemon.wait_model(timeout=LIMIT)
        alone = [client(daemon, k) for k in range(CLIENTS)]
        # the test itself: the answers are there and tell the clients apart
        assert len({str(a) for a in alone}) == CLIENTS
        assert all(a["output"] >= 10 and (a["content"] or a["reasoning"]) for one in alone for a in one)
        assert max(one[0]["input"] for one in alone) > 700
        assert sum(len(one[0]["tokens"]) > 0 for one in alone) > CLIENTS // 2
        assert_same(all_at_once(daemon), alone, f"{numerics}, together")
    with u.engine_with("--max-step-tokens", "33") as engine, \
         t.Daemon(engine=engine, args=["--numerics", numerics, "--threads", "1"]) as daemon:
        daemon.wait_model(timeout=LIMIT)
        assert_same(all_at_once(daemon), alone, f"{numerics}, together, steps of 33 tokens, one thread")


def test_fast():
    check_numerics("fast")


def test_exact():
    check_numerics("exact")


if __name__ == "__main__":
    t.run_tests({k: v for k, v in list(globals().items())})
