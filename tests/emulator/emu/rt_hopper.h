// SPDX-License-Identifier: MIT
// sm_90a: mbarrier, bulk and tensor copies, wgmma. Part of emu_rt.cpp.
#pragma once
namespace emu {
// ------------------------------------------------------------------ Hopper: mbarrier, bulk copies, wgmma
struct MBar {
  bool fenced = false;
  int owner = 0;
  int init = 0, pending = 0;
  long tx = 0;
  unsigned phase = 0;
  std::vector<int> waiters;
  std::vector<u32> acc, done;
};
static std::map<u32, MBar> mbars;
static MBar& mb(void* p, const char* what) {
  if ((uptr)p & 7) fail("mbarrier: misaligned object");
  auto it = mbars.find(smem_u32(p));
  if (it == mbars.end()) fail("%s on an mbarrier that is not initialised (%s)", what, describe((uptr)p).c_str());
#ifdef EMU_CHECK
  if (what[0] != 'c') {
    int t = CUR->lin;
    access((uptr)p, 8, RD, t, vc(t)[t], vc(t), 2);
  }  // races with the initialising store
#endif
  return it->second;
}
void mbar_init(void* p, int count) {
  MBar m;
  m.init = m.pending = count;
  m.owner = CUR->lin;
#ifdef EMU_CHECK
  m.acc.assign(NV, 0);
  m.done.assign(NV, 0);
  hook((uptr)p, 8, WR, 2, true);
#endif
  memset(p, 0, 8);
  mbars[smem_u32(p)] = m;
}
static void mb_check(MBar& m) {
  if (m.pending < 0) fail("mbarrier: more arrivals than the expected count %d", m.init);
  if (m.pending == 0 && m.tx == 0) {
    m.phase ^= 1;
    m.pending = m.init;
#ifdef EMU_CHECK
    m.done = m.acc;
    m.acc.assign(NV, 0);
#endif
    for (int w : m.waiters) th[w].state = READY;
    m.waiters.clear();
  }
}
void mbar_arrive(void* p, int tx) {
  MBar& m = mb(p, "arrive");
#ifdef EMU_CHECK
  vjoin(m.acc.data(), vc(CUR->lin));
  release_self(CUR->lin);
#endif
  m.tx += tx;
  m.pending--;
  mb_check(m);
}
void mbar_wait(void* p, int parity) {
  MBar* m = &mb(p, "wait");
  while ((int)(m->phase & 1) == parity) {
    m->waiters.push_back(CUR->lin);
    block("mbarrier wait", parity);
    m = &mb(p, "wait");
  }
#ifdef EMU_CHECK
  vjoin(vc(CUR->lin), m->done.data());
#endif
}
void mbar_init_fence() {
  for (auto& k : mbars)
    if (k.second.owner == CUR->lin) k.second.fenced = true;
}
void fence_proxy_async() {
  mbar_init_fence();
#ifdef EMU_CHECK
  int t = CUR->lin;
  fence_clk[t] = vc(t)[t];
  vc(t)[t]++;
#endif
}
struct TmaRun {
  void* dst;
  const void* src;
  int n;
  bool swz;
};  // one contiguous run; src null => zeros
struct TmaOp {
  std::vector<TmaRun> runs;
  void* bar;
  long bytes;
  int issuer;
  std::vector<u32> vc;
};
static std::vector<TmaOp> tmaq;
static void tma_exec(TmaOp& o) {
  for (auto& r : o.runs) {
    uptr d = (uptr)r.dst;
    for (int i = 0; i < r.n; i++) {
      uptr x = d + i;
      if (r.swz) {
        uptr s = smem_u32((void*)x);
        s ^= ((s >> 7) & 7) << 4;
        x = (uptr)smem_ptr(s);
      }
      *(u8*)x = r.src ? ((const u8*)r.src)[i] : 0;
    }
  }
  MBar& m = mb(o.bar, "complete_tx");
#ifdef EMU_CHECK
  vjoin(m.acc.data(), o.vc.data());
#endif
  m.tx -= o.bytes;
  mb_check(m);
}
static bool run_one_tma() {
  if (tmaq.empty()) return false;
  size_t k = cfg->async_mode == 2 ? rnd() % tmaq.size() : 0;
  TmaOp o = std::move(tmaq[k]);
  tmaq.erase(tmaq.begin() + k);
  tma_exec(o);
  return true;
}
static void tma_issue(TmaOp& o) {
  Thread* me = CUR;
  o.issuer = me->lin;
  if (!mb(o.bar, "complete_tx").fenced)
    fail("bulk copy on an mbarrier whose initialisation was not fenced (fence.mbarrier_init / fence.proxy.async)");
  if ((uptr)o.runs[0].dst < tls_lo || (uptr)o.runs[0].dst >= tls_hi)
    fail("bulk copy: destination is not shared memory");
#ifdef EMU_CHECK
  u32 clk = ++tma_clk;
  int t = me->lin;
  for (auto& r : o.runs) {
    if (r.src) access((uptr)r.src, r.n, RD, t, vc(t)[t], vc(t), 3);
    access((uptr)r.dst, r.n, WR, 2 * nth, clk, vc(t), 3);  // a swizzled run stays inside its 1024-byte atom
  }
  o.vc.assign(vc(t), vc(t) + NV);
  o.vc[2 * nth] = clk;
#endif
  if (cfg->async_mode == 1 || (cfg->async_mode == 2 && (rnd() & 1))) tma_exec(o);
  else tmaq.push_back(std::move(o));
}
void bulk_g2s(void* dst, const void* src, int n, void* bar) {
  if ((((uptr)dst | (uptr)src | (unsigned)n) & 15))
    fail("misaligned access: cp.async.bulk needs 16-byte aligned dst, src and size");
  TmaOp o;
  o.bar = bar;
  o.bytes = n;
  o.runs.push_back({dst, src, n, false});
  tma_issue(o);
}
struct alignas(64) EmuMap {
  u64 magic, base;
  u32 dim[5];
  u32 rank;
  u64 stride[4];
  u16 box[5];
  u8 es, swz;
};
static_assert(sizeof(EmuMap) == 128, "");
void tma_load(void* dst, const void* map, const int* c, int rank, void* bar) {
  EmuMap m;
  memcpy(&m, map, sizeof m);
  if (m.magic != 0x50414d554d45ull) fail("tma_load: not an emulator tensor map");
  if ((int)m.rank != rank) fail("tma_load: map has rank %u, instruction has %d", m.rank, rank);
  if ((uptr)map & 63) fail("misaligned access: tensor map");
  if (smem_u32(dst) & (m.swz ? 1023 : 127)) fail("misaligned access: TMA destination %s", describe((uptr)dst).c_str());
  if (m.swz && m.box[0] * m.es > 128) fail("tensor map: inner box of %d bytes with the 128B swizzle", m.box[0] * m.es);
  TmaOp o;
  o.bar = bar;
  o.bytes = 0;
  u8* d = (u8*)dst;
  int b[5] = {1, 1, 1, 1, 1};
  for (u32 i = 0; i < m.rank; i++) b[i] = m.box[i];
  for (int i4 = 0; i4 < b[4]; i4++)
    for (int i3 = 0; i3 < b[3]; i3++)
      for (int i2 = 0; i2 < b[2]; i2++)
        for (int i1 = 0; i1 < b[1]; i1++) {
          int ix[5] = {0, i1, i2, i3, i4};
          bool in = true;
          const u8* s = (const u8*)m.base;
          for (int k = 1; k < rank; k++) {
            long q = (long)c[k] + ix[k];
            if (q < 0 || q >= (long)m.dim[k]) in = false;
            else s += q * m.stride[k - 1];
          }
          long x0 = c[0], n = b[0], lo = in ? std::max(0L, -x0) : n, hi = in ? std::min(n, (long)m.dim[0] - x0) : n;
          if (lo > n) lo = n;
          if (hi < lo) hi = lo;
          if (lo) o.runs.push_back({d, nullptr, (int)lo * m.es, m.swz != 0});
          if (hi > lo) o.runs.push_back({d + lo * m.es, s + (x0 + lo) * m.es, (int)(hi - lo) * m.es, m.swz != 0});
          if (hi < n) o.runs.push_back({d + hi * m.es, nullptr, (int)(n - hi) * m.es, m.swz != 0});
          d += n * m.es;
          o.bytes += n * m.es;
        }
  tma_issue(o);
}
struct WgOp {
  float* d[128];
  int n, scale, type, ta, tb;
  u64 da, db;
  u32 clk;
};
struct WgArg {
  float* d;
  int n, scale, type, ta, tb;
  u64 da, db;
};
static std::vector<std::vector<WgOp>> wgq;
static std::vector<u32> wg_grp;
static std::vector<u8> wg_fenced;  // per warp
// Byte address (shared window) of element (mn, k), elements of `es` bytes, canonical layouts of the PTX ISA /
// CUTLASS make_gmma_desc.  The XOR uses absolute address bits 7..9 (minus base_offset).
static u32 desc_addr(u64 d, int mn, int k, int mn_major, int es = 2) {
  u32 start = (d & 0x3fff) << 4, lbo = ((d >> 16) & 0x3fff) << 4, sbo = ((d >> 32) & 0x3fff) << 4, bo = (d >> 49) & 7;
  int sw = d >> 62;
  static const int W[4] = {1, 8, 4, 2};  // 16-byte units per row of the atom
  int w = W[sw];
  u32 off;
  if (!mn_major) {
    int kb = k * es;
    if (sw == 0) off = (mn % 8) * 16 + (mn / 8) * sbo + (kb / 16) * lbo + kb % 16;
    else off = (mn % 8) * (16 * w) + (mn / 8) * sbo + kb;
  } else {
    int T = 8, blk = T * w;
    if (sw == 0) off = (mn % 8) * 2 + (mn / 8) * sbo + (k % 8) * 16 + (k / 8) * lbo;
    else off = (mn % blk) * 2 + (mn / blk) * lbo + (k % 8) * (16 * w) + (k / 8) * sbo;
  }
  u32 a = start + off;
  if (sw) {
    u32 row = ((a >> 7) - bo) & (sw == 1 ? 7 : sw == 2 ? 3 : 1);
    a ^= (sw == 1 ? row : sw == 2 ? row : row) << 4;
  }
  return a;
}
// an operand's element as the tensor cores take it: TF32 ones lose the last 13 bits
static float wg_load(u64 d, int mn, int k, int mn_major, int type) {
  if (type == TF32) {
    u32 v;
    memcpy(&v, smem_ptr(desc_addr(d, mn, k, mn_major, 4)), 4);
    v &= 0xffffe000u;
    float f;
    memcpy(&f, &v, 4);
    return f;
  }
  u16 v;
  memcpy(&v, smem_ptr(desc_addr(d, mn, k, mn_major)), 2);
  return cvt16(v, type);
}
static int wg_depth(int type) { return type == TF32 ? 8 : 16; }
static void wg_exec(WgOp& o, int) {
  int N = o.n, K = wg_depth(o.type);
  std::vector<float> A(64 * K), B(K * N);
  for (int m = 0; m < 64; m++)
    for (int k = 0; k < K; k++) A[m * K + k] = wg_load(o.da, m, k, o.ta, o.type);
  for (int k = 0; k < K; k++)
    for (int n = 0; n < N; n++) B[k * N + n] = wg_load(o.db, n, k, o.tb, o.type);
  std::vector<float> D(N);
  for (int m = 0; m < 64; m++) {
    int warp = m / 16, r = m % 16, g = r & 7, hi = r >> 3;
    for (int n = 0; n < N; n++)
      D[n] = o.scale ? o.d[warp * 32 + g * 4 + (n % 8) / 2][(n / 8) * 4 + hi * 2 + (n & 1)] : 0.f;
    for (int k = 0; k < K; k++) {
      float a = A[m * K + k];
      const float* b = &B[k * N];
      for (int n = 0; n < N; n++) D[n] += a * b[n];
    }
    for (int n = 0; n < N; n++) o.d[warp * 32 + g * 4 + (n % 8) / 2][(n / 8) * 4 + hi * 2 + (n & 1)] = D[n];
  }
}
static void wgmma_fn(void** op, int wg) {
  WgArg* a0 = (WgArg*)op[0];
  WgOp o;
  o.n = a0->n;
  o.scale = a0->scale;
  o.type = a0->type;
  o.ta = a0->ta;
  o.tb = a0->tb;
  o.da = a0->da;
  o.db = a0->db;
  o.clk = wg_grp[wg];
  for (int i = 0; i < 128; i++) {
    WgArg* a = (WgArg*)op[i];
    o.d[i] = a->d;
    if (a->da != o.da || a->db != o.db || a->n != o.n || a->scale != o.scale)
      fail("wgmma: descriptors / scale differ between threads of the warpgroup");
  }
  auto chk = [&](u64 d, int rows, int tr, const char* nm) {
    [[maybe_unused]] bool isA = nm[0] == 'A';
    for (int mn = 0; mn < rows; mn++)
      for (int k = 0; k < wg_depth(o.type); k += tr ? 1 : wg_depth(o.type) / 2) {
        u32 x = desc_addr(d, mn, k, tr, 32 / wg_depth(o.type));
        uptr p = (uptr)smem_ptr(x);
        if (p < dyn_lo || p + 2 > dyn_lo + cfg->smem)
          fail("shared out of bounds: wgmma operand %s element (%d,%d) at offset %ld of %u", nm, mn, k,
               (long)(p - dyn_lo), cfg->smem);
#ifdef EMU_CHECK
        if (!tr || mn % 8 == 0)
          for (int w = 0; w < 4; w++)
            if (!isA || mn / 16 == w)  // warp w reads its 16 rows of A and all of B
            {
              int t = wg * 128 + w * 32;
              access(p, 16, RD, 2 * nth + 1 + wg * 4 + w, o.clk, vc(t), 4, true);
            }
#endif
      }
  };
  chk(o.da, 64, o.ta, "A");
  chk(o.db, o.n, o.tb, "B");
  if (cfg->async_mode == 1 || (cfg->async_mode == 2 && wgq[wg].empty() && (rnd() & 1))) wg_exec(o, wg);
  else wgq[wg].push_back(o);
}
void wgmma(float* d, int n, u64 da, u64 db, int sc, int type, int ta, int tb) {
  if ((CUR->lin & ~127) + 128 > nth) fail("wgmma outside a complete warpgroup");
  if (type == TF32 && (ta || tb)) fail("wgmma: TF32 operands have k contiguous");
  if (!wg_fenced[CUR->warp]) fail("wgmma without wgmma.fence since the kernel start / the last wait_group");
  WgArg a{d, n, sc, type, ta, tb, da, db};
  wg_collective(wgmma_fn, &a, 0, "wgmma");
}
static void wgcommit_fn(void**, int wg) { wg_grp[wg]++; }
void wgmma_commit() { wg_collective(wgcommit_fn, nullptr, 0, "wgmma.commit_group"); }
static void wgwait_fn(void** op, int wg) {
  int n = *(int*)op[0], done = (int)wg_grp[wg] - 1 - n;
  size_t k = 0;
  for (auto& o : wgq[wg])
    if ((int)o.clk <= done) wg_exec(o, wg);
    else wgq[wg][k++] = o;
  wgq[wg].resize(k);
#ifdef EMU_CHECK
  // wait_group covers only the executing warp's part; the other warps' reads need a barrier
  for (int i = 0; i < 128; i++) {
    u32& c = vc(wg * 128 + i)[2 * nth + 1 + wg * 4 + i / 32];
    if (done > (int)c) c = done;
  }
#endif
}
void wgmma_wait(int n) {
  if (n == 0) wg_fenced[CUR->warp] = 0;  // registers may be touched from here on
  wg_collective(wgwait_fn, &n, 0, "wgmma.wait_group");
}
void wgmma_fence() { wg_fenced[CUR->warp] = 1; }

}  // namespace emu
