"""The calls of csrc/cuda/recurrence.h for ctypes. It imports nothing else, so that tests read it by its path."""

import ctypes


class ForwardCall(ctypes.Structure):
    """``ForwardCall``."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("hidden", ctypes.c_int),
        ("constant", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("gates_x", "weight_hh", "h0", "c0", "addend")),
        ("addend_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("output", "h_n", "c_n", "gates", "cells")),
    ]


class BackwardCall(ctypes.Structure):
    """``BackwardCall``."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("hidden", ctypes.c_int),
        ("constant", ctypes.c_bool),
        ("grad_output", ctypes.c_void_p),
        ("grad_output_strides", ctypes.c_int * 3),
        *((name, ctypes.c_void_p) for name in ("grad_h_n", "grad_c_n", "weight_hh", "c0", "gates", "gates_x")),
        *((name, ctypes.c_void_p) for name in ("cells", "d_gates", "d_gates_x", "d_c0")),
    ]
