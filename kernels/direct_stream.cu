// SPDX-License-Identifier: MIT
// y[n,co,q*s + r] = act(bias[co] + sum_ci sum_m tap[co,ci,r,m] * x[n,ci, q + top - m]) + beta * y[n,co,q*s + r]
// for few channels a group
//
// Idea: residues r of the *output* index share one window of inputs; slot m of residue r holds tap
// j = (r + p_left - (top - m)*s) / d where that is a tap, and nothing elsewhere, so any stride, dilation and crop is
// one table. A block reads a tile of x once, with its halo, and keeps it and the table in shared memory; a thread
// slides 16 bytes of inputs and 16 bytes of their past through registers against R residues; results are staged so that
// a row leaves as 16-byte runs.
// Sums go over ci ascending, then taps ascending, from zero, by fma, and skip what the definition skips (empty slots,
// inputs outside [0, L_in)): the bits of direct_gather, and no NaN leaves its receptive field.
//
// Thread mapping: item = (chunk of R residues, batch row, group of Q = 16 / sizeof(x) consecutive q), q fastest.
// Block mapping, fastest first: residue tile, output channel tile, q tile, group, batch tile; all in blockIdx.x.
// Preconditions: time stride 1 in x and out; 128 threads at most; `windows` * Q slots hold every tap.
#include "rows.cuh"
#ifndef CONVT_X
#error "CONVT_X: element type of x"
#endif
#ifndef CONVT_W
#error "CONVT_W: element type of the weight"
#endif
#ifndef CONVT_R
#error "CONVT_R: residues a thread computes, 1 to 8"
#endif
typedef CONVT_X X;
typedef CONVT_W W;
typedef ct_result_t<X, W> Y;
typedef ct_acc_t<X> XA;
typedef ct_acc_t<W> WA;
typedef ct_acc_t<Y> A;
enum {
  R = CONVT_R,
  Q = 16 / sizeof(X),                            // inputs in 16 bytes
  TV = 16 / sizeof(WA),                          // taps in 16 bytes
  TAPS = (Q * R + TV - 1) / TV * TV              // taps of Q slots, padded to whole units
};
typedef u64 Mask;                                // bit k*R + u: slot k of residue u holds a tap
static_assert(Q * R <= 64, "the mask of one window has 64 bits");

// Adds Q slots: window[Q + i - k] is the input of output i at slot k. MASKED obeys the mask; EDGE the ends of x too,
// where input i of slot k sits at position `newest + i - k` of the `count` that the tile has of x.
enum { FULL, MASKED, EDGE };
template <int MODE>
CT_DEV void add_slots(A (&sum)[Q][R], const XA (&window)[2 * Q], const WA* taps, Mask mask, int newest, int count) {
  ct_unit<WA> unit;
#pragma unroll
  for (int e = 0; e < Q * R; ++e) {
    int k = e / R, u = e % R;
    if (e % TV == 0) unit = ct_ld16(taps + e);
    if (MODE != FULL && !(mask >> e & 1)) continue;
#pragma unroll
    for (int i = 0; i < Q; ++i)
      if (MODE != EDGE || (unsigned)(newest + i - k) < (unsigned)count)
        sum[i][u] = ct_fma(window[Q + i - k], unit.v[e % TV], sum[i][u]);
  }
}

CT_DEV void load_window(XA (&window)[2 * Q], int half, const X* source) {
  ct_unit<X> unit = ct_ld16(source);
#pragma unroll
  for (int i = 0; i < Q; ++i) window[half + i] = ct_acc(unit.v[i]);
}

// Bias, then activation. A tanh is long, so its code is there for one q only and the q take turns.
CT_DEV void finish(A (&sum)[Q][R], bool biased, A offset, int activation, double slope) {
#pragma unroll
  for (int e = 0; e < Q * R; ++e) {
    A& v = sum[e / R][e % R];
    if (biased) v = ct_add(v, offset);
    if (activation != CT_TANH) v = ct_activate(v, activation, slope);
  }
  if (activation == CT_TANH && !ct_type<Y>::complex) {
#pragma unroll 1
    for (int turn = 0; turn < Q; ++turn)
#pragma unroll
      for (int u = 0; u < R; ++u) {
        A v = ct_activate(sum[0][u], CT_TANH, slope);
#pragma unroll
        for (int i = 0; i + 1 < Q; ++i) sum[i][u] = sum[i + 1][u];
        sum[Q - 1][u] = v;
      }
  }
}

// Whether a thread stages whole units: all residues of the stride side by side, or a chunk of them that fills units.
template <class S> CT_DEV bool whole_units(int pitch) {
  return pitch == R || (R % (16 / sizeof(S)) == 0 && pitch % R == 0);
}
// First in shared memory, because groups of eight units are 128-byte aligned; with a beta, sums are not rounded yet.
template <class S> CT_DEV ct_unit_stage<S> stage_of(unsigned char* memory, int residue_tile) {
  return ct_unit_stage<S>(memory, Q * residue_tile * (int)sizeof(S) / 16, whole_units<S>(residue_tile));
}

// Stages the Q x R results of one item; `base` is the index of its first q and residue, rows are `pitch` apart.
template <class S>
CT_DEV void stage_results(const ct_unit_stage<S>& stage, const A (&sum)[Q][R], int base, int pitch, int residues) {
  enum { V = 16 / sizeof(S) };
  if (whole_units<S>(pitch)) {
    int row = pitch == R ? R : pitch;
#pragma unroll
    for (int e = 0; e < Q * R; e += V) {
      ct_unit<S> unit;
#pragma unroll
      for (int v = 0; v < V; ++v) unit.v[v] = ct_cvt<S>(sum[(e + v) / R][(e + v) % R]);
      ct_st16(stage.at(base + e / R * row + e % R), unit);
    }
    return;
  }
  // single elements: lanes take turns with the q, else all would write to the banks of one element of a unit
  int turn = threadIdx.x % 32 * Q / 32;
#pragma unroll
  for (int u = 0; u < R; ++u) {
    if (u >= residues) break;
    A column[Q];
#pragma unroll
    for (int i = 0; i < Q; ++i) column[i] = sum[i][u];
#pragma unroll
    for (int bit = 1; bit < Q; bit *= 2) {
      A turned[Q];
#pragma unroll
      for (int i = 0; i < Q; ++i) turned[i] = turn & bit ? column[(i + bit) % Q] : column[i];
#pragma unroll
      for (int i = 0; i < Q; ++i) column[i] = turned[i];
    }
#pragma unroll
    for (int i = 0; i < Q; ++i) ct_st(stage.at(base + (i + turn) % Q * pitch + u), ct_cvt<S>(column[i]));
  }
}

// What a block works on, and how its tables are laid out:
//   tile[row][ci][width]   taps[channel][ci][chunk][window][slot of the window][residue of the chunk]
//   masks[chunk][window]   ranges[chunk]: the windows [x, y) of which every slot holds a tap for every residue
struct Block {
  int c_in_group, kernel_size, stride, dilation, origin, windows, chunks, width, residue_tile;
  int group, first_residue, residues, first_channel, channels, first_n, rows;
  int first, last;  // the positions of a tile row that lie inside x
  X* tile;
  WA* taps;
  Mask* masks;
  uint2* ranges;

  CT_DEV bool interior() const { return first == 0 && last == width; }
  // The tap of a slot and residue; any number outside [0, kernel_size) if there is none.
  CT_DEV int tap(int residue, int slot) const {
    int offset = first_residue + residue + origin + slot * stride;
    return offset >= 0 && offset % dilation == 0 ? offset / dilation : -1;
  }
  CT_DEV bool holds(int j) const { return j >= 0 && j < kernel_size; }
};

CT_DEV void load_inputs(const Block& b, const X* x, i64 start, i64 stride_n, i64 stride_c) {
  int x_rows = b.rows * b.c_in_group;
  bool by_warp = x_rows > 1 && blockDim.x > 32;
  int rank = by_warp ? threadIdx.x % 32 : threadIdx.x, team = by_warp ? 32 : blockDim.x;
  for (int row = by_warp ? threadIdx.x / 32 : 0; row < x_rows; row += by_warp ? blockDim.x / 32 : 1) {
    i64 n = b.first_n + row / b.c_in_group, channel = b.group * (i64)b.c_in_group + row % b.c_in_group;
    const X* source = x + n * stride_n + channel * stride_c + start;
    ct_load_row(b.tile + row * b.width, source, b.width, b.first, b.last, rank, team);
  }
}

CT_DEV void load_taps(const Block& b, const W* weight, int c_out_group) {
  int count = b.channels * b.c_in_group * b.chunks * b.windows;
  for (int e = threadIdx.x; e < count * TAPS; e += blockDim.x) {
    int entry = e / TAPS, k = e % TAPS / R, u = e % TAPS % R;  // e % TAPS >= Q*R is padding
    int window = entry % b.windows, chunk = entry / b.windows % b.chunks, pair = entry / (b.windows * b.chunks);
    i64 channel = b.group * (i64)b.c_in_group + pair % b.c_in_group;
    const W* row = weight + (channel * c_out_group + b.first_channel + pair / b.c_in_group) * b.kernel_size;
    int j = k < Q && chunk * R + u < b.residues ? b.tap(chunk * R + u, window * Q + k) : -1;
    ct_st(b.taps + e, b.holds(j) ? ct_acc(ct_ld(row + j)) : ct_zero<WA>());
  }
}

CT_DEV void fill_masks(const Block& b) {
  for (int entry = threadIdx.x; entry < b.chunks * b.windows; entry += blockDim.x) {
    Mask mask = 0;
    for (int e = 0; e < Q * R; ++e) {
      int residue = min(entry / b.windows * R + e % R, b.residues - 1);  // residues beyond the last do as it does
      mask |= (Mask)b.holds(b.tap(residue, entry % b.windows * Q + e / R)) << e;
    }
    ct_st(b.masks + entry, mask);
  }
  for (int chunk = threadIdx.x; chunk < b.chunks; chunk += blockDim.x) {
    int oldest = b.first_residue + min(chunk * R, b.residues - 1) + b.origin;
    int newest = b.first_residue + min(chunk * R + R, b.residues) - 1 + b.origin;
    int begin = (max(0, -oldest) + b.stride - 1) / b.stride;
    int end = b.kernel_size > newest ? (b.kernel_size - 1 - newest) / b.stride + 1 : 0;
    ct_st(b.ranges + chunk, make_uint2((begin + Q - 1) / Q, b.dilation == 1 ? end / Q : 0));
  }
}

// The sums of one item: channel, chunk of residues, batch row, and the Q outputs from q on.
CT_DEV void convolve(const Block& b, A (&sum)[Q][R], int channel, int chunk, int row, int q) {
  const bool interior = b.interior();
  const uint2 full = interior ? ct_ld(b.ranges + chunk) : make_uint2(0, 0);
#pragma unroll
  for (int e = 0; e < Q * R; ++e) sum[e / R][e % R] = ct_zero<A>();
  for (int ci = 0; ci < b.c_in_group; ++ci) {
    const X* newest = b.tile + (row * b.c_in_group + ci) * b.width + q + b.windows * Q;
    const WA* taps = b.taps + ((channel * b.c_in_group + ci) * b.chunks + chunk) * b.windows * TAPS;
    XA window[2 * Q];
    load_window(window, Q, newest);
    for (int w = 0; w < b.windows; ++w) {
      load_window(window, 0, newest - (w + 1) * Q);
      if (w >= (int)full.x && w < (int)full.y) {
        add_slots<FULL>(sum, window, taps + w * TAPS, 0, 0, 0);
      } else {
        Mask mask = ct_ld(b.masks + chunk * b.windows + w);
        if (interior)
          add_slots<MASKED>(sum, window, taps + w * TAPS, mask, 0, 0);
        else if (mask)
          add_slots<EDGE>(sum, window, taps + w * TAPS, mask, q + (b.windows - w) * Q - b.first, b.last - b.first);
      }
#pragma unroll
      for (int i = 0; i < Q; ++i) window[Q + i] = window[i];
    }
  }
}

extern "C" __global__ void __launch_bounds__(128, Q * R * sizeof(A) > 160 ? 3 : 4)
direct_stream(const X* __restrict__ x, const W* __restrict__ weight, const Y* __restrict__ bias, Y* __restrict__ out,
              i64 x_stride_n, i64 x_stride_c, i64 out_stride_n, i64 out_stride_c, i64 l_in, i64 l_out, i64 q_count,
              i64 top, int batch, int c_in_group, int c_out_group, int kernel_size, int stride, int dilation,
              int origin, int windows, int q_groups, int residue_tile, int channel_tile, int batch_tile,
              int residue_tiles, int channel_tiles, int q_tiles, int groups, int activation, double slope,
              double beta) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int span = q_groups * Q, rest = blockIdx.x;
  Block b;
  b.c_in_group = c_in_group, b.kernel_size = kernel_size, b.stride = stride, b.dilation = dilation, b.origin = origin;
  b.windows = windows, b.chunks = (residue_tile + R - 1) / R, b.width = span + windows * Q;
  b.residue_tile = residue_tile;
  b.first_residue = rest % residue_tiles * residue_tile, rest /= residue_tiles;
  b.first_channel = rest % channel_tiles * channel_tile, rest /= channel_tiles;
  i64 first_q = (i64)(rest % q_tiles) * span;
  rest /= q_tiles;
  b.group = rest % groups, b.first_n = rest / groups * batch_tile;
  b.residues = min(residue_tile, stride - b.first_residue);
  b.channels = min(channel_tile, c_out_group - b.first_channel);
  b.rows = min(batch_tile, batch - b.first_n);
  i64 start = first_q + top - (i64)windows * Q;  // the input at position 0 of a tile row
  b.first = (int)min((i64)b.width, max((i64)0, -start));
  b.last = (int)max((i64)0, min((i64)b.width, l_in - start));

  int staged = beta != 0 ? sizeof(A) : sizeof(Y);
  b.tile = reinterpret_cast<X*>(ct_smem + (batch_tile * span * residue_tile * staged + 127) / 128 * 128);
  b.taps = reinterpret_cast<WA*>(b.tile + batch_tile * c_in_group * b.width);
  b.masks = reinterpret_cast<Mask*>(b.taps + channel_tile * c_in_group * b.chunks * windows * TAPS);
  b.ranges = reinterpret_cast<uint2*>(b.masks + b.chunks * windows);

  load_inputs(b, x, start, x_stride_n, x_stride_c);
  load_taps(b, weight, c_out_group);
  fill_masks(b);
  __syncthreads();

  int lanes = b.rows * q_groups, items = lanes * b.chunks, runs = residue_tile == stride ? 1 : span;
  bool by_warp = b.rows * runs > 1 && blockDim.x > 32;
  int rank = by_warp ? threadIdx.x % 32 : threadIdx.x, team = by_warp ? 32 : blockDim.x;
  for (int channel = 0; channel < b.channels; ++channel) {
    i64 co = b.group * (i64)c_out_group + b.first_channel + channel;
    A offset = bias ? ct_acc(ct_ld(bias + co)) : ct_zero<A>();
    for (int item = threadIdx.x; item < items; item += blockDim.x) {
      int chunk = item / lanes, row = item % lanes / q_groups, q = item % lanes % q_groups * Q;
      if (first_q + q >= q_count) continue;
      A sum[Q][R];
      convolve(b, sum, channel, chunk, row, q);
      finish(sum, bias != nullptr, offset, activation, slope);
      int base = (row * span + q) * residue_tile + chunk * R;
      if (sizeof(A) > sizeof(Y) && beta != 0)
        stage_results(stage_of<A>(ct_smem, residue_tile), sum, base, residue_tile, residue_tile - chunk * R);
      else
        stage_results(stage_of<Y>(ct_smem, residue_tile), sum, base, residue_tile, residue_tile - chunk * R);
    }
    __syncthreads();
    int length = runs == 1 ? span * stride : b.residues;
    for (int run = by_warp ? threadIdx.x / 32 : 0; run < b.rows * runs; run += by_warp ? blockDim.x / 32 : 1) {
      int row = run / runs, q = run % runs;
      i64 t = (first_q + q) * stride + b.first_residue;
      Y* target = out + (b.first_n + row) * out_stride_n + co * out_stride_c + t;
      int count = (int)max((i64)0, min((i64)length, l_out - t));
      int base = (row * span + q) * residue_tile;
      if (beta != 0)
        ct_blend_run(target, stage_of<A>(ct_smem, residue_tile), base, count, rank, team, beta);
      else
        ct_store_run(target, stage_of<Y>(ct_smem, residue_tile), base, count, rank, team);
    }
    __syncthreads();
  }
}
