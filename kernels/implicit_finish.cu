// SPDX-License-Identifier: MIT
// y[n,co,u*s + f*d - p_left] = act(bias[co] + ((sum_0 + sum_1) + ...)[co,f][n,u]) + beta * y[n,co,..]
// with sum_k of part k of the contraction
//
// Idea: the blocks of implicit_gemm and implicit_gemm_mma that share a tile each leave their sums in a workspace; here
// they are added in ascending order, whatever order the blocks ran in, and take the way out that the product takes.
//
// Thread mapping: 16-byte units of sums in, 16-byte units of samples out.
// Block mapping, fastest first: slice of a tile's channels, then the tiles of the product; all in blockIdx.x.
// Preconditions: 256 threads; parts[group][part][column tile][row tile][channel][column][phase], 16-byte aligned; the
// line of columns as implicit.cuh says.
#include "implicit_rows.cuh"
#ifndef CONVT_T
#error "CONVT_T: element type of the result"
#endif
#ifndef CONVT_BN
#error "CONVT_BN: columns of a tile"
#endif
typedef CONVT_T T;
typedef ct_acc_t<T> A;
enum { BN = CONVT_BN, THREADS = 256 };

extern "C" __global__ void __launch_bounds__(256, 4)
implicit_finish(const A* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ out, i64 out_stride_n,
                i64 out_stride_c, i64 l_out, i64 p_left, i64 first_u, int row_columns, int batch, int c_out_group,
                int phases, int channel_tile, int phase_tile, int phase_tiles, int row_tiles, int column_tiles,
                int part_count, int slice, int slices, CT_WAY_OUT_PARAMETERS) {
  extern __shared__ __align__(1024) unsigned char ct_smem[];
  int first_channel = blockIdx.x % slices * slice, tile = blockIdx.x / slices;
  int row_tile = tile % row_tiles, column_tile = tile / row_tiles % column_tiles;
  i64 group = tile / row_tiles / column_tiles;
  ct_line line = ct_line_at((i64)column_tile * BN, first_u, row_columns, batch);
  ct_rows rows = ct_rows_at(row_tile, channel_tile, phase_tile, phase_tiles, c_out_group, phases, 1);
  rows.first_channel += first_channel;
  rows.channels = min(slice, rows.channels - first_channel);
  ct_output<T> output = {out + group * c_out_group * out_stride_c, bias ? bias + group * c_out_group : bias,
                         out_stride_n, out_stride_c, l_out, p_left, stride, dilation, kernel_size, tap_step, inverse,
                         activation, slope, beta};
  ct_stage<T, BN, THREADS> stage = {reinterpret_cast<A*>(ct_smem), stage_pitch, ct_columns<A>(phase_tile, 0), output,
                                    line, rows};
  i64 tile_size = (i64)channel_tile * stage.run(), tiles = (i64)row_tiles * column_tiles;
  i64 first = (group * part_count * tiles + column_tile * row_tiles + row_tile) * tile_size;
  stage.load_parts(parts + first + (i64)first_channel * stage.run(), tiles * tile_size, part_count);
  __syncthreads();
  ct_store(stage, runs);
}
