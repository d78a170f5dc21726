"""Whole numbers: the probe of torch's product, and numpy's in its place."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from diptych.engine import int8


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize(("q", "t", "e"), [(1, 1, 1), (1, 4096, 512), (3, 77, 33), (64, 500, 2049)])
def test_equal_to_a_product_of_int64(monkeypatch, has_kernel, q, t, e):
    if not has_kernel:
        monkeypatch.setattr(int8, "_has_kernel", lambda width: False)
    rng = np.random.default_rng(e)
    queries, tile = (rng.integers(-127, 128, (n, e), np.int8) for n in (q, t))
    out = torch.empty((q, t), dtype=torch.int32)
    int8.product(torch.from_numpy(queries), torch.from_numpy(tile), out)
    np.testing.assert_array_equal(out.numpy(), queries.astype(np.int64) @ tile.T.astype(np.int64))


def test_the_probe(monkeypatch):
    """The private product is used if it is right, and not if it saturates, is refused, or gone."""
    probe = int8._has_kernel.__wrapped__
    assert probe(512), "torch._int_mm is absent or wrong on this machine: the scan will be slow"

    def saturates(a, b, *, out):
        out.copy_((a.int() @ b.int()).clamp(-(2**22), 2**22 - 1))

    def refuses(a, b, *, out):
        raise RuntimeError("not for this shape")

    for other in (saturates, refuses):
        monkeypatch.setattr(torch, "_int_mm", other)
        assert not probe(512)
    monkeypatch.delattr(torch, "_int_mm")
    assert not probe(512)


def test_the_plain_product_is_exact_for_long_rows(monkeypatch):
    """Sums of 5000 products of 127 * 127 are beyond the whole numbers of float32."""
    monkeypatch.setattr(int8, "_has_kernel", lambda width: False)
    tile = torch.full((3, 5000), 127, dtype=torch.int8)
    tile[1, ::3] = -127
    tile[2, 0] = 126
    out = torch.empty((3, 3), dtype=torch.int32)
    int8.product(tile, tile, out)
    wide = tile.numpy().astype(np.int64)
    np.testing.assert_array_equal(out.numpy(), wide @ wide.T)


def test_alone_is_one_thread_of_torch_and_changes_no_other():
    before = torch.get_num_threads()
    assert int8.alone(torch.get_num_threads) == 1
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
        assert pool.submit(int8.alone, torch.get_num_threads).result() == 1
    with pytest.raises(ZeroDivisionError):
        int8.alone(lambda: 1 // 0)
