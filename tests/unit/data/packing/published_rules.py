"""Plain simulations of the published packing rules, slow and on lists, to compare the fast ones with."""

from __future__ import annotations

from tests.unit.data.packing.finished import BOS

UNLEARNED = -100


def published_scan(lengths: list[int], seq_length: int) -> list[list[int]]:
    """TeleChat's rule as it is stated: a pointer over the pool, one sample at a time."""
    pool = [(index, length) for index, length in enumerate(lengths) if length < seq_length - 10]
    shortest = min(lengths, default=0)
    samples = []
    while pool:
        pointer, used, sample = 0, 0, []
        while pointer < len(pool) and seq_length - used > shortest:
            if pool[pointer][1] + used < seq_length - 10:
                index, length = pool.pop(pointer)
                used += length
                sample.append(index)
            else:
                pointer += 1
        samples.append(sample)
    return samples


def published_loop(documents: list[list[int]], seq_length: int, look_back: int) -> list[tuple[list, list]]:
    """The published rule with a buffer of tokens: (ids, labels) of each block; labels are the ids or UNLEARNED."""
    ids: list[int] = []
    labels: list[int] = []
    blocks = []

    def emit() -> None:
        nonlocal ids, labels
        blocks.append((ids[:seq_length], labels[:seq_length]))
        if len(ids) == seq_length:
            ids, labels = [], []
            return
        tail = ids[:seq_length][-look_back:]
        if BOS in tail:
            tail = tail[len(tail) - 1 - tail[::-1].index(BOS) :]
        ids, labels = tail + ids[seq_length:], [UNLEARNED] * len(tail) + labels[seq_length:]

    for document in documents:
        ids, labels = ids + document, labels + document
        if len(ids) >= seq_length:
            emit()
    while len(ids) >= seq_length:
        emit()
    return blocks
