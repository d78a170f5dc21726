"""The order: each sample once an epoch, the shares of a mixture, and no memory of the past."""

import json
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.order import TRIES, Order, Position, hashed
from diptych.errors import DataError


def run(order, batches, *, batch_size, position=None):
    position = position or Position()
    found = []
    for _ in range(batches):
        refs, position = order.next_batch(position, batch_size=batch_size)
        found.append(refs)
    return found, position


def test_the_hash_is_splitmix64():
    # the first outputs of the reference program for state 0 (Vigna, splitmix64.c)
    states = [(i * 0x9E3779B97F4A7C15) % 2**64 for i in range(3)]
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(hashed(state)) for state in states] == expected
    assert hashed(1, np.array([2, -1]))[0] == hashed(1, 2) != hashed(2, 1)
    assert hashed(-1) == hashed(2**64 - 1)


@pytest.mark.parametrize("window", [1, 2, 16])
def test_each_sample_once_an_epoch(window):
    counts = [[7, 0, 5, 8], [4]]
    order = Order(counts, seed=3, window=window)
    assert order.size == 24
    found, position = run(order, 6, batch_size=8)
    whole = {
        (s, i, r) for s, part in enumerate(counts) for i, n in enumerate(part) for r in range(n)
    }
    for epoch in range(2):
        refs = [ref for batch in found[3 * epoch : 3 * epoch + 3] for ref in batch]
        assert len(refs) == 24 and {ref[:3] for ref in refs} == whole
        assert {ref.epoch for ref in refs} == {epoch}
    assert [ref[:3] for ref in found[0]] != [ref[:3] for ref in found[3]]
    assert (position.batch, position.left_out) == (6, 0)
    seeds = [ref.seed for batch in found for ref in batch]
    assert len(set(seeds)) == 48 and min(seeds) >= 0 and max(seeds) < 2**63


def test_what_no_batch_holds_is_counted_and_no_batch_has_one_twice():
    order = Order([[5, 6]], seed=1)
    found, position = run(order, 20, batch_size=4)
    assert all(len({ref[:3] for ref in batch}) == 4 for batch in found)
    assert position.left_out == 9 * 3  # two batches an epoch; the tenth has not ended
    assert position.epochs == (9,)


def test_reading_stays_within_a_window():
    order = Order([[10] * 40], seed=5, window=4)
    found, _ = run(order, 10, batch_size=40)
    for batch in found:
        assert len({ref.shard for ref in batch}) == 4
    assert len({ref.shard for batch in found for ref in batch}) == 40


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_position_is_as_near_as_any_other(data):
    sizes = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda n: sum(n) >= 8)
    counts = data.draw(st.lists(sizes, min_size=1, max_size=3))
    weights = data.draw(st.sampled_from([None, [1.0, 2.5, 0.3][: len(counts)]]))
    how = {"weights": weights, "seed": data.draw(st.integers(-5, 5)), "window": 2}
    steps = data.draw(st.integers(1, 12))
    whole, _ = run(Order(counts, **how), steps + 3, batch_size=8)
    _, position = run(Order(counts, **how), steps, batch_size=8)
    position = Position.from_dict(json.loads(json.dumps(position.to_dict())))
    fresh = pickle.loads(pickle.dumps(Order(counts, **how)))
    assert run(fresh, 3, batch_size=8, position=position)[0] == whole[steps:]


def test_shares_of_a_mixture():
    weights = [1.0, 2.0, 0.25]
    order = Order([[30, 30], [50], [9]], weights=weights, seed=2)
    found, position = run(order, 500, batch_size=10)
    taken: Counter[int] = Counter()
    for done, batch in enumerate(found, 1):
        assert len({ref[:3] for ref in batch}) == 10
        taken.update(ref.source for ref in batch)
        for source, weight in enumerate(weights):
            fair = Fraction(weight) / Fraction(sum(weights)) * 10 * done
            assert abs(taken[source] - fair) < 2  # never far from its share
    assert sum(taken.values()) == 5000
    per_epoch = Counter((ref.epoch, ref[:3]) for batch in found for ref in batch)
    assert max(per_epoch.values()) == 1
    assert all(position.epochs)


def test_one_source_of_a_mixture_does_not_depend_on_the_others():
    one, _ = run(Order([[40], [40]], weights=[1, 1], seed=7), 8, batch_size=8)
    other, _ = run(Order([[40], [90, 3]], weights=[1, 1], seed=7), 8, batch_size=8)
    first = [[ref for batch in found for ref in batch if ref.source == 0] for found in (one, other)]
    assert first[0] == first[1]


def test_stand_ins_are_of_the_window_and_of_no_row_of_the_batch():
    order = Order([[40] * 4], seed=4, window=2)
    refs, _ = order.next_batch(Position(), batch_size=6)
    taken = {ref[:3] for ref in refs}
    shards = {ref.shard for ref in refs}
    used = set()
    for row in range(6):
        found = order.stand_ins(Position(), row, batch_size=6)
        assert len(found) == TRIES
        assert {ref.shard for ref in found} <= shards or len(shards) < 2
        assert not {ref[:3] for ref in found} & (taken | used)  # no two rows take the same one
        used |= {ref[:3] for ref in found}
    again = Order([[40] * 4], seed=4, window=2)
    assert again.stand_ins(Position(), 5, batch_size=6) == found


def test_stand_ins_where_the_batch_is_the_window():
    order = Order([[5]], seed=4)
    refs, _ = order.next_batch(Position(), batch_size=5)
    for row in range(5):
        found = order.stand_ins(Position(), row, batch_size=5)
        assert {ref[:3] for ref in found} == {ref[:3] for ref in refs} - {refs[row][:3]}
    assert Order([[1]]).stand_ins(Position(), 0, batch_size=1) == []


def test_errors_name_both_numbers():
    with pytest.raises(DataError, match=r"small: has 3 samples, fewer than its 5 .* batch of 9"):
        order = Order([[3], [90]], weights=[1, 1], names=["small", "large"])
        order.next_batch(Position(), batch_size=9)
    with pytest.raises(DataError, match="the data: has 7 samples, fewer than its 8"):
        Order([[3], [4]]).next_batch(Position(), batch_size=8)
    with pytest.raises(DataError, match="void: holds no sample"):
        Order([[3], []], names=["full", "void"])
    with pytest.raises(DataError, match="above 0"):
        Order([[3], [3]], weights=[1, 0])
