// SPDX-License-Identifier: MIT
// y[n,co,t] = act(bias[co] + sum_{ci, j, i : i*s + j*d = t + p_left} x[n,ci,i] * w[ci,co',j]) + beta * y[n,co,t]
//
// Any geometry, any dtype: the oracle of the other kernels. Only the taps that meet an input are visited: j runs
// over one residue class modulo s/c (c = gcd(s, d)), and i steps back by d/c with every tap.
// Order of the sum: ci ascending, then j ascending, from zero, by fma; bias last. direct_stream keeps the same order,
// so the two give the same bits.
//
// Thread mapping: one output sample a thread; a block takes 256 consecutive samples of a row, or several short rows.
// Block mapping, fastest first: tile of the row, rows; all in blockIdx.x.
// Preconditions: time stride 1 in x and out; weight (C_in, C_out/g, K) contiguous; indices below 2^52.
#include "types.cuh"
#ifndef CONVT_X
#error "CONVT_X: element type of x"
#endif
#ifndef CONVT_W
#error "CONVT_W: element type of the weight"
#endif
typedef CONVT_X X;
typedef CONVT_W W;
typedef ct_result_t<X, W> Y;
typedef ct_acc_t<Y> A;

// Quotient and remainder of a 64-bit a >= 0 by an int, given 1.0 / divisor: the instruction set has no such division,
// and the library's is a call.
struct Division {
  i64 quotient;
  int remainder;

  CT_DEV Division(i64 a, int divisor, double inverse) {
    quotient = (i64)((double)a * inverse);
    i64 rest = a - quotient * divisor;  // off by one step at most
    if (rest < 0) rest += divisor, --quotient;
    if (rest >= divisor) rest -= divisor, ++quotient;
    remainder = (int)rest;
  }
};

extern "C" __global__ void __launch_bounds__(256, 4)
direct_gather(const X* __restrict__ x, const W* __restrict__ weight, const Y* __restrict__ bias, Y* __restrict__ out,
              i64 x_stride_n, i64 x_stride_c, i64 out_stride_n, i64 out_stride_c, i64 rows, i64 l_in, i64 l_out,
              i64 p_left, int rows_per_block, int row_tiles, int c_out, int c_in_group, int c_out_group, int taps,
              int stride, int dilation, int tap_step, int inverse, double per_c_out, double per_stride,
              double per_input_step, int activation, double slope, double beta) {
  int local = rows_per_block > 1 ? (int)threadIdx.x / (int)l_out : 0;
  i64 row = (i64)(blockIdx.x / row_tiles) * rows_per_block + local;
  i64 t = (i64)(blockIdx.x % row_tiles) * blockDim.x + threadIdx.x - local * l_out;
  if (local >= rows_per_block || row >= rows || t >= l_out) return;
  Division entry(row, c_out, per_c_out);
  int co = entry.remainder, group = co / c_out_group, co_group = co - group * c_out_group;
  int common = stride / tap_step, input_step = dilation / common;

  A sum = ct_zero<A>();
  i64 position = t + p_left;
  if (position >= 0) {
    Division place(position, stride, per_stride);
    // the first tap is the j < s/c with j*d = position modulo s; `inverse` is that of d/c modulo s/c
    int first = (int)((u64)(place.remainder / common) * inverse % tap_step);
    if (place.remainder % common == 0 && first < taps) {
      i64 newest = place.quotient + (place.remainder - first * dilation) / stride;  // exact; input of the first tap
      i64 surplus = newest - l_in;
      i64 skipped = surplus >= 0 ? Division(surplus, input_step, per_input_step).quotient + 1 : 0;
      i64 last = newest >= 0 ? Division(newest, input_step, per_input_step).quotient : -1;
      int begin = (int)min(skipped, (i64)taps), end = (int)min(last, (i64)((taps - 1 - first) / tap_step));
      i64 channel = (i64)group * c_in_group;
      const X* inputs = x + entry.quotient * x_stride_n + channel * x_stride_c + newest;
      const W* row_taps = weight + (channel * c_out_group + co_group) * taps + first;
      for (int ci = 0; ci < c_in_group; ++ci, inputs += x_stride_c, row_taps += (i64)c_out_group * taps)
        for (int m = begin; m <= end; ++m)
          sum = ct_fma(ct_acc(ct_ld(inputs - (i64)m * input_step)), ct_acc(ct_ld(row_taps + (i64)m * tap_step)), sum);
    }
  }
  if (bias) sum = ct_add(sum, ct_acc(ct_ld(bias + co)));
  Y* target = out + entry.quotient * out_stride_n + co * out_stride_c + t;
  ct_st(target, ct_cvt<Y>(ct_blend_with(ct_activate(sum, activation, slope), target, beta)));
}
