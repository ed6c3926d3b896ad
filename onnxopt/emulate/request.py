"""The structures that the runtime's C interface takes; their C++ forms are in runtime/run.h and runtime/state.h."""

from __future__ import annotations

import ctypes
from typing import ClassVar


class ArgumentRecord(ctypes.Structure):
    """An array that the kernel gets a pointer to."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("writes", ctypes.c_void_p),
        ("writable", ctypes.c_uint64),
    ]


class RequestRecord(ctypes.Structure):
    """A launch."""

    _fields_: ClassVar = [
        ("grid", ctypes.c_uint64 * 3),
        ("threads", ctypes.c_uint64 * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("order", ctypes.c_uint64),
        ("steps", ctypes.c_int64),
        ("argument_count", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ArgumentRecord)),
        ("parameter_bytes", ctypes.c_uint64),
        ("parameters", ctypes.c_void_p),
        ("stack_bytes", ctypes.c_uint64),
        ("counters", ctypes.POINTER(ctypes.c_uint64)),
    ]


class FailureRecord(ctypes.Structure):
    """What went wrong."""

    _fields_: ClassVar = [
        ("happened", ctypes.c_uint32),
        ("line", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_int32 * 3),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint32),
        ("message", ctypes.c_char * 2048),
    ]
