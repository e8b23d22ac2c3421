// SPDX-License-Identifier: MIT
// emu_half.h -- own minimal __half / __nv_bfloat16 (no CUDA toolkit header needed).
#pragma once
// No constructors on purpose: g++ 12 emits a guard variable plus an init loop for a static / TLS array of any
// class with a declared default constructor (even `= default`), and that guard would sit in "shared memory".
// Kernels must therefore convert with __float2half_rn() / ct_cvt<T>(), never with __half(x) or `__half h = x`.
struct __align__(2) __half {
  unsigned short __x;
  __attribute__((always_inline)) operator float() const {
    _Float16 h;
    memcpy(&h, &__x, 2);
    return (float)h;
  }
};
struct __align__(2) __nv_bfloat16 {
  unsigned short __x;
  __attribute__((always_inline)) operator float() const {
    unsigned u = (unsigned)__x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
};
template <class H> inline __attribute__((always_inline)) H emu_to(float f);
template <> inline __attribute__((always_inline)) __half emu_to<__half>(float f) {
  _Float16 v = (_Float16)f;
  __half h;
  memcpy(&h.__x, &v, 2);
  return h;
}
template <> inline __attribute__((always_inline)) __nv_bfloat16 emu_to<__nv_bfloat16>(float f) {
  unsigned u;
  memcpy(&u, &f, 4);
  __nv_bfloat16 h;
  h.__x = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (unsigned short)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  return h;
}
struct __align__(4) __half2 {
  __half x, y;
};
struct __align__(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
#define EMU_HOPS(H, H2)                                                                             \
  EMU_INL H operator+(H a, H b) { return emu_to<H>((float)a + (float)b); }                          \
  EMU_INL H operator-(H a, H b) { return emu_to<H>((float)a - (float)b); }                          \
  EMU_INL H operator*(H a, H b) { return emu_to<H>((float)a * (float)b); }                          \
  EMU_INL H operator/(H a, H b) { return emu_to<H>((float)a / (float)b); }                          \
  EMU_INL H& operator+=(H& a, H b) { return a = a + b; }                                            \
  EMU_INL H __hadd(H a, H b) { return a + b; }                                                      \
  EMU_INL H __hmul(H a, H b) { return a * b; }                                                      \
  EMU_INL H __hfma(H a, H b, H c) {                                                                 \
    return emu_to<H>((float)((double)(float)a * (double)(float)b + (double)(float)c));              \
  }                                                                                                 \
  EMU_INL H2 __hadd2(H2 a, H2 b) { return H2{a.x + b.x, a.y + b.y}; }                               \
  EMU_INL H2 __hmul2(H2 a, H2 b) { return H2{a.x * b.x, a.y * b.y}; }                               \
  EMU_INL H2 __hfma2(H2 a, H2 b, H2 c) { return H2{__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
  EMU_INL float __low2float(H2 a) { return a.x; }                                                   \
  EMU_INL float __high2float(H2 a) { return a.y; }
EMU_HOPS(__half, __half2)
EMU_HOPS(__nv_bfloat16, __nv_bfloat162)
EMU_INL float __half2float(__half h) { return h; }
EMU_INL __half __float2half(float f) { return emu_to<__half>(f); }
EMU_INL __half __float2half_rn(float f) { return emu_to<__half>(f); }
EMU_INL float __bfloat162float(__nv_bfloat16 h) { return h; }
EMU_INL __nv_bfloat16 __float2bfloat16(float f) { return emu_to<__nv_bfloat16>(f); }
EMU_INL __nv_bfloat16 __float2bfloat16_rn(float f) { return emu_to<__nv_bfloat16>(f); }
EMU_INL __half2 __floats2half2_rn(float a, float b) { return __half2{emu_to<__half>(a), emu_to<__half>(b)}; }
EMU_INL __half2 __halves2half2(__half a, __half b) { return __half2{a, b}; }
EMU_INL __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return __nv_bfloat162{emu_to<__nv_bfloat16>(a), emu_to<__nv_bfloat16>(b)};
}
EMU_INL float2 __half22float2(__half2 h) { return make_float2(h.x, h.y); }
EMU_INL float2 __bfloat1622float2(__nv_bfloat162 h) { return make_float2(h.x, h.y); }
EMU_INL unsigned short __half_as_ushort(__half h) { return h.__x; }
EMU_INL unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.__x; }
