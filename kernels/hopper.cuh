// SPDX-License-Identifier: MIT
#pragma once
// Wrappers of the instructions of sm_90a, one instruction each: mbarriers, bulk copies, products by warpgroups. Two
// bodies, as in mma.cuh; tests/emulator/conform.py compares them with models of their layouts.
#include "mma.cuh"

// ---- mbarriers -----------------------------------------------------------------------------------------------------
// A phase of a barrier is over when `count` arrivals and all bytes that they expect have come. Waiting for parity p
// returns as soon as a phase of that parity is over; of a new barrier, one of parity 1 is.
CT_DEV void mbar_init(u64* barrier, int count) {
#if CT_HOST
  emu::mbar_init(barrier, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_u32(barrier)), "r"(count) : "memory");
#endif
}
// makes initialised barriers visible to bulk copies
CT_DEV void mbar_init_fence() {
#if CT_HOST
  emu::mbar_init_fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
CT_DEV void mbar_arrive(u64* barrier) {
#if CT_HOST
  emu::mbar_arrive(barrier, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_u32(barrier)) : "memory");
#endif
}
CT_DEV void mbar_arrive_expect_tx(u64* barrier, int bytes) {
#if CT_HOST
  emu::mbar_arrive(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_u32(barrier)), "r"(bytes) : "memory");
#endif
}
#if !CT_HOST
CT_DEV bool mbar_try_wait(u64* barrier, int parity) {
  u32 over;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over) : "r"(smem_u32(barrier)), "r"(parity) : "memory");
  return over != 0;
}
#endif
CT_DEV void mbar_wait(u64* barrier, int parity) {
#if CT_HOST
  emu::mbar_wait(barrier, parity);
#else
  while (!mbar_try_wait(barrier, parity)) {
  }
#endif
}
// Barrier number `id` of `threads` threads of the block, whole warps; 0 is __syncthreads.
CT_DEV void bar_sync(int id, int threads) {
#if CT_HOST
  emu::named_barrier(id, threads, __builtin_LINE(), true);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- copies past the registers -------------------------------------------------------------------------------------
// Lets bulk copies and wgmma, which go past the usual path to shared memory, see what this thread has stored there.
CT_DEV void fence_proxy_async() {
#if CT_HOST
  emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// bytes, and both addresses, are multiples of 16; the barrier counts the bytes as they arrive
CT_DEV void bulk_g2s(void* dst, const void* src, int bytes, u64* barrier) {
#if CT_HOST
  emu::bulk_g2s(dst, src, bytes, barrier);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(smem_u32(dst)), "l"(src), "r"(bytes), "r"(smem_u32(barrier)) : "memory");
#endif
}

// ---- registers of a warpgroup --------------------------------------------------------------------------------------
// Moves registers from warpgroups that need few (reg_release) to those that need many (reg_request); N is a multiple
// of 8. All warps of the warpgroup run it.
template <int N> CT_DEV void reg_request() {
#if !CT_HOST && defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> CT_DEV void reg_release() {
#if !CT_HOST && defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// ---- products of a warpgroup ---------------------------------------------------------------------------------------
// Descriptor of an operand in shared memory. swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32. Without one, an operand
// with k contiguous consists of core matrices of 8 rows by 16 bytes, each 128 bytes in a row: `leading` bytes lie
// between two that are neighbours along k, `stride` between two along rows.
CT_DEV u64 gmma_desc(const void* p, int leading, int stride, int swizzle) {
  u64 start = (smem_u32(p) & 0x3ffff) >> 4;
  return start | (u64)((leading & 0x3ffff) >> 4) << 16 | (u64)((stride & 0x3ffff) >> 4) << 32 | (u64)swizzle << 62;
}
// before the first product of an accumulator, and whenever its registers were touched in between
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
// until at most N committed groups are unfinished
template <int N> CT_DEV void wgmma_wait() {
#if CT_HOST
  emu::wgmma_wait(N);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
// keeps the compiler from moving accumulators across
template <int R> CT_DEV void reg_fence(float (&d)[R]) {
#if !CT_HOST
#pragma unroll
  for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
#include "wgmma.cuh"
// d (+)= a b, 64 x 2R, k 32 bytes deep, float32 sums; the old d counts if scale_d is not 0. Thread t of the warpgroup
// holds rows t / 32 * 16 + t % 32 / 4 + 8 i, columns 8 j + 2 (t % 4) + e, in d[4 j + 2 i + e]. TA, TB: the operand has
// its rows contiguous, not k (16-bit types only). float operands are cut to TF32, not rounded.
template <class T, int TA, int TB, int R> CT_DEV void wgmma(float (&d)[R], u64 da, u64 db, int scale_d) {
  static_assert(sizeof(T) == 2 || (!TA && !TB), "TF32 operands have k contiguous");
#if CT_HOST
  emu::wgmma(d, 2 * R, da, db, scale_d, ct_type<T>::id, TA, TB);
#else
  if constexpr (ct_type<T>::id == 2) wgmma_tf32(d, da, db, scale_d);
  else if constexpr (ct_type<T>::id == 1) wgmma_bf16<TA, TB>(d, da, db, scale_d);
  else wgmma_f16<TA, TB>(d, da, db, scale_d);
#endif
}
