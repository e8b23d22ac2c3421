// SPDX-License-Identifier: MIT
// filters[ci,co,p][m*d/c] = w[ci, co, p + m*s/c]     0 elsewhere; one filter for each residue class p of the taps
//
// Idea: the filters that all share one transform of x: class p holds the taps of one output residue, d/c inputs apart.
//
// Thread mapping: 256 threads take 1024 consecutive samples of one filter.
// Block mapping, fastest first: part of the transform, row (ci, co, p) from first_row on; all in blockIdx.x.
// Preconditions: weight (C_in, C_out/g, K) contiguous.
#include "types.cuh"
#ifndef CONVT_W
#error "CONVT_W: element type of the weight"
#endif
#ifndef CONVT_T
#error "CONVT_T: element type of the transform's input"
#endif
typedef CONVT_W W;
typedef CONVT_T T;

extern "C" __global__ void __launch_bounds__(256)
fft_weights(const W* __restrict__ weight, T* __restrict__ filters, i64 first_row, int classes, int kernel_size,
            int tap_step, int input_step, int length, int parts) {
  int part = blockIdx.x % parts, row = blockIdx.x / parts;
  i64 pair = (first_row + row) / classes;
  int p = (int)((first_row + row) - pair * classes);
  const W* taps = weight + pair * kernel_size;
  T* target = filters + (i64)row * length;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int m = part * 1024 + k * 256 + threadIdx.x;
    if (m >= length) break;
    i64 j = m % input_step ? kernel_size : p + (i64)(m / input_step) * tap_step;
    T value = ct_zero<T>();
    if (j < kernel_size) ct_assign(value, ct_acc(ct_ld(taps + j)));
    ct_st(target + m, value);
  }
}
