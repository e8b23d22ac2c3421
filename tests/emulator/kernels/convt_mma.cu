// SPDX-License-Identifier: MIT
// Polyphase 1-D transposed convolution as implicit GEMM on mma.sync:  M=(co,r)  N=q  K=(j,ci)
//   y[n,co,q*s+r-p] = sum_{ci,j} wp[j][(co,r)][ci] * x[n,ci,q-j]
#include "mma.cuh"

// 16-bit types, m16n8k16.  A: cp.async ring of [BM][BK] tiles; B: x transposed to [pos][ci] so that the
// tap shift j is a row shift (ldmatrix rows stay 16-byte aligned for every j).
template <class T, int BM, int BN, int WM, int WN, int STAGES>
__global__ void __launch_bounds__((BM / WM) * (BN / WN) * 32)
convt_mma16(const T* __restrict__ x, const T* __restrict__ wp, const float* __restrict__ bias, T* __restrict__ y,
            int Cin, int L, int Cout, int s, int p, int Lout, int J, int Mp, int Cp) {
  constexpr int BK = 32, LD = BK + 8, NW = BN / WN, NT = (BM / WM) * NW * 32, MF = WM / 16, NF = WN / 8;
  static_assert(NF % 2 == 0 && BM % WM == 0 && BN % WN == 0, "tile");
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  T* As = reinterpret_cast<T*>(ct_smem);                       // [STAGES][BM][LD]
  T* Bs = As + STAGES * BM * LD;                               // [2][BN+J-1][LD]
  const int rowsB = BN + J - 1, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int q0 = blockIdx.x * BN, m0 = blockIdx.y * BM, n = blockIdx.z;
  const int wm = (warp / NW) * WM, wn = (warp % NW) * WN, nc = Cp / BK, steps = nc * J;

  auto loadA = [&](int step) {
    int c = step / J, j = step - c * J;
    const T* src = wp + ((i64)j * Mp + m0) * Cp + c * BK;
    T* dst = As + (step % STAGES) * BM * LD;
    for (int i = tid; i < BM * (BK / 8); i += NT) { int r = i / (BK / 8), v = i % (BK / 8); cp_async16(dst + r * LD + v * 8, src + (i64)r * Cp + v * 8, 16); }
  };
  auto loadB = [&](int c) {
    T* dst = Bs + (c & 1) * rowsB * LD;
    for (int i = tid; i < rowsB * (BK / 2); i += NT) {
      int pos = i % rowsB, cp2 = i / rowsB * 2, ci = c * BK + cp2, g = q0 - (J - 1) + pos;
      u32 v = 0;
      if (g >= 0 && g < L) {
        const T* xp = x + ((i64)n * Cin + ci) * L + g;
        if (ci < Cin) v = ct_bits16(xp[0]);
        if (ci + 1 < Cin) v |= (u32)ct_bits16(xp[L]) << 16;
      }
      *reinterpret_cast<u32*>(dst + pos * LD + cp2) = v;
    }
  };
  float acc[MF][NF][4];
#pragma unroll
  for (int a = 0; a < MF; a++)
#pragma unroll
    for (int b = 0; b < NF; b++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[a][b][e] = 0.f;

  loadB(0);
#pragma unroll
  for (int st = 0; st < STAGES - 1; st++) { if (st < steps) loadA(st); cp_async_commit(); }
  for (int step = 0; step < steps; step++) {
    int c = step / J, j = step - c * J;
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) loadA(step + STAGES - 1);
    cp_async_commit();
    if (j == 0 && c + 1 < nc) loadB(c + 1);
    const T* A = As + (step % STAGES) * BM * LD;
    const T* B = Bs + ((c & 1) * rowsB + (J - 1) - j) * LD;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      u32 af[MF][4], bf[NF / 2][4];
#pragma unroll
      for (int i = 0; i < MF; i++) ldmatrix_x4(af[i], A + (wm + i * 16 + (lane & 15)) * LD + k + (lane >> 4) * 8);
#pragma unroll
      for (int i = 0; i < NF / 2; i++) ldmatrix_x4(bf[i], B + (wn + i * 16 + (lane & 7) + ((lane >> 4) << 3)) * LD + k + ((lane >> 3) & 1) * 8);
#pragma unroll
      for (int i = 0; i < MF; i++)
#pragma unroll
        for (int h = 0; h < NF; h++) mma_m16n8k16<T>(acc[i][h], af[i], &bf[h / 2][(h & 1) * 2]);
    }
  }
  const int g = lane >> 2, t4 = lane & 3;
#pragma unroll
  for (int i = 0; i < MF; i++)
#pragma unroll
    for (int hi = 0; hi < 2; hi++) {
      int m = m0 + wm + i * 16 + g + hi * 8, co = m / s, r = m - co * s;
      if (co >= Cout) continue;
      float bv = bias ? bias[co] : 0.f;
#pragma unroll
      for (int h = 0; h < NF; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          i64 t = (i64)(q0 + wn + h * 8 + t4 * 2 + e) * s + r - p;
          if (t >= 0 && t < Lout) y[((i64)n * Cout + co) * Lout + t] = ct_cvt<T>(acc[i][h][hi * 2 + e] + bv);
        }
    }
}

// fp32 storage, tf32 m16n8k8.  A by ldmatrix (8x4 tf32 = 8x16 bytes), B [ci][pos] straight from x by 4-byte
// cp.async, any shift j; leading dimension = 8 mod 32 words makes the B fragment loads conflict free.
template <int BM, int BN, int WM, int WN, int STAGES>
__global__ void __launch_bounds__((BM / WM) * (BN / WN) * 32)
convt_tf32(const float* __restrict__ x, const float* __restrict__ wp, const float* __restrict__ bias, float* __restrict__ y,
           int Cin, int L, int Cout, int s, int p, int Lout, int J, int Mp, int Cp, int LDB) {
  constexpr int BK = 16, LD = BK + 4, NW = BN / WN, NT = (BM / WM) * NW * 32, MF = WM / 16, NF = WN / 8;
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  float* As = reinterpret_cast<float*>(ct_smem);               // [STAGES][BM][LD]
  float* Bs = As + STAGES * BM * LD;                           // [2][BK][LDB]
  const int rowB = BN + J - 1, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t4 = lane & 3;
  const int q0 = blockIdx.x * BN, m0 = blockIdx.y * BM, n = blockIdx.z;
  const int wm = (warp / NW) * WM, wn = (warp % NW) * WN, nc = Cp / BK, steps = nc * J;
  auto loadA = [&](int step) {
    int c = step / J, j = step - c * J;
    const float* src = wp + ((i64)j * Mp + m0) * Cp + c * BK;
    float* dst = As + (step % STAGES) * BM * LD;
    for (int i = tid; i < BM * (BK / 4); i += NT) { int r = i / (BK / 4), v = i % (BK / 4); cp_async16(dst + r * LD + v * 4, src + (i64)r * Cp + v * 4, 16); }
  };
  auto loadB = [&](int c) {
    float* dst = Bs + (c & 1) * BK * LDB;
    for (int i = tid; i < BK * rowB; i += NT) {
      int k = i / rowB, pos = i - k * rowB, ci = c * BK + k, gp = q0 - (J - 1) + pos;
      bool ok = ci < Cin && gp >= 0 && gp < L;
      cp_async4(dst + k * LDB + pos, ok ? x + ((i64)n * Cin + ci) * L + gp : x, ok ? 4 : 0);
    }
  };
  float acc[MF][NF][4];
#pragma unroll
  for (int a = 0; a < MF; a++)
#pragma unroll
    for (int b = 0; b < NF; b++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[a][b][e] = 0.f;
  loadB(0);
#pragma unroll
  for (int st = 0; st < STAGES - 1; st++) { if (st < steps) loadA(st); cp_async_commit(); }
  for (int step = 0; step < steps; step++) {
    int c = step / J, j = step - c * J;
    // the B chunk c+1 is committed with step c*J; with J < STAGES-1 steps per chunk it may still be in flight
    if (j == 0 && J < STAGES - 1) cp_async_wait<0>(); else cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) loadA(step + STAGES - 1);
    if (j == 0 && c + 1 < nc) loadB(c + 1);
    cp_async_commit();
    const float* A = As + (step % STAGES) * BM * LD;
    const float* B = Bs + (c & 1) * BK * LDB + (J - 1) - j;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
      u32 af[MF][4], bf[NF][2];
#pragma unroll
      for (int i = 0; i < MF; i++) {
        ldmatrix_x4(af[i], A + (wm + i * 16 + (lane & 15)) * LD + k + (lane >> 4) * 4);
#pragma unroll
        for (int e = 0; e < 4; e++) af[i][e] = to_tf32(__uint_as_float(af[i][e]));
      }
#pragma unroll
      for (int i = 0; i < NF; i++) {
        const float* b = B + (k + t4) * LDB + wn + i * 8 + g;
        bf[i][0] = to_tf32(b[0]); bf[i][1] = to_tf32(b[4 * LDB]);
      }
#pragma unroll
      for (int i = 0; i < MF; i++)
#pragma unroll
        for (int h = 0; h < NF; h++) mma_m16n8k8_tf32(acc[i][h], af[i], bf[h]);
    }
  }
#pragma unroll
  for (int i = 0; i < MF; i++)
#pragma unroll
    for (int hi = 0; hi < 2; hi++) {
      int m = m0 + wm + i * 16 + g + hi * 8, co = m / s, r = m - co * s;
      if (co >= Cout) continue;
      float bv = bias ? bias[co] : 0.f;
#pragma unroll
      for (int h = 0; h < NF; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          i64 t = (i64)(q0 + wn + h * 8 + t4 * 2 + e) * s + r - p;
          if (t >= 0 && t < Lout) y[((i64)n * Cout + co) * Lout + t] = acc[i][h][hi * 2 + e] + bv;
        }
    }
}
