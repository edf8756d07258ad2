"""Kinds of workers for the tests of the pool: cases that misbehave."""

import os
import signal
import sys
import time

from benchmarks.gpu.device import Broken


def work(case):
    word = case.partition(" ")[0]
    if word == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if word == "crash":
        print("last words", flush=True)
        os.abort()
    if word == "exit":
        sys.exit(3)
    if word == "fail":
        raise ValueError("what went wrong\nand more of it")
    if word == "break":
        raise Broken("the GPU is lost")
    if word == "wait":
        time.sleep(0.3)
    return {"pid": os.getpid()}
