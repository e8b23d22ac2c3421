// SPDX-License-Identifier: MIT
// sums[g][p][n*L_in + i][co*K + j] = sum_{ci in part p of group g} w[ci,co,j] * x[n,ci,i]
//
// Idea: with few inputs the operator is one reading of the weight, so each of its bytes is read once, in the order in
// which it lies, and meets all columns (n, i) while it is in a register. What is summed over ci is the product of every
// tap with every input; weight_stream_finish adds the parts and puts the products in their places.
//
// Thread mapping: a warp takes 32 16-byte units of (co, j) and every eighth ci of its part; the warps' sums are added
// in ascending order. Rows that are not multiples of 16 bytes are read element by element, a warp side by side.
// Block mapping, fastest first: tile of (co, j), part, group; all in blockIdx.x.
// Preconditions: 256 threads; w is contiguous (C_in, C_out/g, K); columns <= CONVT_COLUMNS; row = C_out/g * K.
#include "types.cuh"
#ifndef CONVT_X
#error "CONVT_X: element type of x"
#endif
#ifndef CONVT_W
#error "CONVT_W: element type of the weight"
#endif
#ifndef CONVT_COLUMNS
#error "CONVT_COLUMNS: columns (n, i) that a thread keeps sums of"
#endif
typedef CONVT_X X;
typedef CONVT_W W;
typedef ct_acc_t<X> XA;
typedef ct_acc_t<ct_result_t<X, W>> A;
enum { COLUMNS = CONVT_COLUMNS, UNIT = 16 / sizeof(W), WARPS = 8, THREADS = 32 * WARPS, TILE = 32 * UNIT };
// Sums of the warps meet in shared memory, so many columns at a time; a plane of 32 lanes is followed by as many empty
// places as spread the elements of a unit over the banks.
enum { BATCH = COLUMNS < 4 ? COLUMNS : 4, PLANE = 32 + 128 / sizeof(A) / UNIT, UNROLL = COLUMNS > 4 ? 2 : 4 };

// x of one channel, the same for all lanes
CT_DEV void load_columns(XA (&inputs)[COLUMNS], const XA* x) {
  enum { VECTOR = 16 / sizeof(XA) };
  if constexpr (COLUMNS % VECTOR == 0) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += VECTOR) {
      ct_unit<XA> unit = ct_ld16(x + c);
#pragma unroll
      for (int k = 0; k < VECTOR; ++k) inputs[c + k] = unit.v[k];
    }
  } else {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) inputs[c] = ct_ld(x + c);
  }
}

// w: the lane's first element of the warp's first channel; there: how many of its elements are in the row, for elements
// 32 apart, or whether the unit is.
template <bool WHOLE>
CT_DEV void accumulate(A (&sums)[UNIT][COLUMNS], const W* w, const XA* x, i64 row, int warp, int count, int there) {
#pragma unroll UNROLL
  for (int k = warp; k < count; k += WARPS) {
    ct_unit<W> taps;
    if constexpr (WHOLE) {
      taps = ct_ld16(w + k * row);
    } else {
      const W zero = ct_cvt<W>(ct_zero<ct_acc_t<W>>());
#pragma unroll
      for (int v = 0; v < UNIT; ++v) taps.v[v] = v < there ? ct_ld(w + k * row + v * 32) : zero;
    }
    XA inputs[COLUMNS];
    load_columns(inputs, x + k * COLUMNS);
#pragma unroll
    for (int v = 0; v < UNIT; ++v) {
      ct_acc_t<W> tap = ct_acc(taps.v[v]);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) sums[v][c] = ct_fma(inputs[c], tap, sums[v][c]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, COLUMNS > 4 ? 1 : COLUMNS > 1 ? 2 : 4)
weight_stream(const X* __restrict__ x, const W* __restrict__ w, A* __restrict__ sums_out, i64 x_stride_n,
              i64 x_stride_c, i64 pitch, int l_in, int columns, int c_in_group, int row, int tiles, int parts,
              int part_channels) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int tile = blockIdx.x % tiles, part = blockIdx.x / tiles % parts, group = blockIdx.x / tiles / parts;
  int first = part * part_channels, count = min(part_channels, c_in_group - first);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = tile * TILE;
  i64 channel = (i64)group * c_in_group + first;

  XA* inputs = reinterpret_cast<XA*>(ct_smem);  // [channel][column]
  for (int e = threadIdx.x; e < count * COLUMNS; e += THREADS) {
    int column = e % COLUMNS, n = column / l_in;
    const X* p = x + n * x_stride_n + (channel + e / COLUMNS) * x_stride_c + column % l_in;
    ct_st(inputs + e, column < columns ? ct_acc(ct_ld(p)) : ct_zero<XA>());
  }
  __syncthreads();

  A sums[UNIT][COLUMNS];
#pragma unroll
  for (int e = 0; e < UNIT * COLUMNS; ++e) sums[e / COLUMNS][e % COLUMNS] = ct_zero<A>();
  const W* rows = w + channel * row + base;
  bool whole = row % UNIT == 0 && ct_is_aligned16(w);
  if (whole) {
    if (base + lane * UNIT < row) accumulate<true>(sums, rows + lane * UNIT, inputs, row, warp, count, UNIT);
  } else {
    int there = (max(0, row - base - lane) + 31) / 32;
    accumulate<false>(sums, rows + lane, inputs, row, warp, count, there);
  }

  A* stage = reinterpret_cast<A*>(ct_smem);  // [warp][column][element of a unit][lane]
  A* target = sums_out + ((i64)group * parts + part) * columns * pitch + base;
#pragma unroll
  for (int batch = 0; batch < COLUMNS; batch += BATCH) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < UNIT * BATCH; ++e)
      ct_st(stage + ((warp * BATCH + e / UNIT) * UNIT + e % UNIT) * PLANE + lane, sums[e % UNIT][batch + e / UNIT]);
    __syncthreads();
    for (int e = threadIdx.x; e < BATCH * TILE; e += THREADS) {
      int column = e / TILE, element = e % TILE;
      int plane = whole ? element % UNIT : element / 32, place = whole ? element / UNIT : element % 32;
      const A* p = stage + (column * UNIT + plane) * PLANE + place;
      A sum = ct_ld(p);
#pragma unroll
      for (int k = 1; k < WARPS; ++k) sum = ct_add(sum, ct_ld(p + k * BATCH * UNIT * PLANE));
      if (batch + column < columns && base + element < row) ct_st(target + (batch + column) * pitch + element, sum);
    }
  }
}
