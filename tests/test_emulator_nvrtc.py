# SPDX-License-Identifier: MIT
"""NVRTC without a GPU: resources of every prototype type, and clean errors. Skipped where no NVRTC is installed."""

import pytest

from cupy_convt.engines.source import flatten
from tests.emulator import nvrtc
from tests.emulator.prototypes import KERNELS

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="no libnvrtc with headers")
C_TYPES = ["float", "double", "float2", "double2", "__half", "__nv_bfloat16"]


@pytest.mark.parametrize("c_type", C_TYPES)
def test_every_element_type_compiles_without_spills(c_type: str):
    found = nvrtc.compile_kernel(flatten(KERNELS / "types.cu"), "types", {"CONVT_X": c_type}, "sm_80")
    assert found.entry == "types"
    assert found.arch == "sm_80"
    assert 0 < found.registers < 40
    assert (found.stack, found.spill_stores, found.spill_loads, found.shared) == (0, 0, 0, 0)
    assert found.cubin_bytes > 1000
    assert not found.warnings


def test_several_entries_templates_and_static_shared_memory():
    code = """template <int N> __global__ void t(float* y) {
      __shared__ float s[N];
      s[threadIdx.x] = y[threadIdx.x];
      __syncthreads();
      y[threadIdx.x] = s[N - 1 - threadIdx.x];
    }
    extern "C" __global__ void plain(float* y) { y[0] = 1.f; }"""
    found = nvrtc.compile_kernels(code, ["t<32>", "t<64>", "plain"], arch="sm_80")
    assert [found[e].shared for e in ("t<32>", "t<64>", "plain")] == [128, 256, 0]
    assert [found[e].barriers for e in ("t<32>", "plain")] == [1, 0]


def test_tensor_core_prototypes_compile():
    mma = "convt_mma16<__nv_bfloat16,64,64,32,32,3>"
    assert nvrtc.compile_kernel(flatten(KERNELS / "convt_mma.cu"), mma, arch="sm_80").registers < 128
    if "sm_90" in nvrtc.supported_architectures():
        wgmma = "convt_wgmma_tma<__nv_bfloat16,128,3>"
        found = nvrtc.compile_kernel(flatten(KERNELS / "convt_wgmma.cu"), wgmma, arch="sm_90a")
        assert found.registers <= 168
        assert found.spill_stores == 0


def test_spills_are_seen():
    code = """extern "C" __global__ void __launch_bounds__(1024, 2) k(float* y) {
      float a[64];
      for (int i = 0; i < 64; i++) a[i] = y[i * 1024 + threadIdx.x];
      __syncthreads();
      for (int i = 0; i < 64; i++) y[i * 1024 + threadIdx.x] = a[i] * a[(i * 7) % 64];
    }"""
    found = nvrtc.compile_kernel(code, "k", arch="sm_80")
    assert found.registers == 32
    assert found.spill_stores > 0
    assert found.spill_loads > 0


def test_errors_hold_the_log():
    with pytest.raises(nvrtc.NvrtcError, match="CONVT_X: the storage type"):
        nvrtc.compile_kernel(flatten(KERNELS / "types.cu"), "types")
    with pytest.raises(nvrtc.NvrtcError, match="expected entries"):
        nvrtc.compile_kernel('extern "C" __global__ void k() {}', "other")
    with pytest.raises(nvrtc.NvrtcError, match=r"(?i)arch"):
        nvrtc.compile_kernel('extern "C" __global__ void k() {}', "k", arch="sm_12345")
