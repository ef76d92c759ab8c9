"""Reading ahead: what is asked for, and never more in memory than said."""

from __future__ import annotations

import threading

import pytest

from segpipe.evaluate.ahead import ReadAhead


def test_the_next_item_is_read_while_one_is_worked_on():
    second_was_read = threading.Event()

    def read(item):
        if item == "b":
            second_was_read.set()
        return item.upper()

    with ReadAhead(read, "abc", n_ahead=1) as ahead:
        assert ahead(0) == "A"
        assert second_was_read.wait(10)  # nobody asked for it
        assert [ahead(1), ahead(2)] == ["B", "C"]


def test_no_more_is_read_than_said():
    read = []
    with ReadAhead(read.append, range(10), n_ahead=2) as ahead:
        ahead(0)
    assert set(read) <= {0, 1, 2}


def test_an_error_is_raised_where_the_item_is_asked_for():
    with ReadAhead(lambda item: 1 // item, [1, 0, 1], n_ahead=1) as ahead:
        assert ahead(0) == 1
        with pytest.raises(ZeroDivisionError):
            ahead(1)
        assert ahead(2) == 1
