// SPDX-License-Identifier: MIT
// Access patterns whose sectors and wavefronts can be counted by hand: tests/test_emulator_counters.py.
#include "mma.cuh"

extern "C" __global__ void strided_load(const float* x, float* y, int stride, int offset) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * stride + offset];
}
extern "C" __global__ void strided_store(const float* x, float* y, int stride, int offset) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i * stride + offset] = x[i];
}
extern "C" __global__ void vector_copy(const float4* x, float4* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  ct_st(y + i, ct_ld(x + i));
}
extern "C" __global__ void wide_copy(const CT_WIDE* x, CT_WIDE* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  ct_st(y + i, ct_ld(x + i));
}
// unequal trip counts: lane l makes ceil((n - l) / 32) turns
extern "C" __global__ void ragged_loop(const float* x, float* y, int n) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < n; i += 32) sum += x[i];
  y[threadIdx.x] = sum;
}
// a guard that differs between lanes and turns: turn j is for lanes >= 8 j
extern "C" __global__ void guarded_loop(const float* x, float* y, int turns) {
  float sum = 0.f;
  for (int j = 0; j < turns; j++)
    if ((int)threadIdx.x >= 8 * j) sum += x[j * 32 + threadIdx.x];
  y[threadIdx.x] = sum;
}
// both sides of a branch, then together again
extern "C" __global__ void branches(const float* x, const float* w, float* y) {
  float v = 0.f;
  if (threadIdx.x & 1) v = x[threadIdx.x] * 2.f; else v = w[threadIdx.x] + 1.f;
  y[threadIdx.x] = v;
}
// lanes leave an inner loop at different turns, an outer loop goes on
extern "C" __global__ void nested_break(const float* x, float* y, int outer) {
  float sum = 0.f;
  for (int o = 0; o < outer; o++) {
    for (int i = 0; i < 4; i++) {
      if (i > (int)threadIdx.x / 8) break;
      sum += x[(o * 4 + i) * 32 + threadIdx.x];
    }
    sum += x[o];
  }
  y[threadIdx.x] = sum;
}
extern "C" __global__ void early_exit(const float* x, float* y, int n) {
  int i = threadIdx.x;
  y[i + 32] = x[i];
  if (i >= n) return;
  y[i] = x[0];
}
extern "C" __global__ void shared_stride(float* y, int stride) {
  __shared__ float s[32 * 33];
  for (int i = threadIdx.x; i < 32 * 33; i += 32) s[i] = (float)i;
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x * stride];
}
extern "C" __global__ void shared_wide(CT_WIDE* y, int stride) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  CT_WIDE* s = reinterpret_cast<CT_WIDE*>(ct_smem);
  ct_st(s + threadIdx.x, y[threadIdx.x]);
  __syncwarp();
  ct_st(y + threadIdx.x, ct_ld(s + (threadIdx.x * stride) % 32));
}
extern "C" __global__ void shared_half(__half* y, int stride) {
  __shared__ __half s[32 * 64];
  for (int i = threadIdx.x; i < 32 * 64; i += 32) s[i] = __float2half_rn((float)i);
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x * stride];
}
extern "C" __global__ void async_copy(const float* x, float* y) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  float* s = reinterpret_cast<float*>(ct_smem);
  cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4, 16);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = s[threadIdx.x * 4];
}
extern "C" __global__ void fragments(const u16* x, u32* y, int row) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  u16* s = reinterpret_cast<u16*>(ct_smem);
  for (int i = threadIdx.x; i < 32 * row; i += 32) s[i] = x[i];
  __syncwarp();
  u32 r[4];
  ldmatrix_x4(r, s + threadIdx.x * row);
  for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = r[i];
}
extern "C" __global__ void twice(const float* x, float* y) {
  for (int k = 0; k < 2; k++) {
    y[blockIdx.x * 32 + threadIdx.x] = x[threadIdx.x] + (float)k;
    __syncthreads();
  }
}
