"""Work that a signal can end although it swallows exceptions, as the exporter of torch does."""

import ctypes
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` gives, from another thread, which ends if a signal stops this one.

    The exporter's lazy imports swallow a Ctrl-C, which goes to the main thread.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # it is raised where the result is waited for
            done.set_exception(error)

    thread = Thread(target=run, daemon=True)
    try:
        thread.start()
        return done.result()
    except BaseException:
        _stop(thread)
        raise


def _stop(thread: Thread) -> None:
    """End a thread at its next step in Python, and wait for that.

    A program that ends before its threads do is aborted if one of them is in torch's C++. A
    SystemExit ends a thread without a message; it is sent again, since an import may swallow it.
    """
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    while thread.is_alive():
        set_exception(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(0.05)
