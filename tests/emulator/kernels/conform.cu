// SPDX-License-Identifier: MIT
// Conformance kernels: one instruction wrapper each, every register written out.  Run in the emulator by CI, and on a
// real GPU (same source, RawModule) whenever one is at hand; the two dumps must be equal (integers-valued operands make
// the sums exact).
#include "tma.cuh"
template <class T> __global__ void c_mma(const u32* a, const u32* b, float* d) {
  int l = threadIdx.x;
  u32 ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; i++) {
    ra[i] = a[l * 4 + i];
    rd[i] = d[l * 4 + i];
  }
  for (int i = 0; i < 2; i++) rb[i] = b[l * 2 + i];
  if constexpr (ct_type<T>::id == 2) mma_m16n8k8_tf32(rd, ra, rb);
  else mma_m16n8k16<T>(rd, ra, rb);
  for (int i = 0; i < 4; i++) d[l * 4 + i] = rd[i];
}
template <int TR>
__global__ void c_ldm(const u32* x, const int* row, u32* y) {  // 1024 words of smem, arbitrary row addresses
  __shared__ __align__(16) u32 s[1024];
  int l = threadIdx.x;
  for (int i = l; i < 1024; i += 32) s[i] = x[i];
  __syncthreads();
  u32 r[4];
  if (TR) ldmatrix_x4_trans(r, s + row[l] * 4);
  else ldmatrix_x4(r, s + row[l] * 4);
  for (int i = 0; i < 4; i++) y[l * 4 + i] = r[i];
}
extern "C" __global__ void c_tf32(const float* x, u32* y) { y[threadIdx.x] = to_tf32(x[threadIdx.x]); }
#if CT_HOST || __CUDA_ARCH__ >= 900
// raw 32 KiB smem image, arbitrary descriptors (relative to the image start)
template <class T, int N, int TA, int TB> __global__ void __launch_bounds__(128)
    c_wgmma(const u32* img, u64 da, u64 db, float* out) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  u32* s = reinterpret_cast<u32*>(ct_smem);
  for (int i = threadIdx.x; i < 8192; i += 128) s[i] = img[i];
  fence_proxy_async();
  __syncthreads();
  u64 base = (smem_u32(ct_smem) & 0x3ffff) >> 4;
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) d[i] = 0.f;
  reg_fence(d);
  wgmma_fence();
  wgmma<T, TA, TB>(d, da + base, db + base, 1);
  wgmma_commit();
  reg_fence(d);
  wgmma_wait<0>();
  reg_fence(d);
  for (int i = 0; i < N / 2; i++) out[threadIdx.x * (N / 2) + i] = d[i];
}
extern "C" __global__ void c_bulk(const u32* x, int first, int to, int count, u32* out) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  u32* s = reinterpret_cast<u32*>(ct_smem);
  u64* bar = reinterpret_cast<u64*>(ct_smem + 8192);
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) s[i] = 0;
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_init_fence();
  }
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_arrive_expect_tx(bar, count * 4);
    bulk_g2s(s + to, x + first, count * 4, bar);
  }
  mbar_wait(bar, 0);
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) out[i] = s[i];
}
extern "C" __global__ void c_tma(const __grid_constant__ TensorMap m, int c0, int c1, int c2,
                                 u32* out) {  // 64x64x1 box of 16-bit
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  u64* bar = reinterpret_cast<u64*>(ct_smem + 8192);
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_arrive_expect_tx(bar, 8192);
    tma_load_3d(ct_smem, &m, c0, c1, c2, bar);
  }
  mbar_wait(bar, 0);
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) out[i] = reinterpret_cast<u32*>(ct_smem)[i];
}
#endif
