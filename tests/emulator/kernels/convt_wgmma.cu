// SPDX-License-Identifier: MIT
// sm_90a prototypes of the same implicit GEMM  M=(co,r)  N=q  K=(j,ci).
#include "tma.cuh"

// 1. TMA + mbarrier pipeline, warp specialised.  B (x) is MN-major straight from NCL memory: the tap shift j is the
//    TMA start coordinate q0-j, out-of-range columns arrive as zeros.  Needs L*sizeof(T) % 16 == 0.
template <class T, int BN, int STAGES>
__global__ void __launch_bounds__(160, 1)
convt_wgmma_tma(const __grid_constant__ TensorMap mw, const __grid_constant__ TensorMap mx, const float* __restrict__ bias, T* __restrict__ y,
                int Cout, int s, int p, int Lout, int J, int nc) {
  constexpr int ABYTES = 64 * 128, BBYTES = BN * 128, SBYTES = ABYTES + BBYTES;
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  u64* full = reinterpret_cast<u64*>(ct_smem + STAGES * SBYTES);
  u64* empty = full + STAGES;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, q0 = blockIdx.x * BN, m0 = blockIdx.y * 64, n = blockIdx.z, steps = nc * J;
  if (tid == 0) {
    for (int i = 0; i < STAGES; i++) { mbar_init(full + i, 1); mbar_init(empty + i, 4); }
    mbar_init_fence();
  }
  __syncthreads();
  if (warp == 4) {                                             // producer
    if (lane == 0)
      for (int st = 0; st < steps; st++) {
        int b = st % STAGES, c = st / J, j = st - c * J;
        if (st >= STAGES) mbar_wait(empty + b, ((st / STAGES) - 1) & 1);
        unsigned char* base = ct_smem + b * SBYTES;
        mbar_arrive_expect_tx(full + b, SBYTES);
        tma_load_3d(base, &mw, c * 64, m0, j, full + b);
#pragma unroll
        for (int h = 0; h < BN / 64; h++) tma_load_3d(base + ABYTES + h * 8192, &mx, q0 + h * 64 - j, c * 64, n, full + b);
      }
    return;
  }
  float acc[BN / 2];
#pragma unroll
  for (int i = 0; i < BN / 2; i++) acc[i] = 0.f;
  for (int st = 0; st < steps; st++) {
    int b = st % STAGES;
    mbar_wait(full + b, (st / STAGES) & 1);
    const unsigned char* base = ct_smem + b * SBYTES;
    reg_fence(acc); wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
      wgmma<T, 0, 1>(acc, gmma_desc(base + k * 32, 16, 1024, 1), gmma_desc(base + ABYTES + k * 2048, 8192, 1024, 1), 1);
    wgmma_commit(); reg_fence(acc);
    wgmma_wait<1>();
    if (st > 0 && lane == 0) mbar_arrive(empty + (st - 1) % STAGES);
  }
  wgmma_wait<0>(); reg_fence(acc);
  const int g = lane >> 2, t4 = lane & 3;
#pragma unroll
  for (int hi = 0; hi < 2; hi++) {
    int m = m0 + warp * 16 + hi * 8 + g, co = m / s, r = m - co * s;
    if (co < Cout) {
      float bv = bias ? bias[co] : 0.f;
#pragma unroll
      for (int h = 0; h < BN / 8; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          i64 t = (i64)(q0 + h * 8 + t4 * 2 + e) * s + r - p;
          if (t >= 0 && t < Lout) y[((i64)n * Cout + co) * Lout + t] = ct_cvt<T>(acc[h * 4 + hi * 2 + e] + bv);
        }
    }
  }
}

// 2. Shared memory written by ordinary stores / cp.async in the canonical layouts (both operands K-major); the tap
//    shift is a row shift of the descriptor's start address.  SWZ 1: 128B swizzle, SWZ 0: no swizzle.
template <class T, int BN, int SWZ>
__global__ void __launch_bounds__(128)
convt_wgmma_manual(const T* __restrict__ x, const T* __restrict__ wp, const float* __restrict__ bias, T* __restrict__ y,
                   int Cin, int L, int Cout, int s, int p, int Lout, int J, int Mp, int Cp) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, q0 = blockIdx.x * BN, m0 = blockIdx.y * 64, n = blockIdx.z;
  const int rows = (BN + J - 1 + 7) & ~7;
  unsigned char *As = ct_smem, *Bs = ct_smem + 8192;
  auto at = [&](int row, int kbyte, int nrows) {              // byte offset of (row, k) in a K-major tile of 64 k
    return SWZ ? row * 128 + (((kbyte >> 4) ^ (row & 7)) << 4) + (kbyte & 15) : (kbyte >> 4) * (nrows * 16) + row * 16 + (kbyte & 15);
  };
  float acc[BN / 2];
#pragma unroll
  for (int i = 0; i < BN / 2; i++) acc[i] = 0.f;
  for (int c = 0; c < Cp / 64; c++) {
    for (int i = tid; i < rows * 32; i += 128) {
      int pos = i % rows, k2 = i / rows * 2, ci = c * 64 + k2, g = q0 - (J - 1) + pos;
      u32 v = 0;
      if (g >= 0 && g < L && pos < BN + J - 1) {
        const T* xp = x + ((i64)n * Cin + ci) * L + g;
        if (ci < Cin) v = ct_bits16(xp[0]);
        if (ci + 1 < Cin) v |= (u32)ct_bits16(xp[L]) << 16;
      }
      *reinterpret_cast<u32*>(Bs + at(pos, k2 * 2, rows)) = v;
    }
    for (int j = 0; j < J; j++) {
      const T* src = wp + ((i64)j * Mp + m0) * Cp + c * 64;
      for (int i = tid; i < 64 * 8; i += 128) cp_async16(As + at(i >> 3, (i & 7) * 16, 64), src + (i64)(i >> 3) * Cp + (i & 7) * 8, 16);
      cp_async_commit();
      cp_async_wait<0>();
      fence_proxy_async();
      __syncthreads();
      int sh = J - 1 - j;
      reg_fence(acc); wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) {
        u64 da = SWZ ? gmma_desc(As + k * 32, 16, 1024, 1) : gmma_desc(As + k * 2048, 1024, 128, 0);
        u64 db = SWZ ? gmma_desc(Bs + sh * 128 + k * 32, 16, 1024, 1) : gmma_desc(Bs + sh * 16 + k * 2 * rows * 16, rows * 16, 128, 0);
        wgmma<T, 0, 0>(acc, da, db, 1);
      }
      wgmma_commit(); reg_fence(acc);
      wgmma_wait<0>(); reg_fence(acc);
      __syncthreads();
    }
  }
  const int g = lane >> 2, t4 = lane & 3;
#pragma unroll
  for (int hi = 0; hi < 2; hi++) {
    int m = m0 + warp * 16 + hi * 8 + g, co = m / s, r = m - co * s;
    if (co < Cout) {
      float bv = bias ? bias[co] : 0.f;
#pragma unroll
      for (int h = 0; h < BN / 8; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          i64 t = (i64)(q0 + h * 8 + t4 * 2 + e) * s + r - p;
          if (t >= 0 && t < Lout) y[((i64)n * Cout + co) * Lout + t] = ct_cvt<T>(acc[h * 4 + hi * 2 + e] + bv);
        }
    }
  }
}
