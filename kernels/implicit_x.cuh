// SPDX-License-Identifier: MIT
#pragma once
// Rows of time to an x tile of [place][channel], in units of 16 aligned bytes, for architectures that have cp.async.
//
// The places of a channel fall into stretches, one for each row of the batch that the line passes; a stretch is a run
// of memory. Its units are copied from a whole sector on, wherever it starts, so that no sector is asked for twice. Eight
// lanes take units that follow one another, each to a place of its own in shared memory. From there elements go to the
// tile one by one, and lanes that would meet in a bank begin with different ones: eight places that follow one another
// meet all banks, whichever is the first. The channels of a warp lie in words of their own.
#include "implicit.cuh"
#include "mma.cuh"

// Units of the places from `first` on (no tap looks at those before), `shift` places back, of 64 bytes of channels from
// `channel` on. A stretch takes as many slots as it can have units; the two of a sector stay together.
template <class T, int PLACES> struct ct_panel {
  enum { UNIT = 16 / sizeof(T), SECTOR = 2 * UNIT };
  const ct_input<T>& input;
  const ct_line& line;
  int channel, first, shift;

  CT_DEV static constexpr int slots(int places) { return (places + 2 * SECTOR - 2) / SECTOR * 2; }
  CT_DEV int all_slots() const {
    int next = min(first + left(ct_column_at(line, first - CT_HALO - shift)), (int)PLACES);
    return slots(next - first) + (PLACES - next + line.row_columns - 1) / line.row_columns * slots(line.row_columns);
  }
  // columns from this one to the end of its row
  CT_DEV int left(const ct_column& column) const { return (int)(line.first_u + line.row_columns - column.u); }
};

// 16 aligned bytes of a channel: where they lie, which place the first element is, and bits of the elements that are
// places of the tile and of those that are inputs too.
template <class T> struct ct_x_unit {
  enum { UNIT = 16 / sizeof(T) };
  const T* from;
  int place, bytes;  // how many of them to read
  u32 keep, live;
  bool from_start;  // whether those are the first ones

  template <int PLACES> CT_DEV ct_x_unit(const ct_panel<T, PLACES>& panel, int slot, int c) {
    const ct_input<T>& input = panel.input;
    ct_column column = ct_column_at(panel.line, panel.first - CT_HALO - panel.shift);
    int channel = panel.channel + c, lo = panel.first, hi = lo + panel.left(column);
    for (int here; slot >= (here = panel.slots(min(hi, (int)PLACES) - lo)) && hi < PLACES; slot -= here) {
      ++column.n, column.u = panel.line.first_u;
      lo = hi, hi += panel.line.row_columns;
    }
    from = input.x + (column.n * input.stride_n + channel * input.stride_c + column.u);
    int ahead = slot * UNIT - (int)(reinterpret_cast<u64>(from) / sizeof(T) % (2 * UNIT));
    from += ahead;
    place = lo + ahead;
    keep = bits(-ahead, min(hi, (int)PLACES) - place);
    i64 u = column.u + ahead;
    int begin = (int)min(max(-u, 0ll), (i64)UNIT), end = (int)min(max(input.l_in - u, 0ll), (i64)UNIT);
    bool there = column.n >= 0 && column.n < panel.line.batch && channel < input.channels;
    live = there ? keep & bits(begin, end) : 0;
    // beside a row's ends may lie those of other channels
    bool dense = input.stride_c == input.l_in && input.l_in >= UNIT;
    from_start = !live || begin == 0 || (dense && channel > 0);
    bytes = !live ? 0 : dense && channel + 1 < input.channels ? 16 : end * (int)sizeof(T);
  }
  // elements `begin` to `end`, if there are any
  CT_DEV static u32 bits(int begin, int end) {
    return (1u << max(min(end, (int)UNIT), 0)) - 1 & ~((1u << max(min(begin, (int)UNIT), 0)) - 1);
  }
};

// element (k + turn) % UNIT of a unit as element k
template <class T> CT_DEV ct_unit<T> ct_turned(const ct_unit<T>& unit, int turn) {
  u32 words[4];
  memcpy(words, &unit, 16);
#pragma unroll
  for (int step = 2; step >= 1; step /= 2) {
    bool on = turn * (int)sizeof(T) & step * 4;
    u32 from[4] = {words[0], words[1], words[2], words[3]};
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = on ? from[(i + step) % 4] : from[i];
  }
  if (sizeof(T) == 2) {
    u32 from[4] = {words[0], words[1], words[2], words[3]};
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = (u32)(((u64)from[(i + 1) % 4] << 32 | from[i]) >> turn % 2 * 16);
  }
  ct_unit<T> turned;
  memcpy(&turned, words, 16);
  return turned;
}

// What a number undergoes on its way: nothing.
struct ct_as_it_is {
  template <class T> CT_DEV T operator()(T v) const { return v; }
};

// The tile on its way: `load` asks for units, and when they are there `store` takes them from `units`, where each of
// THREADS threads has COUNT, to the tile; both with the same panel. Places lie PLACE_BYTES apart in the tile, 16 bytes
// of channels UNIT_BYTES after those before. COUNT is enough if taps look back half of the halo; others come later.
template <class T, int PLACES, int THREADS, int PLACE_BYTES, int UNIT_BYTES, class Change = ct_as_it_is>
struct ct_x_rows {
  typedef ct_panel<T, PLACES> Panel;
  enum { UNIT = 16 / sizeof(T), CHANNELS = 64 / sizeof(T), TEAMS = THREADS / 8 };
  enum { COUNT = (CHANNELS * ((Panel::slots(PLACES - CT_HALO / 2) + 7) / 8) + TEAMS - 1) / TEAMS };
  u32 marks[COUNT];  // place + 64, keep, live: 16, 8 and 8 bits

  // Eight lanes are a team: eight slots of a channel. The channels of the four teams of a warp lie in different words.
  CT_DEV static int channel(int team) {
    int c = team % CHANNELS;
    return sizeof(T) == 2 ? c / 8 * 8 + c % 4 * 2 + c / 4 % 2 : c;
  }
  CT_DEV void load(unsigned char* units, const Panel& panel, int rank, int round = 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      int team = (round * COUNT + i) * TEAMS + rank / 8;
      ct_x_unit<T> unit(panel, team / CHANNELS * 8 + rank % 8, channel(team));
      marks[i] = unit.keep ? (u32)(unit.place + 64) << 16 | unit.keep << 8 | unit.live : 0;
      T* to = reinterpret_cast<T*>(units + (i * THREADS + rank) * 16);
      if (unit.from_start) {
        cp_async16(to, unit.from, unit.bytes);
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < UNIT; ++e) ct_st(to + e, unit.live >> e & 1 ? ct_ld(unit.from + e) : ct_cvt<T>(0.f));
    }
  }
  CT_DEV void store(unsigned char* tile, unsigned char* units, const Panel& panel, int rank) {
    int teams = CHANNELS * ((panel.all_slots() + 7) / 8);
#pragma unroll 1
    for (int round = 0;;) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i)
        put(tile, channel((round * COUNT + i) * TEAMS + rank / 8), marks[i], units + (i * THREADS + rank) * 16, rank);
      if (++round * COUNT * TEAMS >= teams) return;
      load(units, panel, rank, round);
      cp_async_commit();
      cp_async_wait<0>();
    }
  }
  CT_DEV static void put(unsigned char* tile, int channel, u32 marks, const unsigned char* from, int rank) {
    int place = (int)(marks >> 16) - 64, turn = rank % 8 / (8 / UNIT);
    u32 keep = marks >> 8 & 255;
    unsigned char* p = tile + channel / UNIT * UNIT_BYTES + channel % UNIT * sizeof(T) + place * PLACE_BYTES;
    ct_unit<T> values = ct_ld16(reinterpret_cast<const T*>(from));
    if ((marks & 255) != keep) {
#pragma unroll
      for (int e = 0; e < UNIT; ++e)
        if (!(marks >> e & 1)) values.v[e] = ct_cvt<T>(0.f);
    }
    values = ct_turned(values, turn);
    keep = (keep | keep << UNIT) >> turn;
#pragma unroll
    for (int k = 0; k < UNIT; ++k)
      if (keep >> k & 1) ct_st(reinterpret_cast<T*>(p + (k + turn) % UNIT * PLACE_BYTES), Change()(values.v[k]));
  }
};
