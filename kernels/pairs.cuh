// SPDX-License-Identifier: MIT
#pragma once
// Real signals in the complex transforms of radix.cuh, and spectra in memory.
//
// A real signal of 2M points is transformed as z[m] = x[2m] + i x[2m+1]. Pair i of a thread is (first[i], second[i]),
// frequencies k and -k: point i of group a and R-1-i of group b, except for rank 0, whose pair 0 is the frequencies 0
// and M/2, each its own negative.
#include "radix.cuh"

template <class F, class C> CT_DEV void ct_to_pairs(const C* va, const C* vb, C* first, C* second, int rank) {
  enum { R = F::R };
#pragma unroll
  for (int i = 0; i < R; ++i) {
    first[i] = va[i];
    second[i] = vb[R - 1 - i];
  }
  if (rank == 0) {
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      // leaves 0, 1; 2, 3; 4, 7; 5, 6
      first[i] = va[i < 2 ? 2 * i : i + 2];
      second[i] = va[i < 2 ? 2 * i + 1 : 9 - i];
      first[R / 2 + i] = vb[i];
      second[R / 2 + i] = vb[R - 1 - i];
    }
  }
}
template <class F, class C> CT_DEV void ct_from_pairs(C* va, C* vb, const C* first, const C* second, int rank) {
  enum { R = F::R };
#pragma unroll
  for (int i = 0; i < R; ++i) {
    va[i] = first[i];
    vb[R - 1 - i] = second[i];
  }
  if (rank == 0) {
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      va[i < 2 ? 2 * i : i + 2] = first[i];
      va[i < 2 ? 2 * i + 1 : 9 - i] = second[i];
      vb[i] = first[R / 2 + i];
      vb[R - 1 - i] = second[R / 2 + i];
    }
  }
}

// exp(-2 pi i k / M) of pair i's first frequency: +-root(p/2) of its leaf p.
template <class F> CT_DEV typename F::C ct_pair_root(const ct_groups<F>& groups, int i, int rank) {
  typedef typename F::C C;
  enum { R = F::R };
  C even = ct_mul(groups.last, ct_root<C>(i / 2 & ~1));
  C root = i / 2 & 1 ? ct_turn(even) : even;
  if (rank == 0) {
    C of_group_1 = ct_mul(groups.last, ct_root<C>((i & (R / 2 - 1)) / 2 & ~1));
    if ((i & (R / 2 - 1)) / 2 & 1) of_group_1 = ct_turn(of_group_1);
    root = i >= R / 2 ? of_group_1 : ct_root<C>(i < 2 ? i : 2);
  }
  bool odd = rank ? i & 1 : i >= R / 2 ? i & 1 : i == 3;
  return odd ? ct_make(-root.x, -root.y) : root;
}

// Real samples as the parts of a complex one; a complex sample is itself, and the second one counts for nothing.
template <class C> CT_DEV C ct_join(float even, float odd) { return ct_make(even, odd); }
template <class C> CT_DEV C ct_join(double even, double odd) { return ct_make(even, odd); }
template <class C> CT_DEV C ct_join(C sample, C) { return sample; }
template <class C, class A> CT_DEV void ct_part(C value, A* parts) { parts[0] = value.x, parts[1] = value.y; }
template <class C> CT_DEV void ct_part(C value, C* parts) { parts[0] = value; }

// Two neighbours of a row, aligned to both of them.
template <class X> struct ct_two {
  X v[2];
};
template <class X> CT_DEV ct_two<X> ct_load_two(const X* p) {
  ct_two<X> two;
  if constexpr (sizeof(X) == 2) {
    u32 raw = ct_ld(reinterpret_cast<const u32*>(p));
    memcpy(&two, &raw, 4);
  } else if constexpr (sizeof(X) == 4) {
    uint2 raw = ct_ld(reinterpret_cast<const uint2*>(p));
    memcpy(&two, &raw, 8);
  } else if constexpr (sizeof(X) == 8) {
    uint4 raw = ct_ld(reinterpret_cast<const uint4*>(p));
    memcpy(&two, &raw, 16);
  } else {
    two.v[0] = ct_ld(p), two.v[1] = ct_ld(p + 1);
  }
  return two;
}

// Two complex numbers of one pair, for rank of `team` threads: a 16-byte unit, or two runs of them.
template <class C> CT_DEV void ct_load_pair(const C* spectrum, int i, int rank, int team, C& even, C& odd) {
  if constexpr (sizeof(C) == 8) {
    ct_two<C> unit = ct_load_two(spectrum + 2 * (i * team + rank));
    even = unit.v[0];
    odd = unit.v[1];
  } else {
    even = ct_ld(spectrum + 2 * i * team + rank);
    odd = ct_ld(spectrum + (2 * i + 1) * team + rank);
  }
}
template <class C> CT_DEV void ct_store_pair(C* spectrum, int i, int rank, int team, C even, C odd) {
  if constexpr (sizeof(C) == 8) {
    ct_unit<C> unit;
    unit.v[0] = even;
    unit.v[1] = odd;
    ct_st16(spectrum + 2 * (i * team + rank), unit);
  } else {
    ct_st(spectrum + 2 * i * team + rank, even);
    ct_st(spectrum + (2 * i + 1) * team + rank, odd);
  }
}
