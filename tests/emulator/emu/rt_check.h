// SPDX-License-Identifier: MIT
// Shadow memory of the check build: bounds, initialisation, alignment, and happens-before by vector clocks
// (FastTrack style). Part of emu_rt.cpp.
//
// Agents: n threads, n cp.async queues (one of each thread), TMA, one wgmma agent for each warp.
#pragma once
namespace emu {
#ifdef EMU_CHECK
static int NV;                     // length of a vector clock
static std::vector<u32> vcs;       // one clock for each thread
static std::vector<u32> fence_clk; // own clock of each thread at its last fence.proxy.async
static u32 tma_clk;
static inline u32* vc(int t) { return &vcs[(size_t)t * NV]; }
static void vjoin(u32* a, const u32* b) { for (int i = 0; i < NV; i++) a[i] = a[i] > b[i] ? a[i] : b[i]; }
static void release_self(int t) { vc(t)[t]++; }

// state of 2 bytes: the last write and up to six reads that are not ordered before one another
struct Cell { u32 wclk; u16 wtid; u8 nr, fl; u32 rclk[6]; u16 rtid[6]; };
struct GCell : Cell { u32 wblk, rblk, epoch; };     // global memory: also the block, and the launch it belongs to
enum { INIT = 1, ATOM = 2, WROTE = 4 };
static std::vector<Cell> sm;
static bool armed;

static std::string actor(int a) {
  if (a < nth) return fmt("thread %d", a);
  if (a < 2 * nth) return fmt("cp.async of thread %d", a - nth);
  if (a == 2 * nth) return "TMA";
  return fmt("wgmma of warp %d", a - 2 * nth - 1);
}
static const char* const KIND_NAME[3] = {"read", "write", "atomic"};

static void cell_access(Cell& c, int kind, int act, u32 clk, const u32* v, uptr a, uptr pc, bool async_proxy) {
  if (kind == RD && !(c.fl & INIT)) report(pc, "uninitialised read", describe(a) + " by " + actor(act));
  if ((c.fl & WROTE) && c.wtid != act && c.wclk > v[c.wtid] && !(kind == AT && (c.fl & ATOM)))
    report(pc, "race", fmt("%s by %s is not ordered after %s by %s at %s", KIND_NAME[kind], actor(act).c_str(),
                           c.fl & ATOM ? "atomic" : "write", actor(c.wtid).c_str(), describe(a).c_str()));
  if (async_proxy && kind == RD && (c.fl & WROTE) && c.wtid < nth && c.wclk > fence_clk[c.wtid])
    report(pc, "missing fence.proxy.async",
           fmt("%s was written by %s through the generic proxy", describe(a).c_str(), actor(c.wtid).c_str()));
  if (kind == RD) {
    int slot = -1;
    for (int i = 0; i < c.nr; i++) if (c.rtid[i] == act || c.rclk[i] <= v[c.rtid[i]]) { slot = i; break; }
    if (slot < 0) slot = c.nr < 6 ? c.nr++ : (int)(rnd() % 6);
    c.rtid[slot] = act;
    c.rclk[slot] = clk;
    return;
  }
  for (int i = 0; i < c.nr; i++)
    if (c.rtid[i] != act && c.rclk[i] > v[c.rtid[i]]) {
      report(pc, "race", fmt("%s by %s is not ordered after read by %s at %s", KIND_NAME[kind], actor(act).c_str(),
                             actor(c.rtid[i]).c_str(), describe(a).c_str()));
      break;
    }
  c.nr = 0;
  c.wtid = act;
  c.wclk = clk;
  c.fl = INIT | WROTE | (kind == AT ? ATOM : 0);
}
static void gcell_access(GCell& c, int kind, int act, u32 clk, const u32* v, uptr a, uptr pc) {
  u32 b = (u32)blk_lin;
  if (c.epoch != cfg->epoch) { c.epoch = cfg->epoch; c.nr = 0; c.fl = INIT; }   // INIT: Buf::flags knows better
  if ((c.fl & WROTE) && c.wblk != b) {
    if (!(kind == AT && (c.fl & ATOM)))
      report(pc, "race between blocks",
             fmt("%s at %s, already written by block %u", KIND_NAME[kind], describe(a).c_str(), c.wblk));
    c.fl &= ~WROTE;
  }
  if (c.nr && c.rblk != b) {
    if (kind != RD)
      report(pc, "race between blocks",
             fmt("%s at %s, already read by block %u", KIND_NAME[kind], describe(a).c_str(), c.rblk));
    c.nr = 0;
  }
  cell_access(c, kind, act, clk, v, a, pc, false);
  if (kind == RD) c.rblk = b; else c.wblk = b;
}

static inline bool all_initialised(const u8* f, unsigned n) {
  if (n == 4) { u32 v; memcpy(&v, f, 4); return (v & 0x01010101u) == 0x01010101u; }
  for (unsigned k = 0; k < n; k++) if (!(f[k] & F_INIT)) return false;
  return true;
}
// One access by agent `act`; returns the buffer (SHARED_BUF, or -2 for tables of the image), only if in bounds.
static int access(uptr a, unsigned n, int kind, int act, u32 clk, const u32* v, uptr pc, bool async_proxy = false) {
  if (a - tls_lo < tls_hi - tls_lo) {
    uptr e = a + n;
    if (e > tls_hi || (a >= dyn_lo && a < dyn_lo + SMEM_MAX && e > dyn_lo + cfg->smem))
      die(pc, "shared out of bounds", fmt("%s of %u bytes at dynamic offset %ld, launch gave %u bytes", KIND_NAME[kind],
                                          n, (long)(a - dyn_lo), cfg->smem));
    for (uptr x = a & ~(uptr)1; x < e; x += 2)
      cell_access(sm[(x - tls_lo) >> 1], kind, act, clk, v, x, pc, async_proxy);
    return SHARED_BUF;
  }
  if (a - img_lo < img_hi - img_lo) return -2;
  int i = find_buf(a);
  if (i < 0 || a + n > (uptr)cfg->bufs[i].p + cfg->bufs[i].n)
    die(pc, "global out of bounds", fmt("%s of %u bytes at %s", KIND_NAME[kind], n, describe(a).c_str()));
  Buf& b = cfg->bufs[i];
  if (b.ro && kind != RD) die(pc, "write to const buffer", describe(a));
  if (b.flags) {
    u8* f = b.flags + (a - (uptr)b.p);
    u8 set = counting ? (kind == RD ? F_LOAD : F_STORE) : 0;
    if (kind != WR && !all_initialised(f, n)) {
      if (!b.assume_init) report(pc, "uninitialised read", describe(a) + " by " + actor(act));
      set |= F_INIT;                                             // one report is enough
    }
    if (kind != RD) set |= F_INIT;
    if (set) for (unsigned k = 0; k < n; k++) f[k] |= set;
  }
  if (b.cells && !b.ro) {
    GCell* g = (GCell*)b.cells;
    for (uptr x = a & ~(uptr)1; x < a + n; x += 2) gcell_access(g[(x - (uptr)b.p) >> 1], kind, act, clk, v, x, pc);
  }
  return i;
}
static void yield_ready();
static inline void hook(uptr a, unsigned n, int kind, uptr pc, bool aligned) {
  if (!armed || a - (uptr)stacks < (STK + GUARD) * MAXT) return;
  if (aligned && (a & (n - 1)) && !(a - img_lo < img_hi - img_lo))
    report(pc, "misaligned access", fmt("%s of %u bytes at %s", KIND_NAME[kind], n, describe(a).c_str()));
  Thread* me = CUR;
  int t = me->lin, buf = access(a, n, kind, t, vc(t)[t], vc(t), pc);
  if (counting && buf >= SHARED_BUF) trace_push(me, pc, n, kind, buf, a);
  if (cfg->preempt && buf == SHARED_BUF && rnd() % cfg->preempt == 0) yield_ready();
}
void mem(const volatile void* p, unsigned n, int kind) {
  hook((uptr)p, n, kind, (uptr)__builtin_return_address(0), true);
}
void load_bytes(void* dst, const void* src, unsigned n) {
  hook((uptr)src, n, RD, (uptr)__builtin_return_address(0), true);
  memcpy(dst, src, n);
}
void store_bytes(void* dst, const void* src, unsigned n) {
  hook((uptr)dst, n, WR, (uptr)__builtin_return_address(0), true);
  memcpy(dst, src, n);
}
#endif
}  // namespace emu
