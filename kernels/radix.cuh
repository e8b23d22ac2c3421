// SPDX-License-Identifier: MIT
#pragma once
// Transforms of M = 2^LOG complex points by a team of threads, in shared memory, from natural to bit-reversed order and
// back, unnormalised.
//
// A transform is a tree of remainders: node B of a level holds a polynomial modulo z^h2 - r(B), and splits into a + c b
// and a - c b, its remainders modulo z^h - c and z^h + c, where c = root(B) is a square root of r(B). With v(B) the bits
// of B behind the binary point in reverse, root(B) = exp(-pi i v(B)) on every level: one table of M/2 roots serves all
// of them, threads of a warp mostly read the same one, and leaf p is the frequency k = M v(p). A frequency and its
// negative lie together: -k is the leaf whose bits below the highest one of p are inverted.
//
// A thread holds E = 16 points (8 in double) and takes 2 to 4 levels at once in registers, where a point stays in its
// place: one barrier a pass. The last pass takes groups of R = E/2 neighbours; a thread has a group and that of its
// negative frequencies, so that spectra of real signals are taken apart and multiplied in registers.
//
// Banks: one element of padding after each 128-byte line. In a pass over points R apart, neighbouring half-lines of a
// warp are those that the padding moves to the other half of the banks.
#include "types.cuh"

// ---- complex numbers -----------------------------------------------------------------------------------------------
template <class T> struct ct_complex;  // of a real or complex type: the complex type and its parts
template <> struct ct_complex<float> { typedef float2 type; typedef float real; };
template <> struct ct_complex<float2> { typedef float2 type; typedef float real; };
template <> struct ct_complex<double> { typedef double2 type; typedef double real; };
template <> struct ct_complex<double2> { typedef double2 type; typedef double real; };
CT_DEV float2 ct_make(float x, float y) { return make_float2(x, y); }
CT_DEV double2 ct_make(double x, double y) { return make_double2(x, y); }
template <class C> CT_DEV C ct_sub(C a, C b) { return ct_make(a.x - b.x, a.y - b.y); }
template <class C> CT_DEV C ct_turn(C a) { return ct_make(a.y, -a.x); }  // times -i

// root(B) for B below 8, the constants inside a pass
template <class C> CT_DEV C ct_root(int b) {
  typedef typename ct_complex<C>::real A;
  const A h = A(0.70710678118654752440), c = A(0.92387953251128675613), s = A(0.38268343236508977173);
  C even = b < 2 ? ct_make(A(1), A(0)) : b < 4 ? ct_make(h, -h) : b < 6 ? ct_make(c, -s) : ct_make(s, -c);
  return b & 1 ? ct_turn(even) : even;
}

// a + c b and a - c b in 6 operations
template <class C> CT_DEV void ct_split(C& a, C& b, C c) {
  typedef typename ct_complex<C>::real A;
  C sum = ct_fma(c, b, a);
  b = ct_make(ct_fma(A(2), a.x, -sum.x), ct_fma(A(2), a.y, -sum.y));
  a = sum;
}

// root(node) of a node `level` levels below one whose roots are given: roots[l] = root(node << l). The roots below the
// whole transform are constants.
template <bool WHOLE, class C> CT_DEV C ct_node_root(const C* roots, int level, int node) {
  C even = WHOLE ? ct_root<C>(node & ~1) : node < 2 ? roots[level] : ct_mul(roots[level], ct_root<C>(node & ~1));
  return node & 1 ? ct_turn(even) : even;
}

// The 2^LEVELS remainders of one node, in place.
template <int LEVELS, bool WHOLE, class C> CT_DEV void ct_descend(C* v, const C* roots) {
  enum { PAIRS = 1 << LEVELS >> 1 };
#pragma unroll
  for (int level = 0; level < LEVELS; ++level) {
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
      int half = PAIRS >> level, node = pair / half, i = pair + node * half;
      if (WHOLE && node < 2) {
        C b = node ? ct_turn(v[i + half]) : v[i + half];
        v[i + half] = ct_sub(v[i], b);
        v[i] = ct_add(v[i], b);
      } else {
        ct_split(v[i], v[i + half], ct_node_root<WHOLE>(roots, level, node));
      }
    }
  }
}

// The way back, times 2^LEVELS.
template <int LEVELS, bool WHOLE, class C> CT_DEV void ct_ascend(C* v, const C* roots) {
  enum { PAIRS = 1 << LEVELS >> 1 };
#pragma unroll
  for (int level = LEVELS - 1; level >= 0; --level) {
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
      int half = PAIRS >> level, node = pair / half, i = pair + node * half;
      C difference = ct_sub(v[i], v[i + half]);
      v[i] = ct_add(v[i], v[i + half]);
      if (WHOLE && node < 2) v[i + half] = node ? ct_make(-difference.y, difference.x) : difference;
      else v[i + half] = ct_mul(ct_conj(ct_node_root<WHOLE>(roots, level, node)), difference);
    }
  }
}

// ---- passes --------------------------------------------------------------------------------------------------------
template <class C_, int LOG_> struct ct_transform {
  typedef C_ C;
  enum {
    LOG = LOG_,
    M = 1 << LOG,
    LINE = 128 / sizeof(C),  // elements of all banks
    E = LINE,                // points a thread
    MOST = LINE == 16 ? 4 : 3,
    R = LINE / 2,  // a group of the last pass
    RBITS = MOST - 1,
    UPPER = LOG - RBITS,  // levels before the last pass
    TEAM = M / E,
    PITCH = M + M / LINE,
  };
};

// The passes over the last LEFT of the upper levels. source(m) and sink(m, value) are the points of the whole transform.
template <class F, int LEFT> struct ct_passes {
  typedef typename F::C C;
  enum {
    COUNT = (LEFT + F::MOST - 1) / F::MOST,
    BITS = (LEFT + COUNT - 1) / COUNT,
    RADIX = 1 << BITS,
    LEVEL = F::UPPER - LEFT,
    SPAN = F::M >> LEVEL,   // points of a node
    STEP = SPAN / RADIX,    // between points of a butterfly
    EACH = F::E / RADIX,    // butterflies a thread
    SWAP = F::MOST - BITS,  // see node_of
  };
  static_assert(STEP >= F::LINE || STEP == F::R, "steps that the padding is made for");

  static CT_DEV int offset_of(int index) { return index % STEP; }
  // With half-lines side by side, the lowest bit of the node's number goes where the padding shifts by half a line.
  static CT_DEV int node_of(int index) {
    int node = index / STEP;
    if (STEP >= F::LINE) return node;
    enum { LOW = (2 << SWAP) - 1 };
    return (node & ~LOW) | (node & 1) << SWAP | (node & LOW) >> 1;
  }
  static CT_DEV int place(int first) { return first + first / F::LINE; }
  static CT_DEV int shift(int i) { return STEP >= F::LINE ? i * (STEP + STEP / F::LINE) : i * STEP + i / 2; }
  static CT_DEV void load_roots(C* roots, const C* table, int node) {
#pragma unroll
    for (int level = 0; level < BITS; ++level) roots[level] = LEVEL ? ct_ld(table + (node << level)) : ct_root<C>(0);
  }

  template <class Source> static CT_DEV void descend(C* work, const C* table, int rank, const Source& source) {
    C v[F::E], roots[BITS];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      int index = rank + k * F::TEAM, first = node_of(index) * SPAN + offset_of(index);
#pragma unroll
      for (int i = 0; i < RADIX; ++i)
        v[k * RADIX + i] = LEVEL ? ct_ld<C>(work + place(first) + shift(i)) : source(first + i * STEP);
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      int index = rank + k * F::TEAM, node = node_of(index), first = node * SPAN + offset_of(index);
      load_roots(roots, table, node);
      ct_descend<BITS, LEVEL == 0>(v + k * RADIX, roots);
#pragma unroll
      for (int i = 0; i < RADIX; ++i) ct_st(work + place(first) + shift(i), v[k * RADIX + i]);
    }
    __syncthreads();
    ct_passes<F, LEFT - BITS>::descend(work, table, rank, source);
  }

  // begins with a barrier; after it the caller needs one before it writes to `work`
  template <class Sink> static CT_DEV void ascend(C* work, const C* table, int rank, const Sink& sink) {
    ct_passes<F, LEFT - BITS>::ascend(work, table, rank, sink);
    __syncthreads();
    C v[F::E], roots[BITS];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      int index = rank + k * F::TEAM, first = node_of(index) * SPAN + offset_of(index);
#pragma unroll
      for (int i = 0; i < RADIX; ++i) v[k * RADIX + i] = ct_ld<C>(work + place(first) + shift(i));
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      int index = rank + k * F::TEAM, node = node_of(index), first = node * SPAN + offset_of(index);
      load_roots(roots, table, node);
      ct_ascend<BITS, LEVEL == 0>(v + k * RADIX, roots);
#pragma unroll
      for (int i = 0; i < RADIX; ++i) {
        if (LEVEL) ct_st(work + place(first) + shift(i), v[k * RADIX + i]);
        else sink(first + i * STEP, v[k * RADIX + i]);
      }
    }
  }
};
template <class F> struct ct_passes<F, 0> {
  typedef typename F::C C;
  template <class Source> static CT_DEV void descend(C*, const C*, int, const Source&) {}
  template <class Sink> static CT_DEV void ascend(C*, const C*, int, const Sink&) {}
};

// ---- the last pass -------------------------------------------------------------------------------------------------
// A thread's two groups: frequency -k of point i of group a is point R-1-i of group b; groups 0 and 1 (rank 0) hold
// their own negatives.
template <class F> struct ct_groups {
  typedef typename F::C C;
  enum { R = F::R };
  int a, b;
  C roots_a[F::RBITS], roots_b[F::RBITS], last;  // `last`: of group a, or of group 1 for rank 0

  CT_DEV ct_groups(const C* table, int rank) {
    int high = rank ? 1 << (31 - __clz(rank)) : 0;
    a = rank + high;
    b = rank ? 5 * high - 1 - rank : 1;
#pragma unroll
    for (int level = 0; level < F::RBITS; ++level) {
      C root = ct_ld(table + ((rank ? a : 1) << level));
      C mirrored = ct_conj(root);  // times exp(-pi i / 2^level)
      roots_b[level] = level == 0 ? ct_make(-mirrored.x, -mirrored.y)
                                  : level == 1 ? ct_turn(mirrored) : ct_mul(mirrored, ct_root<C>(2));
      roots_a[level] = rank ? root : ct_root<C>(0);
      last = root;
    }
  }
  static CT_DEV C* place(C* work, int group) { return work + group * R + group * R / F::LINE; }

  CT_DEV void descend(C* work, C* va, C* vb) const {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      va[i] = ct_ld<C>(place(work, a) + i);
      vb[i] = ct_ld<C>(place(work, b) + i);
    }
    ct_descend<F::RBITS, false>(va, roots_a);
    ct_descend<F::RBITS, false>(vb, roots_b);
  }
  CT_DEV void ascend(C* work, C* va, C* vb) const {
    ct_ascend<F::RBITS, false>(va, roots_a);
    ct_ascend<F::RBITS, false>(vb, roots_b);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      ct_st(place(work, a) + i, va[i]);
      ct_st(place(work, b) + i, vb[i]);
    }
  }
};
