from __future__ import annotations

import threading

import pytest

from torch_piecewise.errors import ConfigError, PassError
from torch_piecewise.passes.context import PassContext, get_pass_context, pass_context
from torch_piecewise.ranges import Range


def test_the_range_is_known_inside_the_block():
    with pass_context(Range(1, 8)):
        assert get_pass_context() == PassContext(compile_range=Range(1, 8))


def test_the_innermost_block_holds_and_the_outer_one_comes_back():
    with pass_context(Range(1, 8)):
        with pass_context(Range(9, 64)):
            assert get_pass_context().compile_range == Range(9, 64)
        assert get_pass_context().compile_range == Range(1, 8)


def test_asking_outside_of_any_block_says_what_to_write():
    with pytest.raises(PassError) as caught:
        get_pass_context()
    assert str(caught.value) == (
        "There is no pass context here\n"
        "  expected: a call from inside pass_context(range), as the passes of a PassManager are made\n"
        "  to do: wrap the call in `with pass_context(Range(...)):`"
    )


def test_the_block_ends_even_if_it_raises():
    with pytest.raises(KeyError), pass_context(Range(1, 8)):
        raise KeyError
    with pytest.raises(PassError):
        get_pass_context()


def test_another_thread_is_outside_of_the_block():
    seen: list[object] = []

    def ask() -> None:
        try:
            seen.append(get_pass_context())
        except PassError as error:
            seen.append(type(error))

    with pass_context(Range(1, 8)):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert seen == [PassError]


def test_something_that_is_no_range_is_refused():
    with pytest.raises(
        ConfigError, match=r"pass_context was not given a Range[\s\S]*got: \(1, 8\) \(tuple\)"
    ):
        pass_context((1, 8)).__enter__()  # type: ignore[arg-type]
