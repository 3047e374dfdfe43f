import os
import threading

import pytest
import torch

from workbench.analysis import workers
from workbench.analysis.workers import alone, in_parallel


@pytest.fixture
def two_threads():
    workers._pools.clear()  # each test begins with threads of its own
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_on_one_thread_pieces_are_done_here_when_they_are_asked_for():
    done = []
    results = in_parallel(lambda piece: done.append((piece, threading.get_ident())) or piece * 10, range(5))
    assert next(results) == 0
    assert done == [(0, threading.get_ident())]
    assert list(results) == [10, 20, 30, 40]


def test_pieces_are_done_side_by_side_and_given_in_order(two_threads):
    both = threading.Barrier(2, timeout=20)  # passed only if two pieces are under way at once

    def work(piece):
        both.wait()
        return piece, threading.get_ident(), torch.get_num_threads()

    results = list(in_parallel(work, range(6)))
    assert [piece for piece, _, _ in results] == list(range(6))
    assert len({thread for _, thread, _ in results}) == 2
    assert {count for _, _, count in results} == {1}, "each computes alone"
    assert torch.get_num_threads() == 2, "and the caller as before"


def test_a_single_piece_is_not_divided_either(two_threads):
    thread, count = alone(lambda: (threading.get_ident(), torch.get_num_threads()))
    assert count == 1
    assert thread != threading.get_ident()
    torch.set_num_threads(1)
    assert alone(threading.get_ident) == threading.get_ident()


def test_threads_that_begin_later_have_as_many_as_before(two_threads):
    list(in_parallel(lambda piece: piece, range(3)))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


def test_only_a_few_pieces_are_begun_ahead(two_threads):
    begun = []
    results = in_parallel(lambda piece: begun.append(piece) or piece, range(100))
    assert next(results) == 0
    results.close()
    assert len(begun) <= 4


@pytest.mark.parametrize("threads", [1, 2])
def test_what_goes_wrong_is_raised_to_the_caller(threads, two_threads):
    torch.set_num_threads(threads)

    def work(piece):
        if piece == 2:
            raise KeyError("piece 2")
        return piece

    results = in_parallel(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError, match="piece 2"):
        next(results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child process by fork exists on POSIX systems only")
def test_a_child_process_has_threads_of_its_own(two_threads):
    list(in_parallel(lambda piece: piece, range(3)))
    assert workers._pools
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the parent's threads are not there: waiting for them would never end
        os.write(write, b"empty" if not workers._pools else b"stale")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 5) == b"empty"
