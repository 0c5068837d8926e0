from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from snngraph.errors import OutputRowsError
from snngraph.runtime.outputs import Rows, find_rows
from snngraph.types import TensorSpec

T, N = 3, 4
X = TensorSpec("x", (T, N, 2), "float32", 0, 1)
BATCH_FIRST = TensorSpec("x", (N, T, 2), "float32", 1, 0)
ORDERS = {"tnc": Rows(T), "ntc": Rows(1, T), "tcn": Rows(2 * T), "nct": Rows(1, 2 * T), "tnC": Rows(T, 2), "Ctn": Rows(2 * T)}


def spec(shape: tuple[int | None, ...]) -> TensorSpec:
    return TensorSpec("y", shape, "float32", None, 0)


@pytest.mark.parametrize(("order", "rows"), ORDERS.items())
@pytest.mark.parametrize("first", [X, BATCH_FIRST])
def test_the_network_tells_the_order(order: str, rows: Rows, first: TensorSpec) -> None:
    def run(arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        y = arrays[0] if first is X else arrays[0].swapaxes(0, 1)
        y = y.transpose(["tnc".index(k) for k in order.lower()])
        return [y.reshape(T * N, 2) if order in ("tnc", "ntc") else y.flatten()]

    x = np.random.default_rng(0).random((T, N, 2) if first is X else (N, T, 2)).astype(np.float32)
    (value,) = results = run([x])
    (found,) = find_rows(run, [first], [x], [spec(value.shape)], results, T)
    assert found == rows
    split = found.split(value, 0)
    assert split.shape[found.spec(spec(value.shape), T).batch_dim or 0] == N
    assert np.array_equal(found.merge(split, 0), value)


def test_where_the_network_can_not_tell() -> None:
    def never(_: Any) -> Any:
        raise AssertionError("one run too many")

    x, y = np.ones((T, 1, 2), np.float32), np.ones((T, 2), np.float32)
    assert find_rows(never, [X], [x], [spec(y.shape)], [y], T) == [Rows(T)]
    x = x.swapaxes(0, 1)
    assert find_rows(never, [BATCH_FIRST], [x], [spec(y.shape)], [y], T) == [Rows(1, T)]
    assert find_rows(never, [BATCH_FIRST], [x], [spec(y.shape)], [y], T, time_first=["y"]) == [Rows(T)]
    x = np.ones((T, N, 2), np.float32)
    assert find_rows(never, [X], [x], [spec((N, 2))], [x[0]], T) == [Rows()]  # nothing is merged
    assert find_rows(never, [X], [x], [TensorSpec("y", (5,))], [np.ones(5)], T) == [Rows()]  # no batch
    with pytest.raises(OutputRowsError, match="6 rows on axis 0 for 4 samples"):
        find_rows(never, [X], [x], [spec((6, 2))], [np.ones((6, 2), np.float32)], T)


def test_what_is_left_of_the_axis() -> None:
    assert Rows(T).spec(spec((T * N, 5)), T) == TensorSpec("y", (T, N, 5), "float32", 0, 1)
    assert Rows(1, T).spec(spec((None, 5)), T) == TensorSpec("y", (None, T, 5), "float32", 1, 0)
    assert Rows(2).spec(spec((2 * N, 5)), T) == TensorSpec("y", (2, N, 5), "float32", None, 1)
    merged = TensorSpec("y", (7, 2 * N, T), "float32", 2, 1)
    assert Rows(1, 2).spec(merged, T) == TensorSpec("y", (7, N, 2, T), "float32", 3, 1)
    assert Rows().spec(merged, T) == merged
