"""What Python's multiprocessing takes, measured as the cases of package bench are.

    peers.py CASE MS

It prints lines of a word and numbers; package bench reads them. A total that is wrong ends it with 1. Processes are
started by fork, as daemons: they end with this one.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time

mp = multiprocessing.get_context("fork")
now = time.perf_counter_ns


def tied():
    """A process ends when the one that started it does, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def say(**numbers):
    for word, n in numbers.items():
        print(word, *(n if isinstance(n, list) else [n]))


def check(what, have, want):
    if have != want:
        sys.exit(f"peers.py: {what}: {have}, not {want}")


def alone(window, call, stride=1):
    """call(n) does something n times; it is called until the window is over. Returns how many times."""
    n, begin = 0, now()
    while (took := now() - begin) < window:
        call(stride)
        n += stride
    say(ops=n, elapsed=took)
    return n


def lock(window):
    mu = mp.Lock()

    def call(n):
        for _ in range(n):
            with mu:
                pass

    alone(window, call, 1000)


def take(mu, value, gate, stop, counts, i):
    tied()
    gate.wait()
    n = 0
    while n == 0 or not stop.value:
        for _ in range(16):
            with mu:
                value.value += 1
            n += 1
        counts[i] = n


def contended(window, procs):
    mu, gate = mp.Lock(), mp.Barrier(procs + 1)
    value, stop = mp.RawValue("q", 0), mp.RawValue("b", 0)
    counts = mp.RawArray("q", procs)
    ps = [mp.Process(target=take, args=(mu, value, gate, stop, counts, i), daemon=True) for i in range(procs)]
    for p in ps:
        p.start()
    gate.wait()
    time.sleep(window / 1e10)
    begin, before = now(), list(counts)
    time.sleep(window / 1e9)
    took, after = now() - begin, list(counts)
    stop.value = 1
    for p in ps:
        p.join()
        check("exit code", p.exitcode, 0)
    check("the lock does not exclude", value.value, sum(counts))
    shares = [b - a for a, b in zip(before, after)]
    say(shares=shares, ops=sum(shares), elapsed=took, total=sum(counts))


def value(window):
    v = mp.Value("q", 0)

    def call(n):
        for _ in range(n):
            with v.get_lock():
                v.value += 1

    n = alone(window, call, 100)
    check("value", v.value, n)


def array(window, size):
    a = mp.Array("q", range(size))
    n, total, begin = 0, 0, now()
    walk = iter(a)
    while (took := now() - begin) < window:
        for _ in range(100):
            try:
                total += next(walk)
            except StopIteration:
                check("elements add up to", total, size * (size - 1) // 2)
                walk, total = iter(a), a[0]
                next(walk)
        n += 100
    say(ops=n, elapsed=took)
    at = n % size
    check("elements add up to", total, at * (at - 1) // 2 if at else size * (size - 1) // 2)


def appended(window, element):
    with mp.Manager() as m:
        elements = m.list()

        def call(n):
            for _ in range(n):
                elements.append(element)

        n = alone(window, call)
        check("elements", len(elements), n)


def scattered(i, keys):
    return i * 48271 % keys


def dictionary(window, keys, put):
    with mp.Manager() as m:
        d = m.dict({k: k for k in range(keys)})
        done = 0

        def get_one(_):
            nonlocal done
            k = scattered(done, keys)
            check("value", d[k], k)
            done += 1

        def put_one(_):
            nonlocal done
            d[scattered(done, keys)] = -done
            done += 1

        n = alone(window, put_one if put else get_one)
        if put:
            check("value", d[scattered(n - 1, keys)], 1 - n)


def give(queue, gate, stop, size):
    tied()
    message = bytes(size - 8)
    gate.wait()
    n = 0
    while n == 0 or not stop.value:
        n += 1
        queue.put(n.to_bytes(8, "little") + message)
    queue.put(b"")
    queue.close()
    queue.join_thread()


def passed(window, size):
    queue, gate, stop = mp.Queue(1024), mp.Barrier(2), mp.RawValue("b", 0)
    p = mp.Process(target=give, args=(queue, gate, stop, size), daemon=True)
    p.start()
    gate.wait()
    n, first, begin = 0, 0, now()
    start = begin
    while message := queue.get():
        n += 1
        check("message", int.from_bytes(message[:8], "little"), n)
        if stop.value:
            continue
        if now() - begin < window / 10:  # it has not come to what it does
            first = n
            start = now()
        elif (took := now() - start) >= window:
            stop.value = 1
            say(ops=n - first, elapsed=took)
    p.join()
    check("exit code", p.exitcode, 0)
    say(total=n, bytes=size)


cases = {
    "lock": lock,
    "contended": contended,
    "value": value,
    "array": array,
    "append-int64": lambda window: appended(window, 7),
    "append-string": lambda window: appended(window, "s" * 32),
    "get": lambda window, keys: dictionary(window, keys, False),
    "set": lambda window, keys: dictionary(window, keys, True),
    "queue": passed,
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    case, *arguments, ms = sys.argv[1:]
    cases[case](int(ms) * 1_000_000, *map(int, arguments))
