// SPDX-License-Identifier: MIT
// y[n,co,t] = act(bias[co] + sum_{i*s + j*d = t + p_left} cols[co*K + j][i]) + beta * y[n,co,t],   cols = w^T x
// by the vendor's library
//
// Idea: gather instead of scatter, so every output is written once and nothing is atomic. For one residue of t the
// taps are one residue class and their inputs lie side by side, so a warp reads runs of cols; the tile is interleaved
// in shared memory. Crop, bias and activation happen on the way out.
//
// Thread mapping: a warp takes 32 consecutive q of one residue (t = q*s + residue), then stores runs of t.
// Block mapping, fastest first: residue tile, q tile, row (batch entry, channel); all in blockIdx.x.
// Preconditions: cols is (batch, channels, K, i_count), of which column 0 is input i_first, and holds every input of
// [0, L_in) that reaches the tile; with CONVT_PLANES, K holds pairs (real part, imaginary part) of rows.
#include "interleave.cuh"
#ifndef CONVT_C
#error "CONVT_C: element type of the columns"
#endif
#ifndef CONVT_Y
#error "CONVT_Y: element type of the result"
#endif
#ifndef CONVT_PLANES
#error "CONVT_PLANES: 1 if real and imaginary parts are rows of their own, else 0"
#endif
typedef CONVT_C C;
typedef CONVT_Y Y;
typedef ct_acc_t<Y> A;


#if CONVT_PLANES
CT_DEV float2 column(const float* p, i64 pitch) { return make_float2(ct_ld(p), ct_ld(p + pitch)); }
CT_DEV double2 column(const double* p, i64 pitch) { return make_double2(ct_ld(p), ct_ld(p + pitch)); }
#else
CT_DEV C column(const C* p, i64) { return ct_ld(p); }
#endif

struct Sum {
  const C* cols;  // of this row
  i64 i_first;
  int i_count, tap_step, input_step, activation;
  A offset;
  bool biased;
  double slope;

  CT_DEV A operator()(const ct_phase& phase, i64 q) const {
    A sum = ct_zero<A>();
    i64 i = q + phase.shift - i_first, row_step = (i64)tap_step * (1 + CONVT_PLANES) * i_count - input_step;
    const C* p = cols + (i64)phase.first * (1 + CONVT_PLANES) * i_count + i;
    for (int m = 0; m < phase.count && i >= 0; ++m, i -= input_step, p += row_step)
      if (i < i_count) sum = ct_add(sum, column(p, i_count));
    if (biased) sum = ct_add(sum, offset);
    return ct_activate(sum, activation, slope);
  }
};

extern "C" __global__ void __launch_bounds__(256, 4)
overlap_add(const C* __restrict__ cols, const Y* __restrict__ bias, Y* __restrict__ out, i64 out_stride_n,
            i64 out_stride_c, i64 l_out, i64 p_q, int p_r, i64 first_q, i64 q_total, i64 i_first, int i_count,
            int first_n, int n_step, int first_co, int co_step, int channels, int kernel_size, int stride, int dilation,
            int tap_step, int inverse, int residue_tile, int residue_tiles, int q_tiles, int activation, double slope,
            double beta) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int tiles = residue_tiles * q_tiles, row = blockIdx.x / tiles;
  int entry = row / channels, channel = row % channels;
  int n = first_n + entry * n_step, co = first_co + entry * co_step + channel;
  ct_tile tile = ct_tile_of(blockIdx.x % tiles, first_q, q_total, stride, residue_tile, residue_tiles);
  ct_taps taps = {p_q, p_r, kernel_size, stride, dilation, tap_step, inverse};
  Sum sum = {cols + (i64)row * kernel_size * (1 + CONVT_PLANES) * i_count, i_first, i_count, tap_step,
             dilation / (stride / tap_step), activation, bias ? ct_acc(ct_ld(bias + co)) : ct_zero<A>(),
             bias != nullptr, slope};
  ct_interleave(ct_smem, out + n * out_stride_n + co * out_stride_c, tile, taps, sum, l_out, beta);
}
