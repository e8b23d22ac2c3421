// SPDX-License-Identifier: MIT
// cp.async, ldmatrix and mma.sync. Part of emu_rt.cpp.
#pragma once
namespace emu {
// ------------------------------------------------------------------ shared addresses, cp.async, ldmatrix, mma
static const unsigned SBASE = 1024;  // shared-window address of the TLS block start (never 0)
unsigned smem_u32(const void* p) { return (unsigned)((uptr)p - dyn_lo) + SBASE; }
void* smem_ptr(unsigned a) { return (void*)(dyn_lo + a - SBASE); }
static void cp_do(const CpOp& o) {
  memcpy(o.dst, o.src, o.sn);
  memset((char*)o.dst + o.sn, 0, o.n - o.sn);
}
void cp_async(void* dst, const void* src, int n, int sn) {
  Thread* me = CUR;
  uptr pc = (uptr)__builtin_return_address(0);
  if (n != 4 && n != 8 && n != 16) fail("cp.async: size %d", n);
  if (sn < 0 || sn > n) fail("cp.async: src-size %d of %d", sn, n);
  if (((uptr)dst | (sn ? (uptr)src : 0)) & (n - 1))
    die(pc, "misaligned access",
        fmt("cp.async of %d bytes, dst %s src %s", n, describe((uptr)dst).c_str(), describe((uptr)src).c_str()));
  if ((uptr)dst < tls_lo || (uptr)dst + n > tls_hi) fail("cp.async: destination is not shared memory");
  CpOp o{dst, src, n, sn, me->cpclk};
#ifdef EMU_CHECK
  int t = me->lin;
  if (sn) {
    int b = access((uptr)src, sn, RD, t, vc(t)[t], vc(t), pc);
    if (counting && b >= 0) trace_push(me, pc, sn, RD, b, (uptr)src);
  }
  access((uptr)dst, n, WR, nth + t, me->cpclk, vc(t), pc);
  if (counting) trace_push(me, pc + 1, n, WR, SHARED_BUF, (uptr)dst);  // pc + 1: a second access of one instruction
#endif
  if (cfg->async_mode == 1 || (cfg->async_mode == 2 && (rnd() & 1))) cp_do(o);
  else me->cp.push_back(o);
}
void cp_async_commit() { CUR->cpclk++; }
void cp_async_wait(int n) {
  Thread* me = CUR;
  int done = (int)me->cpclk - 1 - n;
  size_t k = 0;
  for (auto& o : me->cp)
    if ((int)o.clk <= done) cp_do(o);
    else me->cp[k++] = o;
  me->cp.resize(k);
#ifdef EMU_CHECK
  u32& c = vc(me->lin)[nth + me->lin];
  if (done > (int)c) c = done;
#endif
}
struct LdmOp {
  unsigned* r;
  const void* row;
  int num;
  bool trans;
};
static void ldm_fn(void** o, unsigned mask, int warp) {
  if (mask != 0xffffffffu) fail("ldmatrix needs a full warp");
  LdmOp* p[32];
  for (int l = 0; l < 32; l++) p[l] = (LdmOp*)o[l];
  int num = p[0]->num;
  const u8* rows[32];
  for (int l = 0; l < num * 8; l++) {
    rows[l] = (const u8*)p[l]->row;
    if ((uptr)rows[l] & 15)
      fail("misaligned access: ldmatrix row address of lane %d (%s)", l, describe((uptr)rows[l]).c_str());
    if ((uptr)rows[l] < tls_lo || (uptr)rows[l] + 16 > tls_hi)
      fail("ldmatrix: lane %d's row is not in shared memory", l);
#ifdef EMU_CHECK
    int t = warp * 32 + l;
    access((uptr)rows[l], 16, RD, t, vc(t)[t], vc(t), 1);
#endif
  }
#ifdef EMU_CHECK
  st.shared_load.requests += counting;
#endif
  for (int i = 0; i < num; i++) {
    int cnt[8] = {0}, mx = 0;
    for (int k = 0; k < 8; k++) {
      int b = ((uptr)rows[8 * i + k] >> 4) & 7;
      bool dup = false;
      for (int q = 0; q < k; q++) dup |= rows[8 * i + q] == rows[8 * i + k];
      if (!dup) mx = std::max(mx, ++cnt[b]);
    }
    st.ldmatrix++;
    st.ldmatrix_conflicts += mx - 1;
#ifdef EMU_CHECK
    if (counting) {
      st.shared_load.wavefronts += mx;
      st.shared_load.wavefronts_min++;
    }
#endif
    for (int l = 0; l < 32; l++) {
      if (!p[l]->trans) memcpy(&p[l]->r[i], rows[8 * i + l / 4] + 4 * (l % 4), 4);
      else {
        u16 lo, hi;
        memcpy(&lo, rows[8 * i + 2 * (l % 4)] + 2 * (l / 4), 2);
        memcpy(&hi, rows[8 * i + 2 * (l % 4) + 1] + 2 * (l / 4), 2);
        p[l]->r[i] = lo | (u32)hi << 16;
      }
    }
  }
}
void ldmatrix(unsigned* r, const void* row, int num, bool trans) {
  LdmOp o{r, row, num, trans};
  warp_collective(0xffffffffu, ldm_fn, &o, num * 2 + trans, "ldmatrix");
}

static inline float cvt16(u16 v, int type) {
  if (type == BF16) {
    u32 u = (u32)v << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  _Float16 h;
  memcpy(&h, &v, 2);
  return (float)h;
}
struct MmaOp {
  float* d;
  const u32* a;
  const u32* b;
  int type;
};
static void mma_fn(void** o, unsigned mask, int) {
  if (mask != 0xffffffffu) fail("mma.sync needs a full warp");
  int type = ((MmaOp*)o[0])->type;
  alignas(64) float A[16][16], B[16][8], D[16][8];
  int K = type == TF32 ? 8 : 16;
  st.mma++;
  for (int l = 0; l < 32; l++) {
    MmaOp* p = (MmaOp*)o[l];
    int g = l >> 2, t = l & 3;
    if (type == TF32) {
      auto tf = [](u32 u) {
        u &= 0xffffe000u;
        float f;
        memcpy(&f, &u, 4);
        return f;
      };  // hardware ignores the low 13 bits
      A[g][t] = tf(p->a[0]);
      A[g + 8][t] = tf(p->a[1]);
      A[g][t + 4] = tf(p->a[2]);
      A[g + 8][t + 4] = tf(p->a[3]);
      B[t][g] = tf(p->b[0]);
      B[t + 4][g] = tf(p->b[1]);
    } else
      for (int h = 0; h < 2; h++) {
        A[g][2 * t + h] = cvt16(p->a[0] >> (16 * h), type);
        A[g + 8][2 * t + h] = cvt16(p->a[1] >> (16 * h), type);
        A[g][2 * t + 8 + h] = cvt16(p->a[2] >> (16 * h), type);
        A[g + 8][2 * t + 8 + h] = cvt16(p->a[3] >> (16 * h), type);
        B[2 * t + h][g] = cvt16(p->b[0] >> (16 * h), type);
        B[2 * t + 8 + h][g] = cvt16(p->b[1] >> (16 * h), type);
      }
    D[g][2 * t] = p->d[0];
    D[g][2 * t + 1] = p->d[1];
    D[g + 8][2 * t] = p->d[2];
    D[g + 8][2 * t + 1] = p->d[3];
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < 8; j++) D[i][j] += A[i][k] * B[k][j];
  for (int l = 0; l < 32; l++) {
    MmaOp* p = (MmaOp*)o[l];
    int g = l >> 2, t = l & 3;
    p->d[0] = D[g][2 * t];
    p->d[1] = D[g][2 * t + 1];
    p->d[2] = D[g + 8][2 * t];
    p->d[3] = D[g + 8][2 * t + 1];
  }
}
void mma(float* d, const u32* a, const u32* b, int type) {
  MmaOp o{d, a, b, type};
  warp_collective(0xffffffffu, mma_fn, &o, type, "mma.sync");
}

}  // namespace emu
