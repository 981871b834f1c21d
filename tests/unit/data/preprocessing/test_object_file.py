"""An object comes out as it went in, in this process or another, whatever its size and whatever was there before."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.preprocessing.object_file import ObjectFile


@dataclass(frozen=True)
class Block:
    number: int
    payload: bytes


VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(max_size=100_000),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(VALUES, st.integers(0, 300_000)), max_size=6))
def test_each_object_comes_out_as_it_went_in(values: list[tuple[object, int]]):
    file = ObjectFile()
    for value, start in values:
        assert file.read(start, file.write(value, start)) == value
    file.close()


def test_two_objects_stand_one_after_the_other():
    file = ObjectFile()
    first, second = Block(1, os.urandom(300_000)), [np.arange(100_000), "text"]
    middle = file.write(first)
    end = file.write(second, middle)
    assert file.read(0, middle) == first
    array, text = file.read(middle, end)
    assert text == "text" and np.array_equal(array, second[0]) and array.flags.writeable
    file.close()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (100, 700), (100_000,)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint16", "float64"])
def test_arrays_of_every_layout(shape: tuple[int, ...], order: str, dtype: str):
    file = ObjectFile()
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype=dtype, order=order)
    for value in (array, array[::2]):
        read = file.read(0, file.write(value))
        assert read.dtype == value.dtype and np.array_equal(read, value)
    file.close()


def test_a_system_that_writes_and_reads_little_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """Linux moves 2 GiB at once at most."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: pwrite(file, memoryview(content)[:99_990], at))
    monkeypatch.setattr(os, "preadv", lambda file, into, at: preadv(file, [into[0][:77_777]], at))
    file = ObjectFile()
    values = [np.arange(100_000), b"x" * 300_000]
    array, text = file.read(5, file.write(values, 5))
    assert np.array_equal(array, values[0]) and text == values[1]
    file.close()


def test_a_forked_process_reads_and_answers():
    file = ObjectFile()
    end = file.write(Block(7, b"x" * 2_000_000))
    child = os.fork()
    if child == 0:
        block = file.read(0, end)
        file.write(Block(block.number + 1, block.payload[:1_000_000]), end)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    answer_end = os.fstat(file._descriptor).st_size
    assert file.read(end, answer_end) == Block(8, b"x" * 1_000_000)
    file.close()


def test_much_memory_is_given_back_and_a_little_is_kept():
    file = ObjectFile()
    file.write(bytes(1 << 20))
    file.forget()
    assert os.fstat(file._descriptor).st_size > 1 << 20
    file.write(bytes(20 << 20))
    file.forget()
    assert os.fstat(file._descriptor).st_size == 0
    assert file.read(0, file.write("again")) == "again"
    file.close()


def test_missing_bytes_are_an_error_and_closing_twice_is_none():
    file = ObjectFile()
    end = file.write("text")
    with pytest.raises(EOFError, match="10 of"):
        file.read(0, end + 10)
    file.close()
    file.close()
