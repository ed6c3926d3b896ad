"""ldmatrix, stmatrix and movmatrix as computed by runtime/matrix.h, against the layouts of the PTX ISA."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.emulate import matrix_formulas as isa
from tests.emulate.matrix_host import HostError, MatrixHost, Words, build

COUNTS = (1, 2, 4)
MMA = "emu::mma_f32<emu::F16, 16>"
FUNCTIONS = (
    *(
        f"emu::{name}<{count}, {trans}>"
        for name in ("ldmatrix", "stmatrix")
        for count in COUNTS
        for trans in ("false", "true")
    ),
    "emu::movmatrix",
    MMA,
)
Tiles = npt.NDArray[np.uint16]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> MatrixHost:
    return build(tmp_path_factory.mktemp("moves"), FUNCTIONS)


def ldmatrix(host: MatrixHost, shared: bytearray, addresses: Words, count: int, transposed: bool = False) -> Words:
    return host.warp(f"emu::ldmatrix<{count}, {str(transposed).lower()}>", addresses[:, None], count, shared)


def random_memory(seed: int = 0) -> bytearray:
    return bytearray(np.random.default_rng(seed).bytes(8192))


def scattered_rows(count: int, seed: int = 1) -> Words:
    """An address for each lane: of different rows for those that give one, nonsense for the others."""
    addresses = np.full(32, 0xFFFFFFF3, np.uint32)
    addresses[: 8 * count] = 16 * np.random.default_rng(seed).permutation(512)[: 8 * count]
    return addresses


def tiles_at(shared: bytearray, addresses: Words, count: int) -> Tiles:
    """The 8 x 8 matrices whose rows stand at the addresses of lanes 8 j to 8 j + 7."""
    memory = np.frombuffer(shared, np.uint16)
    return np.array([[memory[address // 2 :][:8] for address in addresses[8 * j :][:8]] for j in range(count)])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_each_lane_gets_the_elements_that_the_isa_names(host: MatrixHost, count: int, transposed: bool) -> None:
    shared, addresses = random_memory(), scattered_rows(count)
    tiles = tiles_at(shared, addresses, count)
    if transposed:
        tiles = tiles.transpose(0, 2, 1)
    expected = isa.to_words(isa.distribute(tiles, isa.MATRIX_8X8))[:, :, 0].T
    np.testing.assert_array_equal(ldmatrix(host, shared, addresses, count, transposed), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_what_was_loaded_is_stored_again(host: MatrixHost, count: int, transposed: bool) -> None:
    shared, source, target = random_memory(), scattered_rows(count), scattered_rows(count, seed=2)
    words = ldmatrix(host, shared, source, count, transposed)
    written = bytearray(8192)
    inputs = np.concatenate([target[:, None], words], axis=1)
    host.warp(f"emu::stmatrix<{count}, {str(transposed).lower()}>", inputs, 0, written)
    np.testing.assert_array_equal(tiles_at(written, target, count), tiles_at(shared, source, count))
    untouched = np.ones(512, bool)
    untouched[target[: 8 * count] // 16] = False
    assert not np.frombuffer(written, np.uint64).reshape(512, 2)[untouched].any()


def test_transposed_load_is_the_load_of_the_transposed(host: MatrixHost) -> None:
    shared, addresses = random_memory(), np.arange(32, dtype=np.uint32) * 16
    other = bytearray(8192)
    np.frombuffer(other, np.uint16)[:256] = tiles_at(shared, addresses, 4).transpose(0, 2, 1).ravel()
    np.testing.assert_array_equal(
        ldmatrix(host, shared, addresses, 4, transposed=True), ldmatrix(host, other, addresses, 4)
    )


def test_movmatrix_transposes_and_twice_gives_back(host: MatrixHost) -> None:
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    words = isa.to_words(isa.distribute(matrix, isa.MATRIX_8X8))
    once = host.warp("emu::movmatrix", words, 1)
    np.testing.assert_array_equal(once, isa.to_words(isa.distribute(matrix.T, isa.MATRIX_8X8)))
    np.testing.assert_array_equal(host.warp("emu::movmatrix", once, 1), words)


@pytest.mark.parametrize("name", ["ldmatrix", "stmatrix"])
@pytest.mark.parametrize(("address", "message"), [(8, "not aligned"), (8192, "out of bounds")])
def test_a_bad_row_address_is_an_error(host: MatrixHost, name: str, address: int, message: str) -> None:
    addresses = scattered_rows(2)
    addresses[15] = address
    words = np.concatenate([addresses[:, None], np.zeros((32, 2), np.uint32)], axis=1)
    with pytest.raises(HostError, match=message):
        host.warp(f"emu::{name}<2, false>", words if name == "stmatrix" else words[:, :1], 2, random_memory())


@pytest.mark.parametrize("b_is_transposed", [False, True])
def test_loaded_fragments_multiply(host: MatrixHost, b_is_transposed: bool) -> None:
    """The way a kernel does it: A by x4, B by x2 from rows of B's columns, or by x2.trans from rows of B."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(16, 16)).astype(np.float16), rng.normal(size=(16, 8)).astype(np.float16)
    shared = bytearray(a.tobytes() + (b if b_is_transposed else b.T).tobytes())
    lanes = np.arange(32, dtype=np.uint32)
    a_rows = 32 * (lanes % 16) + 16 * (lanes // 16)
    b_rows = 512 + (16 * (lanes % 16) if b_is_transposed else 32 * (lanes % 8) + 16 * (lanes // 8 % 2))
    words = [
        ldmatrix(host, shared, a_rows, 4),
        ldmatrix(host, shared, b_rows.astype(np.uint32), 2, transposed=b_is_transposed),
        np.zeros((32, 4), np.uint32),
    ]
    d = isa.decode(isa.collect(host.warp(MMA, np.concatenate(words, axis=1), 4), isa.C, 16, 8), "f32")
    np.testing.assert_allclose(d, a.astype(float) @ b.astype(float), rtol=1e-6, atol=1e-6)
