"""Occupancy against cases worked out by hand, and the rules that every cost relies on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.errors import InputError
from onnxopt.plan import roofline
from onnxopt.plan.roofline import (
    Constant,
    TileTable,
    calibration,
    check_element,
    combined_doubt,
    launch_blocks,
    peak_flops,
    rates,
    resident_blocks,
    same_gpu,
)
from onnxopt.target import GpuProfile, gpu_profiles, load_target
from onnxopt.target.tile_records import TileRecord
from onnxopt.target.variant import Resources


def _gpu(name: str) -> GpuProfile:
    return load_target(name).need_gpu_profile()


@pytest.mark.parametrize(
    ("gpu", "registers", "shared", "threads", "blocks"),
    [
        # 2,048 threads of 256 are 8 blocks, and 64 warps of 32 x 32 registers are just as many.
        ("A100", 32, 0, 256, 8),
        # A warp takes 64 x 32 = 2,048 registers, a quarter of the multiprocessor 8 such warps, all of it 32.
        ("A100", 64, 0, 256, 4),
        # One register more: 2,304 after rounding, 7 warps a quarter, 28 in all, 3 blocks of 8.
        ("A100", 65, 0, 256, 3),
        # 168 x 32 = 5,376: 3 warps a quarter, 12 in all, 3 blocks of 4.
        ("A100", 168, 0, 128, 3),
        # Three warps a block: 1,280 registers a warp, 48 warps, 16 blocks; threads would allow 21.
        ("A100", 40, 0, 96, 16),
        # 48 KB and the driver's 1 KB: 4 of them in 228 KB.
        ("H200", 32, 49152, 128, 4),
        # All that a block may have, and nothing for a second.
        ("H200", 128, 232448, 512, 1),
        ("H200", 128, 232449, 512, 0),
        # Three consumer or producer warpgroups of 168 registers: 12 warps fit, and those are one block.
        ("H200", 168, 100000, 384, 1),
        # sm_75 keeps nothing for the driver: 64 KB are one block of 64 KB or two of 32.
        ("T4", 64, 65536, 128, 1),
        ("T4", 64, 32768, 128, 2),
        # The number of blocks is a limit of its own.
        ("L4", 16, 0, 32, 24),
        ("L4", 32, 101376, 128, 1),
        # More registers than a thread has; 256 threads with all 255 of them are one block, 288 none.
        ("H200", 256, 0, 128, 0),
        ("H200", 255, 0, 256, 1),
        ("H200", 255, 0, 288, 0),
        ("H200", 16, 0, 1056, 0),
    ],
)
def test_occupancy_as_computed_by_hand(gpu: str, registers: int, shared: int, threads: int, blocks: int) -> None:
    assert resident_blocks(_gpu(gpu), Resources(registers, shared, threads)) == blocks


def test_a_launch_has_the_worst_of_each_resource() -> None:
    gpu = _gpu("H200")
    wide, deep = Resources(168, 1024, 128), Resources(32, 100_000, 128)
    assert launch_blocks(gpu, [wide]) == 3
    assert launch_blocks(gpu, [deep]) == 2
    assert launch_blocks(gpu, [wide, deep]) == 2
    assert launch_blocks(gpu, [wide, Resources(32, 0, 256)]) == 0
    assert launch_blocks(gpu, []) == 0


_RESOURCES = st.builds(Resources, st.integers(1, 255), st.integers(0, 232448), st.integers(1, 32).map(lambda w: 32 * w))


@given(st.sampled_from(gpu_profiles()), _RESOURCES, st.integers(0, 64), st.integers(0, 65536))
def test_more_resources_never_mean_more_blocks(gpu: GpuProfile, needs: Resources, registers: int, shared: int) -> None:
    more = replace(
        needs,
        registers_per_thread=needs.registers_per_thread + registers,
        shared_memory_bytes=needs.shared_memory_bytes + shared,
    )
    assert resident_blocks(gpu, more) <= resident_blocks(gpu, needs)
    blocks = resident_blocks(gpu, needs)
    assert blocks * needs.shared_memory_bytes <= gpu.shared_memory_per_multiprocessor_bytes
    assert blocks * needs.threads <= gpu.threads_per_multiprocessor
    assert blocks * needs.threads * needs.registers_per_thread <= gpu.registers_per_multiprocessor


def test_rates_stay_below_the_datasheet() -> None:
    for gpu in gpu_profiles():
        for element in ("fp16", "bf16", "tf32", "fp32"):
            for path in ("mma", "wgmma", "lanes"):
                rate = rates(gpu, path, element)
                assert 0 < rate.matrix * gpu.multiprocessors * 1e6 <= max(peak_flops(gpu, element), gpu.fp32_flops)
                assert rate.exponentials * gpu.multiprocessors * 1e6 < gpu.exponentials_per_second
                assert rate.l2_bytes < rate.shared_bytes
                assert 0.2 < combined_doubt(rate.doubts) < 0.6


def test_hopper_pays_for_the_older_instruction_and_ampere_does_not() -> None:
    h200, a100 = _gpu("H200"), _gpu("A100")
    assert rates(h200, "mma", "fp16").matrix == pytest.approx(0.62 * rates(h200, "wgmma", "fp16").matrix)
    assert rates(a100, "mma", "fp16").matrix * a100.multiprocessors == pytest.approx(0.7 * a100.fp16_flops / 1e6)


def test_fp32_is_three_tf32_products_or_the_ordinary_lanes() -> None:
    a100, t4 = _gpu("A100"), _gpu("T4")
    assert rates(a100, "mma", "fp32").matrix == pytest.approx(rates(a100, "mma", "tf32").matrix / 3)
    assert rates(t4, "mma", "fp32").matrix == pytest.approx(rates(t4, "lanes", "fp32").matrix)
    assert peak_flops(_gpu("RTX 4090"), "fp32") == 82.6e12


def test_a_type_that_the_matrix_units_lack_is_refused_with_those_they_have() -> None:
    for element in ("bf16", "tf32"):
        with pytest.raises(InputError, match=f"T4.*sm_75.*{element}.*fp16, fp32"):
            check_element(_gpu("T4"), element)
    check_element(_gpu("T4"), "fp16")


def test_a_gpu_is_known_by_its_other_names() -> None:
    assert same_gpu(_gpu("H200"), "h200")
    assert not same_gpu(_gpu("H200"), "NVIDIA H100")


def test_every_assumption_has_a_source_and_a_doubt() -> None:
    constants = [value for value in vars(roofline).values() if isinstance(value, Constant)]
    assert len(constants) >= 12
    assert all(0 < c.doubt < 1 and len(c.source) > 5 for c in constants)


def _table(busy: float, chain: float, ends: float) -> TileTable:
    one = np.ones(1)
    return TileTable(16, 16, busy * one, chain * one, 0 * one, 0 * one, ends * one, 0.0, 0.0, False)


def test_company_hides_the_ends_until_a_unit_is_full() -> None:
    table = _table(busy=1.0, chain=2.0, ends=100.0)
    times = [float(table.times(np.array(0), np.array(16), resident)) for resident in (1, 2, 8, 16)]
    # 16 keys: 16 us of the busiest unit, 32 us one after the other, 100 us of ends.
    assert times == [132.0, 132.0, 8 * 16 + 100 / 8, 16 * 16 + 100 / 16]


@given(st.floats(0.001, 10), st.floats(0.001, 10), st.floats(0, 1000), st.integers(0, 4096), st.integers(1, 31))
def test_times_never_fall_with_company_or_work(
    busy: float, chain: float, ends: float, keys: int, resident: int
) -> None:
    table = _table(busy, chain, ends)
    here = table.times(np.array(0), np.array(keys), resident)
    assert table.times(np.array(0), np.array(keys), resident + 1) >= here
    assert table.times(np.array(0), np.array(keys + 1), resident) >= here


_RECORD = TileRecord(
    "attention",
    "NVIDIA H200",
    "sm_90",
    "fp16",
    "v",
    (64, 64),
    (64, 64),
    False,
    1,
    10.0,
    128,
    96,
    4096,
    *"---",
    1e9,
    "-",
)


def test_the_median_of_the_records_scales_and_its_spread_is_the_doubt() -> None:
    records = [replace(_RECORD, microseconds=us, registers=r) for us, r in ((10.0, 90), (11.0, 91), (12.0, 92))]
    known = calibration(records, np.array([10.0, 10.0, 10.0]))
    assert known is not None
    assert known.scale == pytest.approx(1.1)
    assert known.resources == Resources(92, 4096, 128, estimated=False)
    one = calibration(records[:1], np.array([10.0]))
    assert one is not None
    assert known.doubt < one.doubt < 0.2


def test_absurd_records_do_not_count() -> None:
    absurd = replace(_RECORD, microseconds=1e6)
    assert calibration([absurd], np.array([10.0])) is None
    known = calibration([_RECORD, absurd], np.array([10.0, 10.0]))
    assert known is not None
    assert known.scale == pytest.approx(1.0)
