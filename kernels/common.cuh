// SPDX-License-Identifier: MIT
#pragma once
// Every .cu includes this first. Three compilers read it: NVRTC (users), nvcc, and g++ with -DCT_EMU (tests).
// No kernel includes any other system header, and only this file may look at CT_EMU: kernels see CT_HOST.
#ifdef CT_EMU
#include "cuda_emu.h"
#else
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#endif

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// CT_HOST is 1 exactly under the emulator. Helpers that take or return structs must be CT_DEV: an argument that is
// read from memory by a call that is not inlined escapes the emulator's checks.
#ifdef CT_EMU
#define CT_HOST 1
#define CT_DEV inline __attribute__((always_inline))
#else
#define CT_HOST 0
#define CT_DEV __device__ __forceinline__
#endif

// ---- element types -------------------------------------------------------------------------------------------------
// Storage type -> accumulator type. Complex numbers are float2 and double2: real part in x, imaginary part in y.
// enum, not static const: a static member would take bytes of global memory in every module.
template <class T> struct ct_type;
template <> struct ct_type<__half> { enum { id = 0, complex = 0 }; typedef float acc; };
template <> struct ct_type<__nv_bfloat16> { enum { id = 1, complex = 0 }; typedef float acc; };
template <> struct ct_type<float> { enum { id = 2, complex = 0 }; typedef float acc; };
template <> struct ct_type<double> { enum { id = 3, complex = 0 }; typedef double acc; };
template <> struct ct_type<float2> { enum { id = 4, complex = 1 }; typedef float2 acc; };
template <> struct ct_type<double2> { enum { id = 5, complex = 1 }; typedef double2 acc; };
template <class T> using ct_acc_t = typename ct_type<T>::acc;

// ct_acc(storage) -> accumulator; ct_cvt<Storage>(accumulator) -> storage, rounding to nearest even
CT_DEV float ct_acc(float v) { return v; }
CT_DEV float ct_acc(__half v) { return __half2float(v); }
CT_DEV float ct_acc(__nv_bfloat16 v) { return __bfloat162float(v); }
CT_DEV double ct_acc(double v) { return v; }
CT_DEV float2 ct_acc(float2 v) { return v; }
CT_DEV double2 ct_acc(double2 v) { return v; }
template <class T> CT_DEV T ct_cvt(ct_acc_t<T> v) { return v; }
template <> CT_DEV __half ct_cvt<__half>(float v) { return __float2half_rn(v); }
template <> CT_DEV __nv_bfloat16 ct_cvt<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// any real storage type as float
CT_DEV float ct_f(float v) { return v; }
CT_DEV float ct_f(__half v) { return __half2float(v); }
CT_DEV float ct_f(__nv_bfloat16 v) { return __bfloat162float(v); }
CT_DEV float ct_f(double v) { return (float)v; }

// arithmetic on accumulators, real or complex: ct_fma(a, b, c) = a * b + c
template <class A> CT_DEV A ct_zero();
template <> CT_DEV float ct_zero<float>() { return 0.f; }
template <> CT_DEV double ct_zero<double>() { return 0.0; }
template <> CT_DEV float2 ct_zero<float2>() { return make_float2(0.f, 0.f); }
template <> CT_DEV double2 ct_zero<double2>() { return make_double2(0.0, 0.0); }
CT_DEV float ct_add(float a, float b) { return a + b; }
CT_DEV double ct_add(double a, double b) { return a + b; }
CT_DEV float2 ct_add(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
CT_DEV double2 ct_add(double2 a, double2 b) { return make_double2(a.x + b.x, a.y + b.y); }
CT_DEV float ct_fma(float a, float b, float c) { return fmaf(a, b, c); }
CT_DEV double ct_fma(double a, double b, double c) { return fma(a, b, c); }
CT_DEV float2 ct_fma(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y)));
}
CT_DEV double2 ct_fma(double2 a, double2 b, double2 c) {
  return make_double2(fma(a.x, b.x, fma(-a.y, b.y, c.x)), fma(a.x, b.y, fma(a.y, b.x, c.y)));
}
template <class A> CT_DEV A ct_mul(A a, A b) { return ct_fma(a, b, ct_zero<A>()); }
CT_DEV float ct_conj(float a) { return a; }
CT_DEV double ct_conj(double a) { return a; }
CT_DEV float2 ct_conj(float2 a) { return make_float2(a.x, -a.y); }
CT_DEV double2 ct_conj(double2 a) { return make_double2(a.x, -a.y); }

template <class T> CT_DEV u16 ct_bits16(T v) {
  static_assert(sizeof(T) == 2, "ct_bits16 takes a 16-bit type");
  u16 r;
  memcpy(&r, &v, 2);
  return r;
}

// ---- whole accesses ------------------------------------------------------------------------------------------------
// One load or store of sizeof(V) bytes, V a scalar or a vector of up to 16 bytes, aligned to its size. On the device
// it is the plain access. Under the emulator it is checked and counted as one access; a plain `float4 v = *p` is
// taken apart by g++ into four before the checks see it.
template <class V> CT_DEV V ct_ld(const V* p) {
#if CT_HOST
  return emu::load(p);
#else
  return *p;
#endif
}
template <class V> CT_DEV void ct_st(V* p, V v) {
#if CT_HOST
  emu::store(p, v);
#else
  *p = v;
#endif
}
