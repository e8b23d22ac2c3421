// SPDX-License-Identifier: MIT
// y[n,co,t] = act(bias[co] + scale * z[n,co,p,b][lead + u - b*step]) + beta * y[n,co,t]
// with u = q + shift of t's residue class p
//
// Idea: the inverse transforms hold one plane for each residue class, in overlapping blocks of which the first `lead`
// samples are wrapped around. Discard those, crop, interleave the planes in shared memory and store runs.
//
// Thread mapping: a warp takes 32 consecutive q of one residue (t = q*s + residue), then stores runs of t.
// Block mapping, fastest first: residue tile, q tile, row (n, channel); all in blockIdx.x.
// Preconditions: the blocks hold u_count samples from u_first on; every other sample of the response is zero.
#include "interleave.cuh"
#ifndef CONVT_Y
#error "CONVT_Y: element type of the result"
#endif
typedef CONVT_Y Y;
typedef ct_acc_t<Y> A;

struct Sample {
  const A* planes;  // of this row
  i64 u_first;
  int u_count, step, lead, length, blocks, activation;
  A offset;
  bool biased;
  double slope, scale;

  CT_DEV A operator()(const ct_phase& phase, i64 q) const {
    A sum = ct_zero<A>();
    i64 u = q + phase.shift - u_first;
    if (phase.count && u >= 0 && u < u_count) {
      int b = (int)u / step;
      sum = ct_scale(ct_ld(planes + ((i64)phase.first * blocks + b) * length + lead + (int)u - b * step), scale);
    }
    if (biased) sum = ct_add(sum, offset);
    return ct_activate(sum, activation, slope);
  }
};

extern "C" __global__ void __launch_bounds__(256, 4)
fft_finish(const A* __restrict__ z, const Y* __restrict__ bias, Y* __restrict__ out, i64 out_stride_n,
           i64 out_stride_c, i64 l_out, i64 p_q, int p_r, i64 first_q, i64 q_total, i64 u_first, int u_count, int step,
           int lead, int length, int blocks, int classes, double scale, int first_n, int first_co, int channels,
           int kernel_size, int stride, int dilation, int tap_step, int inverse, int residue_tile, int residue_tiles,
           int q_tiles, int activation, double slope, double beta) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int tiles = residue_tiles * q_tiles, row = blockIdx.x / tiles;
  int n = first_n + row / channels, co = first_co + row % channels;
  ct_tile tile = ct_tile_of(blockIdx.x % tiles, first_q, q_total, stride, residue_tile, residue_tiles);
  ct_taps taps = {p_q, p_r, kernel_size, stride, dilation, tap_step, inverse};
  Sample sample = {z + (i64)row * classes * blocks * length, u_first, u_count, step, lead, length, blocks, activation,
                   bias ? ct_acc(ct_ld(bias + co)) : ct_zero<A>(), bias != nullptr, slope, scale};
  ct_interleave(ct_smem, out + n * out_stride_n + co * out_stride_c, tile, taps, sample, l_out, beta);
}
