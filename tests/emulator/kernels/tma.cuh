// SPDX-License-Identifier: MIT
#pragma once
// Tensor copies, which no kernel of the library uses: the emulator's prototypes do.
#include "hopper.cuh"
struct __align__(64) TensorMap { u64 opaque[16]; };           // CUtensorMap without <cuda.h>

CT_DEV void tma_load_3d(void* dst, const TensorMap* m, int c0, int c1, int c2, u64* b) {
#if CT_HOST
  int c[3] = {c0, c1, c2};
  emu::tma_load(dst, m, c, 3, b);
#else
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4}], [%5];"
               ::"r"(smem_u32(dst)), "l"(m), "r"(c0), "r"(c1), "r"(c2), "r"(smem_u32(b)) : "memory");
#endif
}
