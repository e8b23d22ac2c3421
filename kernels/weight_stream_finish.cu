// SPDX-License-Identifier: MIT
// y[n,co,t] = act(bias[co] + sum_{i*s + j*d = t + p_left} sum_p sums[g][p][n*L_in + i][co*K + j]) + beta * y[n,co,t]
//
// Idea: what weight_stream leaves is every tap times every input; an output gathers the few products that reach it,
// taps ascending and for each the parts ascending, so that its bits depend on no schedule.
//
// Thread mapping: one sample each. The taps of consecutive samples lie together, so a warp reads runs of sums.
// Block mapping: samples, rows after one another; all in blockIdx.x.
// Preconditions: 256 threads; |p_left|, l_out, the kernel's reach and the number of samples fit in an int.
#include "types.cuh"
#ifndef CONVT_Y
#error "CONVT_Y: element type of the result"
#endif
typedef CONVT_Y Y;
typedef ct_acc_t<Y> A;

extern "C" __global__ void __launch_bounds__(256, 2)
weight_stream_finish(const A* __restrict__ sums, const Y* __restrict__ bias, Y* __restrict__ out, i64 out_stride_n,
                     i64 out_stride_c, i64 pitch, int samples, int l_in, int l_out, int p_left, int c_out,
                     int c_out_group, int columns, int parts, int kernel_size, int stride, int dilation, int tap_step,
                     int inverse, int activation, double slope, double beta) {
  i64 sample = (i64)blockIdx.x * 256 + threadIdx.x;
  if (sample >= samples) return;
  int line = (int)sample / l_out, t = (int)sample % l_out, n = line / c_out, co = line % c_out;
  int group = co / c_out_group, position = t + p_left, common = stride / tap_step, input_step = dilation / common;
  A sum = ct_zero<A>();
  int residue = position % stride, first = (int)((u64)(residue / common) * inverse % tap_step);
  if (position >= 0 && residue % common == 0 && first < kernel_size) {
    int i = position / stride + (residue - first * dilation) / stride;  // exact
    int skipped = i >= l_in ? (i - l_in) / input_step + 1 : 0;          // taps that look beyond the last input
    i64 j = first + (i64)skipped * tap_step;
    i -= skipped * input_step;
    const A* mine = sums + ((i64)group * parts * columns + n * l_in) * pitch + (i64)(co % c_out_group) * kernel_size;
    for (; j < kernel_size && i >= 0; j += tap_step, i -= input_step) {
      const A* p = mine + i * pitch + j;
      A product = ct_ld(p);
#pragma unroll 8
      for (int part = 1; part < parts; ++part) product = ct_add(product, ct_ld(p + part * columns * pitch));
      sum = ct_add(sum, product);
    }
  }
  if (bias) sum = ct_add(sum, ct_acc(ct_ld(bias + co)));
  Y* target = out + n * out_stride_n + co * out_stride_c + t;
  ct_st(target, ct_cvt<Y>(ct_blend_with(ct_activate(sum, activation, slope), target, beta)));
}
