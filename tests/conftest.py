"""For all tests: the marker ``untraced``."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tracing import untraced


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that is marked as ``untraced`` without coverage's tracer.

    A tracer slows down every line of Python in the process, also those of other packages: Dynamo's work takes twice as
    long under it (12 cases of test_compiled_equals_eager_in_one_graph: 30 s, and 57 s with coverage). Such a test asks
    what other packages make of a layer; what it would add to coverage, the tests that call the same layers add too.
    """
    if item.get_closest_marker("untraced") is None:
        return (yield)
    with untraced():
        return (yield)
