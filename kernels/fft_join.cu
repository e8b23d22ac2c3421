// SPDX-License-Identifier: MIT
// spectra[e] = (t_0[e] - t_2[e]) + i (t_0[e] + t_1[e])
//
// Idea: the three real products of planes that fft_split made, put together as the complex product.
//
// Thread mapping: 256 threads take 1024 consecutive elements; consecutive threads, consecutive elements.
// Block mapping: 1024 elements each, in blockIdx.x.
// Preconditions: fewer than 2^31 - 1024 elements.
#include "types.cuh"
#ifndef CONVT_T
#error "CONVT_T: complex element type, float2 or double2"
#endif
typedef CONVT_T T;
typedef decltype(T().x) A;

extern "C" __global__ void __launch_bounds__(256)
fft_join(const A* __restrict__ planes, T* __restrict__ spectra, i64 plane, int count) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int e = blockIdx.x * 1024 + k * 256 + threadIdx.x;
    if (e >= count) break;
    A first = ct_ld(planes + e);
    T value;
    value.x = first - ct_ld(planes + 2 * plane + e);
    value.y = first + ct_ld(planes + plane + e);
    ct_st(spectra + e, value);
  }
}
