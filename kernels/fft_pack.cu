// SPDX-License-Identifier: MIT
// blocks[n,c,b][m] = x[n, c, first + b*step + m]     0 where that is outside [0, end)
//
// Idea: the input blocks of an overlap-save convolution, side by side as a batched transform wants them: block b starts
// `step` inputs after block b - 1 and overlaps it. Half types become float, real inputs of a complex transform get a
// zero imaginary part.
//
// Thread mapping: 256 threads take 1024 consecutive m of one block; consecutive threads, consecutive m.
// Block mapping, fastest first: part of the transform, row (n, c, b); all in blockIdx.x.
// Preconditions: time stride 1 in x.
#include "types.cuh"
#ifndef CONVT_X
#error "CONVT_X: element type of x"
#endif
#ifndef CONVT_T
#error "CONVT_T: element type of the transform's input"
#endif
typedef CONVT_X X;
typedef CONVT_T T;

extern "C" __global__ void __launch_bounds__(256)
fft_pack(const X* __restrict__ x, T* __restrict__ blocks, i64 x_stride_n, i64 x_stride_c, i64 end, i64 first, i64 step,
         int first_n, int first_channel, int channels, int count, int length, int parts) {
  int part = blockIdx.x % parts, row = blockIdx.x / parts;
  int b = row % count, channel = row / count % channels, n = row / count / channels;
  const X* source = x + (first_n + n) * x_stride_n + (first_channel + channel) * x_stride_c;
  i64 start = first + b * step;
  T* target = blocks + (i64)row * length;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int m = part * 1024 + k * 256 + threadIdx.x;
    if (m >= length) break;
    i64 i = start + m;
    T value = ct_zero<T>();
    if (i >= 0 && i < end) ct_assign(value, ct_acc(ct_ld(source + i)));
    ct_st(target + m, value);
  }
}
