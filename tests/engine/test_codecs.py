"""What is stored reads back as it was written, and nothing else reads at all."""

import gzip
import hashlib
import random
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from wasman_host.errors import CorruptSnapshotError, Failure, UnsupportedStateError
from wasman_host.guest.memory import PAGE, changed, image_of
from wasman_host.oplog import (
    EMPTY_CHAIN,
    Delivery,
    Entry,
    Operation,
    Tail,
    chained,
    decode_entry,
    decode_tail,
    encode_entry,
    encode_tail,
)
from wasman_host.payload import Payload
from wasman_host.record import (
    Limits,
    OpenOperation,
    Parent,
    Pinned,
    Publishing,
    Record,
    SnapshotReference,
    StreamSpec,
    decode_record,
    encode_record,
)
from wasman_host.seal import Address, digest_of, seal, unseal
from wasman_host.snapshot import Delta, decode_delta, encode_delta, parts_of, runs_of
from wasman_host.store import Status

settings.register_profile("wasman", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wasman")

words = st.text(max_size=12)
hexes = st.binary(max_size=8).map(bytes.hex)
counts = st.integers(0, 2**63)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
addresses = st.builds(Address, words, words, words, st.sampled_from(["record", "entry", "snapshot"]), words)
failures = st.builds(Failure, words, words, json_values, words, st.integers(0, 99), words)
payloads = st.builds(Payload.of, st.binary(max_size=200))
operations = st.builds(Operation, st.sampled_from(["call", "timer"]), words, hexes, counts, counts, counts)
deliveries = st.builds(
    Delivery,
    st.sampled_from(["start", "session", "result", "failed", "fired", "terminate"]),
    st.integers(-1, 2**31),
    st.none() | payloads,
    st.none() | failures,
    words,
)
entries = st.builds(
    Entry,
    counts,
    counts,
    counts,
    st.binary(max_size=8),
    st.lists(operations, max_size=3).map(tuple),
    st.lists(deliveries, max_size=3).map(tuple),
)
streams = st.dictionaries(
    words, st.builds(StreamSpec, words, st.dictionaries(words, json_values, max_size=2)), max_size=2
)
pinned = st.builds(
    Pinned,
    words,
    hexes,
    words,
    st.sampled_from(["replay", "checkpoint"]),
    st.builds(Limits, counts, counts, counts, st.floats(0, 1e6), counts, counts, counts),
    streams,
    streams,
    st.dictionaries(words, json_values, max_size=2),
    st.dictionaries(words, words, max_size=2),
    st.none() | st.builds(Parent, words, words, counts),
    words,
    st.none() | counts,
    words,
)
records = st.builds(
    Record,
    run=words,
    pinned=pinned,
    status=st.sampled_from(Status),
    reason=words,
    error=words,
    image=hexes,
    snapshot=st.none()
    | st.builds(
        SnapshotReference, counts, hexes, st.lists(st.tuples(words, hexes), max_size=3).map(tuple), counts, counts
    ),
    open=st.lists(
        st.builds(OpenOperation, counts, words, words, counts, st.none() | counts, st.none() | failures), max_size=2
    ).map(tuple),
    result=st.none() | payloads,
    failure=st.none() | failures,
    publishing=st.none()
    | st.builds(
        Publishing,
        st.dictionaries(words, st.tuples(counts, hexes, st.dictionaries(words, json_values, max_size=2)), max_size=2),
    ),
    undelivered=st.lists(st.tuples(words, words), max_size=2).map(tuple),
    created=counts,
    closed=st.none() | counts,
)


@given(addresses, st.binary(max_size=5000), st.sampled_from((1, 20)))
def test_what_is_sealed_opens_at_its_place_and_with_gunzip(address: Address, data: bytes, times: int) -> None:
    data *= times
    sealed = seal(address, data)
    assert unseal(address, sealed) == data
    assert gzip.decompress(sealed) == data
    assert seal(address, data) == sealed
    assert digest_of(sealed) in sealed
    for after, deflate in ((b"before", True), (b"", False)):
        other = seal(address, data, after=after, deflate=deflate)
        assert unseal(address, other, after=after) == gzip.decompress(other) == data
        if after:
            with pytest.raises(CorruptSnapshotError, match="fails its digest"):
                unseal(address, other)


@given(addresses, addresses, st.binary(max_size=100))
def test_it_opens_nowhere_else(address: Address, other: Address, data: bytes) -> None:
    assume("\0" not in f"{address}{other}{address.tenant}{other.tenant}{address.id}{other.id}")
    assume(address != other)
    with pytest.raises(CorruptSnapshotError, match="belongs to another place"):
        unseal(other, seal(address, data))


@pytest.mark.parametrize(("times", "stride"), [(3, 1), (300, 101)])
def test_every_bit_and_every_length_counts(times: int, stride: int) -> None:
    address = Address("t", "w", "r", "entry", "1")
    sealed = seal(address, b"some words, some words, and some more of them " * times, deflate=False)
    for at in (*range(60), *range(60, len(sealed), stride), *range(len(sealed) - 8, len(sealed))):
        for bit in range(8):
            flipped = bytearray(sealed)
            flipped[at] ^= 1 << bit
            with pytest.raises((CorruptSnapshotError, UnsupportedStateError)):
                unseal(address, bytes(flipped))
        with pytest.raises((CorruptSnapshotError, UnsupportedStateError)):
            unseal(address, sealed[:at])
    for wrong in (sealed + b"\0", sealed + sealed, gzip.decompress(sealed), gzip.compress(b"some words"), b""):
        with pytest.raises(CorruptSnapshotError, match="restore it from a backup, then unblock"):
            unseal(address, wrong)
    with pytest.raises(CorruptSnapshotError, match="entry 1 of run r of 'w' is missing from the store"):
        unseal(address, None)


def test_what_is_sealed_with_a_key_is_told_apart_from_damage() -> None:
    address = Address("t", "w", "r", "entry", "1")
    sealed = bytearray(seal(address, b"words"))
    sealed[16] = 4
    with pytest.raises(UnsupportedStateError, match="use a wasman that knows version 4"):
        unseal(address, bytes(sealed))


def test_what_is_large_has_another_digest_and_opens_with_either() -> None:
    address = Address("t", "w", "r", "snapshot", "s")
    place, after = b"t\0w\0r\0snapshot\0s\0", b"before"
    data = b"many words, " * 2000
    for what, version in ((b"few words", 2), (data, 3)):
        sealed = seal(address, what, after=after, deflate=False)
        covered = place + after + sealed[50:-8]
        digests = {2: hashlib.sha256(covered).digest(), 3: blake3(covered).digest()}
        assert (sealed[16], digest_of(sealed)) == (version, digests[version])
        for other in (2, 3):  # such as snapshots of before there was the second one
            written = sealed[:16] + bytes([other]) + sealed[17:18] + digests[other] + sealed[50:]
            assert unseal(address, written, after=after) == what


def _encoded(entry: Entry) -> bytes:
    issued = [operation.encoded for operation in entry.issued]
    return encode_entry(entry.n, entry.time, entry.operations, entry.digest, issued, entry.deliveries)


@given(entries)
def test_entries(entry: Entry) -> None:
    read = decode_entry(_encoded(entry), entry.n, "here")
    assert read == entry
    assert [one.payload and one.payload.data for one in read.deliveries] == [
        one.payload and one.payload.data for one in entry.deliveries
    ]
    with pytest.raises(CorruptSnapshotError, match="here holds entry"):
        decode_entry(_encoded(entry), entry.n + 1, "here")
    with pytest.raises(CorruptSnapshotError):
        decode_entry(_encoded(entry) + b"x", entry.n, "here")


@given(st.integers(0, 2**40), st.binary(max_size=200))
def test_the_entry_of_a_plain_step_reads_as_any_other(n: int, data: bytes) -> None:
    entry = Entry(n, n + 1, 2, EMPTY_CHAIN, (Operation("call", "x", "ab"),), (Delivery("result", 1, Payload.of(data)),))
    read = decode_entry(_encoded(entry), n, "here")
    assert read == entry
    [delivery] = read.deliveries
    assert delivery.payload is not None
    assert delivery.payload.content == data


@given(st.builds(Tail, counts, counts, counts, st.binary(min_size=32, max_size=32)))
def test_tails(tail: Tail) -> None:
    encoded = encode_tail(tail)
    assert decode_tail(encoded, "here") == tail
    for wrong in (b"", encoded[:-1], encoded + b"x"):
        with pytest.raises(CorruptSnapshotError, match="here: the end of its log is damaged"):
            decode_tail(wrong, "here")


@given(st.lists(operations, max_size=5), st.lists(operations, max_size=5))
def test_the_digest_of_operations_names_each_in_its_place(first: list[Operation], second: list[Operation]) -> None:
    one, two = ([operation.encoded for operation in given] for given in (first, second))
    assert chained(chained(b"", one), two) == chained(b"", [*one, *two])
    assert (chained(b"", one) == chained(b"", two)) == (first == second)


@given(records)
def test_records(record: Record) -> None:
    read = decode_record(encode_record(record), "here")
    assert read == record
    assert (read.result and read.result.data) == (record.result and record.result.data)


@given(st.binary(max_size=60))
def test_nonsense_is_damage_and_nothing_else(data: bytes) -> None:
    for decode in (decode_record, decode_delta, lambda given, place: decode_entry(given, 0, place)):
        with pytest.raises(CorruptSnapshotError, match="here cannot be read"):
            decode(data, "here")


@pytest.mark.parametrize("decode", [decode_record, decode_delta, lambda data, place: decode_entry(data, 0, place)])
def test_json_that_is_no_object_is_damage(decode: Any) -> None:
    for data in (b"null", b"[]", b"1", b'"x"', b"{}", b'{"v": null}'):
        with pytest.raises((CorruptSnapshotError, UnsupportedStateError)):
            decode(data, "here")


def test_a_newer_version_is_told_apart_from_damage() -> None:
    newer = b'{"v": 99, "deliveries": []}\n'
    for decode in (decode_record, decode_delta, lambda data, place: decode_entry(data, 0, place)):
        with pytest.raises(UnsupportedStateError, match=r"here was written by (a newer|another) wasman"):
            decode(newer, "here")


@given(st.integers(0, 40), st.integers(0, 40), st.lists(st.integers(0, 40 * PAGE - 1), max_size=12), st.integers())
def test_a_delta_makes_the_old_memory_the_new_one(old_pages: int, more: int, places: list[int], seed: int) -> None:
    source = random.Random(seed)
    old = source.randbytes(old_pages * PAGE)
    new = bytearray(old + bytes(more * PAGE))
    for place in places:
        if place < len(new):
            new[place] = source.randrange(256)
    runs = changed(old, bytes(new))
    pages = b"".join(bytes(new[first * PAGE : (first + count) * PAGE]) for first, count in runs)
    delta = Delta("parent", len(new), tuple(runs), pages, ((0, b"1234"),), {"k": [1]})
    read = decode_delta(encode_delta(delta), "here")
    assert read == delta
    if new:
        assert image_of(len(new), [(0, old), *parts_of(read)]).view == new
    touched = {place // PAGE for place in places if place < len(new)}
    found = [page for first, count in runs for page in range(first, first + count)]
    assert set(found) <= touched
    assert runs_of(found) == runs
    assert changed(bytes(new), bytes(new)) == []


@pytest.mark.parametrize("runs", [((1, 1), (0, 1)), ((0, 0),), ((0, 3),), ((0, 1),), ((-1, 2),), ((0, 2), (1, 1))])
def test_runs_that_make_no_sense_are_damage(runs: tuple[tuple[int, int], ...]) -> None:
    delta = Delta("", 2 * PAGE, runs, bytes(2 * PAGE))
    with pytest.raises(CorruptSnapshotError, match="here names pages that it does not hold"):
        decode_delta(encode_delta(delta), "here")
