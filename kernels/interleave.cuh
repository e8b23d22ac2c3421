// SPDX-License-Identifier: MIT
#pragma once
// From planes to samples: values that lie along q for each residue leave as y[q*stride + residue], in whole runs.
// A warp takes 32 consecutive q of one residue, so what it reads lies together; the tile is staged in shared memory.
#include "rows.cuh"

// The tile of one block: `q_count` of at most CT_TILE_Q values of q from first_q on, `residues` of them from
// first_residue on; `tile` residues lie between two q of the staging area when they are not the whole stride.
enum { CT_TILE_Q = 128 };
struct ct_tile {
  i64 first_q;
  int q_count, first_residue, residues, tile, stride;
};

// The tile of block `index` of a row that has q_total values of q; residue tiles are fastest.
CT_DEV ct_tile ct_tile_of(int index, i64 first_q, i64 q_total, int stride, int tile, int residue_tiles) {
  ct_tile t;
  int residue = index % residue_tiles, q = index / residue_tiles;
  t.first_q = first_q + (i64)q * CT_TILE_Q;
  t.q_count = (int)min((i64)CT_TILE_Q, q_total - (i64)q * CT_TILE_Q);
  t.first_residue = residue * tile;
  t.residues = min(tile, stride - t.first_residue);
  t.tile = tile;
  t.stride = stride;
  return t;
}

// How the taps meet the output: p_left = p_q * s + p_r with 0 <= p_r < s; tap_step = s/c; inverse is that of d/c modulo
// s/c. Residue rho of the output receives taps first, first + s/c, ... below kernel_size, of inputs q + shift,
// q + shift - d/c, ...; count is 0 if there are none.
struct ct_taps {
  i64 p_q;
  int p_r, kernel_size, stride, dilation, tap_step, inverse;
};
struct ct_phase {
  i64 shift;
  int first, count;
};
CT_DEV ct_phase ct_phase_of(int rho, const ct_taps& taps) {
  int position = rho + taps.p_r, residue = position % taps.stride, common = taps.stride / taps.tap_step;
  ct_phase phase = {0, 0, 0};
  if (residue % common) return phase;
  phase.first = (int)((u64)(residue / common) * taps.inverse % taps.tap_step);
  phase.shift = taps.p_q + (position - phase.first * taps.dilation) / taps.stride;  // exact
  phase.count = phase.first < taps.kernel_size ? (taps.kernel_size - 1 - phase.first) / taps.tap_step + 1 : 0;
  return phase;
}

// The staging area, row q after row q. Lanes write elements `pitch` = odd * 2^k apart, which would meet only every
// 2^k-th bank; each 128-byte line is permuted by exclusive or with the lowest k bits of its number, so that the lines
// fill the gaps of one another. A line stays a line, so consecutive elements are read without conflicts.
template <class Y> struct ct_stage {
  enum { line = 128 / sizeof(Y), sub = sizeof(Y) < 4 ? 1 : 0 };  // two halves share a bank
  Y* data;
  int pitch, mask;

  CT_DEV ct_stage(unsigned char* memory, int pitch) : data(reinterpret_cast<Y*>(memory)), pitch(pitch) {
    int power = min(pitch & -pitch, (int)line) >> sub;
    mask = power > 0 ? power - 1 : 0;
  }
  CT_DEV Y* at(int e) const { return data + (e ^ (e / line & mask) << sub); }
};

// Bytes of staging: CT_TILE_Q * tile elements. value(phase, q) is the unrounded sample of one q and residue.
template <class S, class Value>
CT_DEV void ct_stage_tile(const ct_stage<S>& stage, const ct_tile& t, const ct_taps& taps, const Value& value) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int u = warp; u < t.residues; u += warps) {
    ct_phase phase = ct_phase_of(t.first_residue + u, taps);
    for (int q = lane; q < t.q_count; q += 32)
      ct_st(stage.at(q * stage.pitch + u), ct_cvt<S>(value(phase, t.first_q + q)));
  }
}

// Stores what is below l_out, plus beta times what is there. Warps start at cache lines, so that no sector is written
// twice.
template <class Y, class S>
CT_DEV void ct_store_tile(Y* row, const ct_stage<S>& stage, const ct_tile& t, i64 l_out, double beta) {
  bool whole = t.residues == t.stride;
  int team = whole ? blockDim.x : 32, rank = whole ? threadIdx.x : threadIdx.x % 32;
  int runs = whole ? 1 : t.q_count, length = whole ? t.q_count * t.stride : t.residues;
  for (int run = whole ? 0 : threadIdx.x / 32; run < runs; run += blockDim.x / 32) {
    i64 start = (t.first_q + run) * t.stride + t.first_residue;
    int count = (int)max((i64)0, min((i64)length, l_out - start));
    Y* target = row + start;
    for (int e = rank - ct_line_shift(target); e < count; e += team)
      if (e >= 0) {
        ct_acc_t<Y> sample = ct_acc(ct_ld<S>(stage.at(run * stage.pitch + e)));
        ct_st(target + e, ct_cvt<Y>(ct_blend_with(sample, target + e, beta)));
      }
  }
}

// A tile from its values to memory. With a beta, samples are staged unrounded.
template <class Y, class Value>
CT_DEV void ct_interleave(unsigned char* memory, Y* row, const ct_tile& t, const ct_taps& taps, const Value& value,
                          i64 l_out, double beta) {
  typedef ct_acc_t<Y> A;
  if (sizeof(A) > sizeof(Y) && beta != 0) {
    ct_stage<A> stage(memory, t.tile);
    ct_stage_tile(stage, t, taps, value);
    __syncthreads();
    ct_store_tile(row, stage, t, l_out, beta);
  } else {
    ct_stage<Y> stage(memory, t.tile);
    ct_stage_tile(stage, t, taps, value);
    __syncthreads();
    ct_store_tile(row, stage, t, l_out, beta);
  }
}
