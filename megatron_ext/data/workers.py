"""Blocks through worker processes, results in the order of the blocks; a dead worker ends the run, never hangs it."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from megatron_ext.data.encode import BlockEncoder, EncodedBlock, EncodeSettings, encode_in_worker, start_worker
from megatron_ext.data.readers import LineBlock
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer

_BLOCKS_AHEAD = 3  # per worker: enough to keep it busy, few enough to bound memory


def encode_blocks(
    blocks: Iterable[LineBlock], settings: EncodeSettings, tokenizer: Tokenizer, num_workers: int
) -> Iterator[EncodedBlock]:
    """Encoded blocks in the order of `blocks`, the same for any number of workers.

    Args:
        blocks: read lazily, at most a few per worker ahead of what was yielded.
        settings: what the workers do.
        tokenizer: used when one worker is asked for; that one is this process.
        num_workers: worker processes, at least 1.

    Raises:
        DataError: a worker process died.
    """
    if num_workers == 1:
        yield from map(BlockEncoder(settings, tokenizer), blocks)
        return
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=start_worker,
        initargs=(settings, os.getpid()),
    )
    waiting: deque[Future[EncodedBlock]] = deque()
    try:
        for block in blocks:
            waiting.append(executor.submit(encode_in_worker, block))
            if len(waiting) >= _BLOCKS_AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died",
            "Usually the system ended it for lack of memory; nothing was published",
            f"Run again with fewer than --workers {num_workers}",
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
