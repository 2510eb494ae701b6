"""What goes to the script in Redis, and what comes back from it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from llmproxy.store.interface import Grant, Kind, Meter, Reading
from llmproxy.store.operations import (
    Append,
    Delete,
    Entries,
    Get,
    Leave,
    Names,
    Operation,
    Put,
    Read,
    Replace,
    Result,
    Settle,
    Take,
    spelt,
    written,
)

_KINDS = {Kind.RATE: "r", Kind.HELD: "h", Kind.SPENT: "s"}
_PROVISIONAL = "p"  # a rate with owners: kept otherwise, so a kind of its own

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class Garbled(Exception):
    """This is not the answer to what was asked."""


@dataclass(slots=True)
class Reply:
    """What the script has said to one call."""

    state: str  # new: it was done; done: that was before; gone: the lease has ended meanwhile
    results: Any  # of `done`, which takes were granted: a text of 0 and 1
    garbage: int  # keys that held something foreign
    blobs: list[bytes]  # names and values; the first is the packed part itself


def call(batch: list[Operation[Any]], owner: str, number: int, lease: float) -> list[bytes]:
    """Return the arguments of the script."""
    blobs: list[bytes] = [b""]
    operations = [_written(each, blobs) for each in batch]
    blobs[0] = _pack((owner, number, lease, operations))
    return blobs


def reply(answer: object, owner: str, number: int) -> Reply:
    """Read an answer, and make sure that it is the one to this call."""
    try:
        if not isinstance(answer, list) or not answer:
            raise Garbled
        whose, which, state, results, garbage = _unpack(answer[0])
    except (TypeError, ValueError, msgspec.DecodeError) as exc:
        raise Garbled from exc
    if whose != owner or which != number:
        raise Garbled
    return Reply(state, results, garbage, answer)


def results(batch: list[Operation[Any]], said: Reply, owner: str) -> list[Result]:
    """Return what became of each operation."""
    if said.state == "done":
        # Nothing is written down for a call in which nothing was granted.
        return [Grant(mark == "1", (), owner) for mark in said.results.ljust(len(batch), "0")]
    if len(said.results) != len(batch):
        raise Garbled
    return [
        _read(each, result, said.blobs, owner)
        for each, result in zip(batch, said.results, strict=True)
    ]


def _written(operation: Operation[Any], blobs: list[bytes]) -> tuple[object, ...]:
    def blob(value: bytes) -> int:
        blobs.append(value)
        return len(blobs)  # the script counts from 1

    match operation:
        case Take(wanted):
            return "take", [_meter(meter) for meter, _ in wanted], [each for _, each in wanted]
        case Settle(taken, whose):
            meters, amounts, actuals = zip(*taken, strict=True) if taken else ((), (), ())
            return "settle", [_meter(meter) for meter in meters], amounts, actuals, whose
        case Read(meters):
            return "read", [_meter(meter) for meter in meters]
        case Get(name):
            return "get", blob(written(name))
        case Put(name, value, within, new):
            return "put", blob(written(name)), blob(value), -1 if within is None else within, new
        case Replace(name, old, value):
            return "replace", blob(written(name)), blob(old), blob(value)
        case Delete(name):
            return "delete", blob(written(name))
        case Names(prefix, cursor):
            return "names", blob(written(prefix)), blob(cursor.encode() or b"0")
        case Append(name, entry, keep):
            return "append", blob(written(name)), blob(entry), keep
        case Entries(name, last):
            return "entries", blob(written(name)), last
        case Leave():
            return ("leave",)
    return ("nothing",)


def _meter(meter: Meter) -> tuple[object, ...]:
    scope = meter.window if meter.kind is Kind.SPENT else meter.period
    kind = _PROVISIONAL if meter.provisional else _KINDS[meter.kind]
    return kind, meter.name, meter.limit, scope, meter.hard


def _read(operation: Operation[Any], result: Any, blobs: list[bytes], owner: str) -> Result:
    match operation:
        case Take():
            numbers = iter(result[1:])
            found = list(zip(numbers, numbers, numbers, numbers, strict=True))
            return Grant(
                result[0],
                tuple(Reading(*each[:3]) for each in found),
                owner,
                tuple(index for index, each in enumerate(found) if each[3]),
            )
        case Read():
            numbers = iter(result)
            return tuple(Reading(*pair) for pair in zip(numbers, numbers, strict=True))
        case Get():
            return blobs[result] if result else None  # 0 is the packed part
        case Names():
            cursor, *names = (blobs[each] for each in result)
            return cursor.decode() if cursor != b"0" else "", [spelt(name) for name in names]
        case Entries():
            return [blobs[each] for each in result[1:]]
        case Settle() | Append():
            return None
    return result
