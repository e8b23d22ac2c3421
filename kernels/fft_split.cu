// SPDX-License-Identifier: MIT
// planes[0..2][f][j] = X.re + X.im, X.re, X.im   or of the weight   W.re, W.im - W.re, W.re + W.im
//
// Idea: with the real products t_k = planes_k(W) planes_k(X), X W = (t_0 - t_2) + i (t_0 + t_1): three real products of
// matrices in place of the four behind a complex one (D. E. Knuth, The Art of Computer Programming 2, section 4.6.4).
//
// Thread mapping: 256 threads take 1024 consecutive spectra elements (f, j), j fastest; consecutive threads, consecutive j.
// Block mapping: 1024 elements each, in blockIdx.x.
// Preconditions: columns <= pitch; fewer than 2^31 - 1024 elements.
#include "types.cuh"
#ifndef CONVT_T
#error "CONVT_T: complex element type, float2 or double2"
#endif
#ifndef CONVT_WEIGHT
#error "CONVT_WEIGHT: whether the planes are those of the weight"
#endif
typedef CONVT_T T;
typedef decltype(T().x) A;

extern "C" __global__ void __launch_bounds__(256)
fft_split(const T* __restrict__ spectra, A* __restrict__ planes, i64 plane, i64 pitch, int columns, int count) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int e = blockIdx.x * 1024 + k * 256 + threadIdx.x;
    if (e >= count) break;
    int f = e / columns;
    T value = ct_ld(spectra + e);
    A sum = value.x + value.y;
    A* target = planes + f * pitch + (e - f * columns);
    ct_st(target, CONVT_WEIGHT ? value.x : sum);
    ct_st(target + plane, CONVT_WEIGHT ? value.y - value.x : value.x);
    ct_st(target + 2 * plane, CONVT_WEIGHT ? sum : value.y);
  }
}
