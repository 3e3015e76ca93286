"""Machine code taken apart: loops, families and multiply-adds, on a piece written by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from sam_ds_kernels.machine_code import families, macs, parse

CODE = """
.text.forward:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MOV R2, 0x1 ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0030*/              @!P0 HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
        /*0060*/              @!P2 BRA `(.L_x_3) ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*0080*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
        /*00b0*/                   NOP;
"""


def test_loops_that_hold_no_other() -> None:
    """The outer loop, the jump forward and the guard at the end are none."""
    code = parse(CODE)
    assert code.loops == (range(2, 6),)
    (loop,) = code.loop_names()
    assert families(loop) == {"HMMA": 2, "MUFU": 1, "BRA": 1}
    assert families(code.once_names())["BRA"] == 3


def test_multiply_adds() -> None:
    code = parse(CODE)
    assert macs(code.loop_names()[0]) == 16 * 8 * 16 + 16 * 8 * 8
    assert macs(code.once_names()) == 64 * 32 * 16 // 4  # of the four warps that share it
