// SPDX-License-Identifier: MIT
// Reference kernels: direct (one output per thread) and weight packing.
#include "common.cuh"

// y[n,co,t] = bias[co] + sum_{ci,k: t+p = i*s+k} x[n,ci,i] w[ci,co,k]
template <class T>
__global__ void __launch_bounds__(256) convt_direct(const T* __restrict__ x, const T* __restrict__ w, const float* __restrict__ bias,
                                                    T* __restrict__ y, int Cin, int L, int Cout, int K, int s, int p, int Lout) {
  int t = blockIdx.x * blockDim.x + threadIdx.x, co = blockIdx.y, n = blockIdx.z;
  if (t >= Lout) return;
  float acc = bias ? __ldg(bias + co) : 0.f;
  int q = (t + p) / s, r = (t + p) - q * s;
  for (int ci = 0; ci < Cin; ci++) {
    const T* xr = x + ((i64)n * Cin + ci) * L;
    const T* wr = w + ((i64)ci * Cout + co) * K;
    for (int j = 0, k = r; k < K; j++, k += s) {
      int i = q - j;
      if (i >= 0 && i < L) acc = fmaf(ct_f(xr[i]), ct_f(wr[k]), acc);
    }
  }
  y[((i64)n * Cout + co) * Lout + t] = ct_cvt<T>(acc);
}

// w[Cin][Cout][K] -> wp[J][Mp][Cp], m = co*s + r, wp[j][m][ci] = w[ci][co][r + s*j] (0 outside)
template <class T>
__global__ void __launch_bounds__(256) convt_pack_w(const T* __restrict__ w, T* __restrict__ wp, int Cin, int Cout, int K, int s, int J, int Mp, int Cp) {
  i64 tot = (i64)J * Mp * Cp;
  for (i64 e = blockIdx.x * (i64)blockDim.x + threadIdx.x; e < tot; e += (i64)gridDim.x * blockDim.x) {
    int ci = (int)(e % Cp), m = (int)(e / Cp % Mp), j = (int)(e / Cp / Mp), co = m / s, k = m % s + s * j;
    T v = ct_cvt<T>(0.f);
    if (ci < Cin && co < Cout && k < K) v = w[((i64)ci * Cout + co) * K + k];
    wp[e] = v;
  }
}

// float4 + dynamic shared memory: whole padded input row tile in shared memory, 4 outputs of one phase per thread
extern "C" __global__ void __launch_bounds__(128) convt_smem_f32(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                                                 int Cin, int L, int Cout, int K, int s, int p, int Lout, int TQ) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  float* xs = reinterpret_cast<float*>(ct_smem);             // [J-1 + TQ]
  int J = (K + s - 1) / s, q0 = blockIdx.x * TQ, co = blockIdx.y, n = blockIdx.z, W = J - 1 + TQ;
  int m = threadIdx.x, r = m % s, qb = m / s * 4;
  float a[4] = {0.f, 0.f, 0.f, 0.f};
  for (int ci = 0; ci < Cin; ci++) {
    const float* xr = x + ((i64)n * Cin + ci) * L;
    for (int i = threadIdx.x; i < W; i += blockDim.x) { int g = q0 - (J - 1) + i; xs[i] = (g >= 0 && g < L) ? xr[g] : 0.f; }
    __syncthreads();
    if (qb < TQ)
      for (int j = 0; j < J; j++) {
        int k = r + s * j;
        float wv = k < K ? w[((i64)ci * Cout + co) * K + k] : 0.f;
#pragma unroll
        for (int u = 0; u < 4; u++) a[u] = fmaf(wv, xs[qb + u + (J - 1) - j], a[u]);
      }
    __syncthreads();
  }
  if (qb < TQ)
#pragma unroll
    for (int u = 0; u < 4; u++) { i64 t = (i64)(q0 + qb + u) * s + r - p; if (t >= 0 && t < Lout) y[((i64)n * Cout + co) * Lout + t] = a[u]; }
}
