"""A measured tile time as tests need one."""

from __future__ import annotations

from onnxopt.target.tile_records import TileRecord

RECORD = TileRecord(
    kind="attention",
    gpu="NVIDIA H200",
    architecture="sm_90",
    element="fp16",
    variant="mma 64x64 w4 s2",
    widths=(64, 64),
    extent=(64, 640),
    masked=True,
    resident=3,
    microseconds=12.5,
    threads=128,
    registers=168,
    shared_bytes=41984,
    driver="580.1",
    nvrtc="13.0.88",
    source="0123456789abcdef",
    clock_hz=1.83e9,
    date="2026-11-20",
)
