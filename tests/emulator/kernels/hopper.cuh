// SPDX-License-Identifier: MIT
#pragma once
// sm_90a wrappers: mbarrier, bulk/tensor copies, wgmma.  Two bodies each, as in mma.cuh.
#include "mma.cuh"
struct __align__(64) TensorMap { u64 opaque[16]; };           // CUtensorMap without <cuda.h>

CT_DEV void mbar_init(u64* b, int count) {
#if CT_HOST
  emu::mbar_init(b, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(b)), "r"(count) : "memory");
#endif
}
CT_DEV void mbar_init_fence() {
#if CT_HOST
  emu::mbar_init_fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
CT_DEV void mbar_arrive(u64* b) {
#if CT_HOST
  emu::mbar_arrive(b, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(b)) : "memory");
#endif
}
CT_DEV void mbar_arrive_expect_tx(u64* b, int bytes) {
#if CT_HOST
  emu::mbar_arrive(b, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(b)), "r"(bytes) : "memory");
#endif
}
CT_DEV void mbar_wait(u64* b, int parity) {
#if CT_HOST
  emu::mbar_wait(b, parity);
#else
  asm volatile("{\n.reg .pred p;\nLOOP:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra LOOP;\nDONE:\n}"
               ::"r"(smem_u32(b)), "r"(parity) : "memory");
#endif
}
CT_DEV void fence_proxy_async() {
#if CT_HOST
  emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
CT_DEV void bulk_g2s(void* dst, const void* src, int bytes, u64* b) {
#if CT_HOST
  emu::bulk_g2s(dst, src, bytes, b);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(smem_u32(dst)), "l"(src), "r"(bytes), "r"(smem_u32(b)) : "memory");
#endif
}
CT_DEV void tma_load_3d(void* dst, const TensorMap* m, int c0, int c1, int c2, u64* b) {
#if CT_HOST
  int c[3] = {c0, c1, c2};
  emu::tma_load(dst, m, c, 3, b);
#else
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4}], [%5];"
               ::"r"(smem_u32(dst)), "l"(m), "r"(c0), "r"(c1), "r"(c2), "r"(smem_u32(b)) : "memory");
#endif
}
// swz: 0 none, 1 128B, 2 64B, 3 32B
CT_DEV u64 gmma_desc(const void* p, int lbo, int sbo, int swz) {
  return (u64)((smem_u32(p) & 0x3ffff) >> 4) | (u64)((lbo & 0x3ffff) >> 4) << 16 | (u64)((sbo & 0x3ffff) >> 4) << 32 | (u64)swz << 62;
}
CT_DEV void wgmma_fence() {
#if CT_HOST
  emu::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
CT_DEV void wgmma_commit() {
#if CT_HOST
  emu::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int N> CT_DEV void wgmma_wait() {
#if CT_HOST
  emu::wgmma_wait(N);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
template <int R> CT_DEV void reg_fence(float (&d)[R]) {         // keeps the compiler from moving accumulators
#if !CT_HOST
#pragma unroll
  for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
#include "wgmma_gen.cuh"
template <class T, int TA, int TB, int R> CT_DEV void wgmma(float (&d)[R], u64 da, u64 db, int scale_d) {
#if CT_HOST
  emu::wgmma(d, 2 * R, da, db, scale_d, ct_type<T>::id, TA, TB);
#else
  if constexpr (ct_type<T>::id == 1) wgmma_ptx_1<TA, TB>(d, da, db, scale_d); else wgmma_ptx_0<TA, TB>(d, da, db, scale_d);
#endif
}
