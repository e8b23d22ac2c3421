// SPDX-License-Identifier: MIT
// Small planted bugs that are not natural mutations of the real kernels.
#include "mma.cuh"
extern "C" __global__ void vec_misaligned(const float* x, float* y, int n, int off) {
  int i = threadIdx.x;
  if (i < n) {
    float4 v = *(const float4*)(x + off + 4 * i);
    y[4 * i] = v.x;
    y[4 * i + 1] = v.y;
    y[4 * i + 2] = v.z;
    y[4 * i + 3] = v.w;
  }
}
extern "C" __global__ void warp_smem_nosync(const int* x, int* y) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  y[t] = s[t ^ 1];
}
extern "C" __global__ void static_oob(const int* x, int* y, int k) {
  __shared__ int s[2][32];
  int t = threadIdx.x;
  s[0][t] = x[t];
  s[1][t] = -x[t];
  __syncthreads();
  y[t] = s[0][t + k];
}
extern "C" __global__ void local_oob(const float* x, float* y, int k) {
  float a[4];
  for (int i = 0; i < 4; i++) a[i] = x[i];
  y[threadIdx.x] = a[k];
}
extern "C" __global__ void early_exit(const int* x, int* y, int n) {
  __shared__ int s[64];
  int t = threadIdx.x;
  if (t >= n) return;
  s[t] = x[t];
  __syncthreads();
  y[t] = s[n - 1 - t];
}
extern "C" __global__ void barrier_in_branch(const int* x, int* y) {
  __shared__ int s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  if (t & 1) __syncthreads();
  y[t] = s[63 - t];
  __syncthreads();
}
extern "C" __global__ void shfl_inactive(const int* x, int* y) {
  int t = threadIdx.x, v = x[t];
  if (t < 16) v += __shfl_down_sync(0x0000ffffu, v, 8);
  y[t] = v;
}
extern "C" __global__ void shfl_fullmask_in_branch(const int* x, int* y) {
  int t = threadIdx.x, v = x[t];
  if (t < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
  y[t] = v;
}
extern "C" __global__ void hist_noatomic(const int* x, int* h, int n) {
  int t = threadIdx.x;
  if (t < n) h[x[t]] += 1;
}
extern "C" __global__ void splitk_noatomic(const float* x, float* y, int n) {  // gridDim.y partial sums into one y
  int t = threadIdx.x;
  y[blockIdx.x * blockDim.x + t] += x[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + t];
}
extern "C" __global__ void rmw_output(const float* x, float* y, int n) {
  int t = threadIdx.x;
  if (t < n) y[t] += x[t];
}
extern "C" __global__ void int_overflow(const float* x, float* y, int N, int C, int L) {  // int index arithmetic
  int n = blockIdx.z, c = blockIdx.y, t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t < L) y[(n * C + c) * L + t] = x[(n * C + c) * L + t];
}
extern "C" __global__ void index64_ok(const float* x, float* y, int N, int C, int L) {
  int n = blockIdx.z, c = blockIdx.y, t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t < L) {
    i64 i = ((i64)n * C + c) * L + t;
    y[i] = x[i] + 1.f;
  }
}
extern "C" __global__ void shift_bug(const int* x, int* y, int s) { y[threadIdx.x] = x[threadIdx.x] << s; }
extern "C" __global__ void div_zero(const int* x, int* y, int s) { y[threadIdx.x] = x[threadIdx.x] / s; }
extern "C" __global__ void write_const(const float* x, float* y) {
  ((float*)x)[threadIdx.x] = 1.f;
  y[threadIdx.x] = 0.f;
}
extern "C" __global__ void ldm_misaligned(const u16* x, u32* y) {
  __shared__ __align__(16) u16 s[32 * 20];
  int t = threadIdx.x;
  for (int i = t; i < 640; i += 32) s[i] = x[i];
  __syncthreads();
  u32 r[4];
  ldmatrix_x4(r, s + t * 20);
  for (int i = 0; i < 4; i++) y[t * 4 + i] = r[i];
}
extern "C" __global__ void stale_stack(const float* x, float* y, int n) {
  float a[8];
  for (int i = 0; i < n; i++) a[i] = x[i];
  y[threadIdx.x] = a[threadIdx.x & 7];
}
extern "C" __global__ void spin(volatile int* f, int* y) {
  while (*f == 0) {}
  y[0] = 1;
}
