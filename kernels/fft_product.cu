// SPDX-License-Identifier: MIT
// Z[n,g,r,b][f] = sum_ci X[n,g,ci,b][f] * W[g,ci,r][f]     r = (co, p): every output channel and residue class
//
// Idea: one matrix product for each frequency; consecutive threads hold consecutive frequencies, so every access is a
// run, and a thread keeps 4 rows by CONVT_COLUMNS columns of sums so that spectra are read from memory once for many.
//
// Thread mapping: one frequency a thread; tile of 4 rows r and CONVT_COLUMNS columns (n, b) in registers.
// Block mapping, fastest first: 128 frequencies, row tile, column tile, group; all in blockIdx.x.
#include "types.cuh"
#ifndef CONVT_T
#error "CONVT_T: complex element type, float2 or double2"
#endif
#ifndef CONVT_COLUMNS
#error "CONVT_COLUMNS: columns (n, b) a thread computes"
#endif
typedef CONVT_T T;
enum { ROWS = 4, COLUMNS = CONVT_COLUMNS };

extern "C" __global__ void __launch_bounds__(128, 3)
fft_product(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ z, i64 w_group, i64 w_channel, int bins,
            int batch, int groups, int c_in_group, int rows, int blocks, int frequency_tiles, int row_tiles,
            int column_tiles) {
  int rest = blockIdx.x;
  int f = rest % frequency_tiles * 128 + threadIdx.x;
  rest /= frequency_tiles;
  int row = rest % row_tiles * ROWS;
  rest /= row_tiles;
  int column = rest % column_tiles * COLUMNS, group = rest / column_tiles;
  if (f >= bins) return;
  int columns = batch * blocks;
  T sum[ROWS][COLUMNS];
#pragma unroll
  for (int e = 0; e < ROWS * COLUMNS; ++e) sum[e / COLUMNS][e % COLUMNS] = ct_zero<T>();
  for (int ci = 0; ci < c_in_group; ++ci) {
    T taps[ROWS], inputs[COLUMNS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      taps[r] = row + r < rows ? ct_ld(w + group * w_group + ci * w_channel + (i64)(row + r) * bins + f) : ct_zero<T>();
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      int n = (column + c) / blocks, b = (column + c) % blocks;
      i64 source = (((i64)n * groups + group) * c_in_group + ci) * blocks + b;
      inputs[c] = column + c < columns ? ct_ld(x + source * bins + f) : ct_zero<T>();
    }
#pragma unroll
    for (int e = 0; e < ROWS * COLUMNS; ++e)
      sum[e / COLUMNS][e % COLUMNS] = ct_fma(inputs[e % COLUMNS], taps[e / COLUMNS], sum[e / COLUMNS][e % COLUMNS]);
  }
#pragma unroll
  for (int e = 0; e < ROWS * COLUMNS; ++e) {
    int r = row + e / COLUMNS, c = column + e % COLUMNS;
    if (r >= rows || c >= columns) continue;
    i64 target = (((i64)(c / blocks) * groups + group) * rows + r) * blocks + c % blocks;
    ct_st(z + target * bins + f, sum[e / COLUMNS][e % COLUMNS]);
  }
}
