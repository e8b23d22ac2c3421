// SPDX-License-Identifier: MIT
// packed[g][row tile][chunk][m][...] = w[g*C_in/g + ci, co, f + m*tap_step],   row = (co, f), chunk = 64 bytes of ci
//
// Idea: each step of the sub-pixel product reads one tile of weights, so a tile is one run of memory in the order in
// which the step wants it: channel by channel (CONVT_ROW_MAJOR 0), row by row (1, for ldmatrix) or row by row for each 16
// bytes of channels (2, for wgmma, which cuts floats to TF32, so they are rounded here). Taps that are not there (a ragged
// last one, rows and channels that fill up a tile) are zeros, so the product has no special cases.
//
// Thread mapping: reads with consecutive threads on consecutive rows, writes with consecutive threads on consecutive
// elements of the tile. Block mapping, fastest first: chunk, phase tile, channel tile, group; all in blockIdx.x.
// Preconditions: 256 threads; w is contiguous (C_in, C_out/g, K); phase f < phases holds taps f, f + tap_step, ...
#include "implicit.cuh"
#include "mma.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type"
#endif
#ifndef CONVT_BM
#error "CONVT_BM: rows of a tile"
#endif
#ifndef CONVT_ROW_MAJOR
#error "CONVT_ROW_MAJOR: 1 if the channels of a row lie together, 0 if the rows of a channel do, 2 if 16-byte units do"
#endif
typedef CONVT_T T;
static_assert(256 % CONVT_BM == 0, "tile");
enum { BM = CONVT_BM, BK = 64 / sizeof(T), UNIT = 16 / sizeof(T), THREADS = 256 };
enum { ORDER = CONVT_ROW_MAJOR, PAD = ORDER == 2 ? 32 / UNIT : 2 };  // lanes meet different banks

template <class V> CT_DEV V taken(V v) { return v; }
CT_DEV float taken(float v) {
  if constexpr (ORDER == 2) v = __uint_as_float(to_tf32(v));
  return v;
}

extern "C" __global__ void __launch_bounds__(256)
pack_weights(const T* __restrict__ w, T* __restrict__ packed, int c_in_group, int c_out_group, int kernel_size,
             int tap_step, int taps, int phases, int channel_tile, int phase_tile, int channel_tiles, int phase_tiles,
             int chunks) {
  __shared__ __align__(16) T tile[BK * (BM + PAD)];
  int chunk = blockIdx.x % chunks, row_tile = blockIdx.x / chunks % (channel_tiles * phase_tiles);
  int group = blockIdx.x / chunks / (channel_tiles * phase_tiles);
  ct_rows rows = ct_rows_at(row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases,
                            ORDER == 2 ? ct_gmma_at_once(phase_tile) : ORDER ? 8 : (int)UNIT);
  T* target = packed + (i64)blockIdx.x * taps * (BK * BM);
  const T zero = ct_cvt<T>(ct_zero<ct_acc_t<T>>());
  // a thread reads one row throughout
  int row = threadIdx.x % BM;
  int2 place = rows.at(ORDER ? row : ct_fma_row<UNIT>(row));
  i64 first = (i64)group * c_in_group * c_out_group + rows.first_channel + place.x;
  for (int m = 0; m < taps; ++m, target += BK * BM) {
    i64 tap = rows.first_phase + place.y + (i64)m * tap_step;
#pragma unroll 1
    for (int k = threadIdx.x / BM; k < BK; k += THREADS / BM) {
      int ci = chunk * BK + k;
      bool there = place.x >= 0 && ci < c_in_group && tap < kernel_size;
      ct_st(tile + k * (BM + PAD) + row, there ? ct_ld(w + (first + (i64)ci * c_out_group) * kernel_size + tap) : zero);
    }
    __syncthreads();
#pragma unroll 1
    for (int e = threadIdx.x; e < BK * BM; e += THREADS) {
      int to_row = ORDER == 0 ? e % BM : ORDER == 1 ? e / BK : e / UNIT % BM;
      int k = ORDER == 0 ? e / BM : ORDER == 1 ? e % BK : e / (UNIT * BM) * UNIT + e % UNIT;
      ct_st(target + e, taken(ct_ld(tile + k * (BM + PAD) + to_row)));
    }
    __syncthreads();
  }
}
