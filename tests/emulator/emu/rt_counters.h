// SPDX-License-Identifier: MIT
// Traffic counters of the check build: sectors of global memory, wavefronts of shared memory. Part of emu_rt.cpp.
//
// Lanes are fibers and run one after the other, so a warp-wide access has to be put together afterwards. Every lane
// records its path: the basic blocks it entered and its accesses, each with its code address. When lanes meet (block
// barrier, warp collective, exit), their paths are merged as a warp executes them: of all lanes, those that stand at
// the lowest code address take the next step together. Divergent branches and loops with unequal trip counts so
// reconverge at the first common block, because -O1 lays blocks out in source order.
#pragma once
namespace emu {
#ifdef EMU_CHECK
static bool counting;
static const size_t TRACE_MAX = 1u << 20;  // events of one lane between two meetings

static void trace_overflow() {
  counting = false;
  st.counters_complete = 0;
  for (auto& t : th) std::vector<Event>().swap(t.trace);
}
static inline void trace_push(Thread* t, uptr pc, unsigned n, int kind, int buf, uptr a) {
  if (t->trace.size() >= TRACE_MAX) { trace_overflow(); return; }
  t->trace.push_back({(u32)(pc - img_lo), (u8)(n > 255 ? 255 : n), (u8)kind, (int16_t)buf, a});
}

// 32-byte sectors and distinct bytes of one warp-wide global access, e sorted by address
static void count_global(const Event** e, int lanes) {
  bool load = e[0]->kind == RD;
  GlobalCount& total = load ? st.global_load : st.global_store;
  total.requests++;
  u64 bytes = 0, sectors = 0, last_sector = ~0ull;
  uptr end = 0;
  for (int i = 0; i < lanes; i++) {
    uptr lo = e[i]->a, hi = lo + e[i]->n, from = std::max(lo, end);
    if (hi > from) { bytes += hi - from; end = hi; }
    for (u64 s = lo >> 5; s <= (hi - 1) >> 5; s++)
      if (last_sector == ~0ull || s > last_sector) {
        sectors++;
        last_sector = s;
        Buf& b = cfg->bufs[e[i]->buf];
        (load ? b.load_sectors : b.store_sectors)++;
      }
  }
  total.sectors += sectors;
  total.sectors_min += (bytes + 31) / 32;
}
// Bank passes of one warp-wide shared access: a whole warp at up to 4 bytes a lane, half a warp at 8, a quarter at 16.
// Lanes that ask for the same 4-byte word are served together.
static void count_shared(const Event** e, const u8* lane, int lanes) {
  SharedCount& total = e[0]->kind == RD ? st.shared_load : st.shared_store;
  total.requests++;
  int width = e[0]->n <= 4 ? 32 : e[0]->n <= 8 ? 16 : 8;
  for (int first = 0; first < 32; first += width) {
    u32 words[256];
    int n = 0;
    for (int i = 0; i < lanes; i++) {
      if (lane[i] / width != first / width) continue;
      uptr off = e[i]->a - dyn_lo + (1u << 30);  // dyn_lo is a multiple of 128: banks are kept
      for (uptr w = off >> 2; w <= (off + e[i]->n - 1) >> 2 && n < 256; w++) words[n++] = (u32)w;
    }
    if (!n) continue;
    if (!std::is_sorted(words, words + n)) std::sort(words, words + n);
    n = (int)(std::unique(words, words + n) - words);
    int bank[32] = {0}, most = 0;
    for (int i = 0; i < n; i++) most = std::max(most, ++bank[words[i] & 31]);
    total.wavefronts += most;
    total.wavefronts_min += (n + 31) / 32;
  }
}
static void count_request(const Event** e, u8* lane, int lanes) {
  // the same address may be reached through a branch on the kind of memory: global and shared lanes apart
  const Event *g[32], *s[32];
  u8 sl[32];
  int ng = 0, ns = 0;
  for (int i = 0; i < lanes; i++)
    if (e[i]->buf == SHARED_BUF) { s[ns] = e[i]; sl[ns++] = lane[i]; } else g[ng++] = e[i];
  if (ng) {
    auto by_address = [](const Event* x, const Event* y) { return x->a < y->a; };
    if (!std::is_sorted(g, g + ng, by_address)) std::sort(g, g + ng, by_address);
    count_global(g, ng);
  }
  if (ns) count_shared(s, sl, ns);
}

// Lanes of `mask` (and exited lanes) have met: merge their paths and forget them.
static void count_merge(int warp, unsigned mask) {
  if (!counting) return;
  const Event *at[32], *end[32];
  u32 pc[32];
  u8 id[32];
  int n = 0, nl = std::min(32, nth - warp * 32);
  for (int l = 0; l < nl; l++) {
    Thread& t = th[warp * 32 + l];
    if (t.trace.empty() || !(mask >> l & 1 || t.state == DONE)) continue;
    at[n] = t.trace.data();
    end[n] = at[n] + t.trace.size();
    pc[n] = at[n]->pc;
    id[n++] = (u8)l;
  }
  for (int running = n; running;) {
    u32 low = ~0u;
    for (int i = 0; i < n; i++) low = std::min(low, pc[i]);
    const Event* group[32];
    u8 lane[32];
    int k = 0, kind = MARK;
    for (int i = 0; i < n; i++) {
      if (pc[i] != low) continue;
      const Event* e = at[i]++;
      if (e->kind != MARK) { group[k] = e; lane[k++] = id[i]; kind = e->kind; }
      if (at[i] == end[i]) { pc[i] = ~0u; running--; } else pc[i] = at[i]->pc;
    }
    if (kind != MARK) count_request(group, lane, k);
  }
  for (int i = 0; i < n; i++) th[warp * 32 + id[i]].trace.clear();
}
static void count_merge_block() { for (int w = 0; w * 32 < nth; w++) count_merge(w, ~0u); }

// flags of a buffer's bytes, kept by memory.py: INITIALISED outlives the launch, the other two are of this launch
enum { F_INIT = 1, F_LOAD = 2, F_STORE = 4 };
static void count_begin() {
  counting = cfg->counters;
  st.counters_complete = counting;
  for (int i = 0; counting && i < cfg->nbufs; i++) {
    Buf& b = cfg->bufs[i];
    for (size_t k = 0; b.flags && k < b.n; k++) b.flags[k] &= F_INIT;
  }
}
static void count_end() {
  for (int i = 0; counting && i < cfg->nbufs; i++) {
    Buf& b = cfg->bufs[i];
    if (!b.flags) continue;
    for (size_t k = 0; k < b.n; k += 32) {                       // buffers start on a sector
      u8 any = 0;
      for (size_t j = k, e = std::min<size_t>(k + 32, b.n); j < e; j++) {
        b.load_bytes += (b.flags[j] & F_LOAD) != 0;
        b.store_bytes += (b.flags[j] & F_STORE) != 0;
        any |= b.flags[j];
      }
      b.load_sectors_distinct += (any & F_LOAD) != 0;
      b.store_sectors_distinct += (any & F_STORE) != 0;
    }
  }
  for (auto& t : th) if (t.trace.capacity() > 4096) std::vector<Event>().swap(t.trace);
  counting = false;
}
#else
static inline void count_merge(int, unsigned) {}
static inline void count_merge_block() {}
static inline void count_begin() {}
static inline void count_end() {}
#endif
}  // namespace emu
