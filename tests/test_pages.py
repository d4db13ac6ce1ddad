"""How pages are stored and read: codes against what they stand for, a range against an index, here and on the host."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.kv.pages import PlainPages, QuantisedPages
from engine.kv.pool import HOST, Pool
from engine.spec import KVPolicy, KVStream

STREAM, CPU = KVStream(layers=2, tokens=6, heads=2, width=8), torch.device("cpu")


def filled(store, count: int = 5, seed: int = 0, spread: float = 1.0):
    """Random keys, one channel far larger than the others, and values, written to the first pages of a store."""
    torch.manual_seed(seed)
    keys, values = torch.randn(2, count, STREAM.tokens, STREAM.heads, STREAM.width) * spread
    keys[..., 3] *= 30
    store.write(torch.arange(count), keys, values)
    return keys, values


@pytest.mark.parametrize(("code", "bound"), [(torch.int8, 0.012), (torch.float8_e4m3fn, 0.04)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_codes_stay_close_to_what_they_stand_for(code, bound, spread):
    store = QuantisedPages(STREAM, 8, torch.float32, CPU, code=code)
    written = filled(store, spread=spread)
    for read, true in zip(store.gather(torch.arange(5)), written, strict=True):
        assert (read - true).norm() / true.norm() < bound


def test_a_scale_for_each_channel_keeps_the_small_channels_of_keys():
    errors = []
    for per_channel in (True, False):
        store = QuantisedPages(STREAM, 8, torch.float32, CPU, per_channel=per_channel)
        keys, _ = filled(store)
        small = [c for c in range(STREAM.width) if c != 3]
        errors.append(float((store.gather(torch.arange(5))[0] - keys)[..., small].norm()))
    assert errors[0] < errors[1] / 10


@given(st.integers(0, 2**31), st.floats(1e-2, 1e4))
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_code_is_off_by_more_than_half_a_step(seed, spread):
    store = QuantisedPages(STREAM, 5, torch.float32, CPU)
    keys, values = filled(store, seed=seed, spread=spread)
    read = store.gather(torch.arange(5))
    for x, made, scale in ((keys, read[0], store.key_scales), (values, read[1], store.value_scales)):
        assert ((x - made).abs() <= 0.5001 * scale.float() + 1e-7).all()


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
def test_a_run_of_pages_reads_the_same_as_a_range_and_as_an_index(kv_dtype):
    pool = Pool(STREAM, 8, torch.float32, CPU, kv_dtype=kv_dtype)
    filled(pool.shelf.layers[1])
    index = torch.tensor([[3, 4], [0, 1]])
    for run, any_pages in zip(pool.range(1, 3, 2), pool.gather(1, index), strict=True):
        assert torch.equal(run, any_pages[0])
    assert pool.sliceable == (kv_dtype is None)


def test_range_access_copies_nothing_and_index_access_does():
    store = PlainPages(STREAM, 8, torch.float32, CPU)
    filled(store)
    keys, _ = store.range(2, 3)
    assert keys.untyped_storage().data_ptr() == store.keys.untyped_storage().data_ptr()
    copied, _ = store.gather(torch.tensor([2, 3, 4]))
    assert torch.equal(copied, keys)
    assert copied.untyped_storage().data_ptr() != store.keys.untyped_storage().data_ptr()


def test_a_page_costs_what_it_says():
    sizes = {d: Pool(STREAM, 4, torch.float32, CPU, kv_dtype=d).page_bytes for d in (None, "int8", "fp8")}
    numbers = STREAM.layers * STREAM.tokens * STREAM.heads * STREAM.width
    assert sizes[None] == STREAM.page_bytes(4) == 8 * numbers
    assert sizes["int8"] == sizes["fp8"] == 2 * numbers + STREAM.layers * STREAM.heads * (STREAM.width + 1) * 2
    with pytest.raises(ValueError, match="kv_dtype 'int3': expected None or one of"):
        Pool(STREAM, 4, torch.float32, CPU, kv_dtype="int3")


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_pages_go_to_the_host_and_come_back_by_index(kv_dtype):
    pool = Pool(STREAM, 4, torch.float32, CPU, kv_dtype=kv_dtype, host=3, summarise=True)
    pages = pool.allocate(3)
    for layer in pool.shelf.layers:
        filled(layer, 3)
    pool.note_means(pages)
    before, means = pool.gather(1, torch.tensor([pages]))[0], pool.means[:, pages].clone()
    pool.retain([pages[1]])
    away = [pool.offload(p) for p in pages[:2]]
    assert min(away) >= HOST
    assert pool.shelf.counts.tolist() == [0, 1, 1, 0]
    assert torch.equal(pool.gather(1, torch.tensor([[*away, pages[2]]]))[0], before)
    assert torch.equal(pool.means[:, [pool.row(p) for p in away]], means[:, :2])
    pool.grow(9, 5)
    assert torch.equal(pool.gather(1, torch.tensor([[*away, pages[2]]]))[0], before)
    assert torch.equal(pool.means[:, [pool.row(p) for p in away]], means[:, :2])
    pool.release([*away, pages[1], pages[2]])
    assert pool.num_held == 0


def test_policies_say_what_is_seen_kept_and_chosen_from():
    policy = KVPolicy(3, sink=1, pages=(2, 9), top_k=1, memory=4)
    assert policy.visible(0) == []
    assert policy.visible(5) == [0, 2, 3, 4]
    assert policy.choices(5) == [1]
    assert policy.visible(13) == [0, 2, 9, 10, 11, 12]
    assert policy.choices(13) == [6, 7, 8]
    assert (policy.early, policy.span) == (7, 7)
    assert KVPolicy(None).span is None
    bad = [{"pages": (3, 1)}, {"pages": (-1,)}, {"top_k": 2}, {"window": None, "sink": 1}, {"window": -1}]
    for fields in bad:
        with pytest.raises(ValueError, match=r"expected|window None"):
            KVPolicy(**fields)
