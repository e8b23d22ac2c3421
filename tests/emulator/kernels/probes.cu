// SPDX-License-Identifier: MIT
// Execution-model features, each with a host-checkable result.
#include "common.cuh"
template <class T, int N> __global__ void __launch_bounds__(256)
    block_reduce(const T* __restrict__ x, T* __restrict__ y, int n) {
  __shared__ T part[32];  // static shared memory in a template
  T v = ct_cvt<T>(0.f);
  float acc = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) acc += ct_f(__ldg(x + i));
  for (int o = 16; o; o >>= 1) acc += __shfl_xor_sync(0xffffffffu, acc, o);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = ct_cvt<T>(acc);
  __syncthreads();
  if (threadIdx.x < 32) {
    acc = threadIdx.x < blockDim.x / 32 ? ct_f(part[threadIdx.x]) : 0.f;
    for (int o = 16; o; o >>= 1) acc += __shfl_down_sync(0xffffffffu, acc, o);
    if (threadIdx.x == 0) y[blockIdx.x] = ct_cvt<T>(acc);
  }
  (void)v;
}
extern "C" __global__ void hist(const int* x, int* h, unsigned* ballots, int n, int nb) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int* s = (int*)ct_smem;
  for (int i = threadIdx.x; i < nb; i += blockDim.x) s[i] = 0;
  __syncthreads();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&s[x[i]], 1);
  unsigned b = __ballot_sync(0xffffffffu, i < n && (x[i] & 1));
  if ((threadIdx.x & 31) == 0) ballots[i >> 5] = b;
  __syncthreads();
  for (int k = threadIdx.x; k < nb; k += blockDim.x)
    if (s[k]) atomicAdd(&h[k], s[k]);
}
extern "C" __global__ void vec4(const float4* __restrict__ x, float4* __restrict__ y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    float4 v = x[i];
    v.x *= 2;
    v.y += 1;
    v.z = fmaxf(v.z, 0.f);
    v.w = v.x;
    y[i] = v;
  }
}
extern "C" __global__ void half2k(const __half2* x, __half2* y, const __nv_bfloat162* a, __nv_bfloat162* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    y[i] = __hfma2(x[i], x[i], __floats2half2_rn(1.f, 2.f));
    b[i] = __hmul2(a[i], a[i]);
  }
}
extern "C" __global__ void transpose(const float* x, float* y, int n) {  // 2-D block, padded 2-D static tile
  static __shared__ float t[32][33];
  int bx = blockIdx.x * 32, by = blockIdx.y * 32;
  for (int k = threadIdx.y; k < 32; k += blockDim.y) t[k][threadIdx.x] = x[(by + k) * n + bx + threadIdx.x];
  __syncthreads();
  for (int k = threadIdx.y; k < 32; k += blockDim.y) y[(bx + k) * n + by + threadIdx.x] = t[threadIdx.x][k];
}
extern "C" __global__ void warp_scan(const int* x, int* y, int n) {  // partial masks, __syncwarp, warp-private smem
  static __shared__ int s[8][32];
  int w = threadIdx.x >> 5, l = threadIdx.x & 31, v = x[threadIdx.x];
  unsigned m = l < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int o = 1; o < 16; o <<= 1) {
    int u = __shfl_up_sync(m, v, o, 16);
    if ((l & 15) >= o) v += u;
  }
  s[w][l] = v;
  __syncwarp();
  int add = l >= 16 ? s[w][15] : 0;
  int z = __syncthreads_count(l == 0) - (int)blockDim.x / 32;
#if CT_HOST || __CUDA_ARCH__ >= 800
  z += __reduce_add_sync(0xffffffffu, 1) - 32;
#endif
  y[threadIdx.x] = v + add + z;
}
