// SPDX-License-Identifier: MIT
#pragma once
// Dtype combinations: x of type X and weight of type W give a result of type ct_result_t<X, W>, summed in its
// accumulator. A real operand beside a complex one stays real: two multiplications instead of four.
#include "common.cuh"

template <class X, class W> struct ct_result { typedef X type; };
template <> struct ct_result<float, float2> { typedef float2 type; };
template <> struct ct_result<double, double2> { typedef double2 type; };
template <class X, class W> using ct_result_t = typename ct_result<X, W>::type;

CT_DEV float2 ct_fma(float2 a, float b, float2 c) { return make_float2(fmaf(a.x, b, c.x), fmaf(a.y, b, c.y)); }
CT_DEV float2 ct_fma(float a, float2 b, float2 c) { return make_float2(fmaf(a, b.x, c.x), fmaf(a, b.y, c.y)); }
CT_DEV double2 ct_fma(double2 a, double b, double2 c) { return make_double2(fma(a.x, b, c.x), fma(a.y, b, c.y)); }
CT_DEV double2 ct_fma(double a, double2 b, double2 c) { return make_double2(fma(a, b.x, c.x), fma(a, b.y, c.y)); }

CT_DEV float ct_scale(float v, double factor) { return v * (float)factor; }
CT_DEV double ct_scale(double v, double factor) { return v * factor; }
CT_DEV float2 ct_scale(float2 v, double factor) { return make_float2(v.x * (float)factor, v.y * (float)factor); }
CT_DEV double2 ct_scale(double2 v, double factor) { return make_double2(v.x * factor, v.y * factor); }

// a number as what a transform reads: itself, or a real one as a complex one
template <class T> CT_DEV void ct_assign(T& to, T v) { to = v; }
CT_DEV void ct_assign(float2& to, float v) { to = make_float2(v, 0.f); }
CT_DEV void ct_assign(double2& to, double v) { to = make_double2(v, 0.0); }

// ---- epilogue: bias last, then the activation, then beta times what was there, then one rounding -------------------
enum { CT_IDENTITY = 0, CT_RELU = 1, CT_LEAKY_RELU = 2, CT_TANH = 3 };
CT_DEV float ct_tanh(float v) { return tanhf(v); }
CT_DEV double ct_tanh(double v) { return tanh(v); }
template <class A> CT_DEV A ct_activate(A v, int kind, double slope) {
  if (kind == CT_RELU) return v < A(0) ? A(0) : v;  // NaN stays NaN
  if (kind == CT_LEAKY_RELU) return v < A(0) ? v * A(slope) : v;
  return kind == CT_TANH ? ct_tanh(v) : v;
}
CT_DEV float2 ct_activate(float2 v, int, double) { return v; }
CT_DEV double2 ct_activate(double2 v, int, double) { return v; }
// v + beta * old
CT_DEV float ct_blend(float v, float old, double beta) { return ct_fma(old, (float)beta, v); }
CT_DEV double ct_blend(double v, double old, double beta) { return ct_fma(old, beta, v); }
CT_DEV float2 ct_blend(float2 v, float2 old, double beta) { return ct_fma(old, (float)beta, v); }
CT_DEV double2 ct_blend(double2 v, double2 old, double beta) { return ct_fma(old, beta, v); }
// the same, of memory that is read only where beta is not 0
template <class A, class T> CT_DEV A ct_blend_with(A v, const T* old, double beta) {
  return beta != 0 ? ct_blend(v, ct_acc(ct_ld(old)), beta) : v;
}

// ---- 16-byte units -------------------------------------------------------------------------------------------------
// 16 bytes that hold sizeof(uint4) / sizeof(T) elements; the union of the two views is spelt with memcpy.
template <class T> struct ct_unit {
  enum { count = 16 / sizeof(T) };
  T v[16 / sizeof(T)];
};
template <class T> CT_DEV ct_unit<T> ct_ld16(const T* p) {
  uint4 raw = ct_ld(reinterpret_cast<const uint4*>(p));
  ct_unit<T> unit;
  memcpy(&unit, &raw, 16);
  return unit;
}
template <class T> CT_DEV void ct_st16(T* p, const ct_unit<T>& unit) {
  uint4 raw;
  memcpy(&raw, &unit, 16);
  ct_st(reinterpret_cast<uint4*>(p), raw);
}
template <class T> CT_DEV bool ct_is_aligned16(const T* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }
