// Ranks within a row: one stable counting pass over bins of keys, then insertion within them. Deltas of 16-bit weights
// repeat few values, and equal keys need no more than to stay in order.

template <class Key>
struct Ranked {
  Key key;
  uint32_t column;
};

constexpr int64_t kFew = 32;  // entries that insertion sorts

template <class Key>
void sort_few(Ranked<Key>* entries, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const Ranked<Key> entry = entries[i];
    int64_t at = i;
    for (; at > 0 && entries[at - 1].key > entry.key; --at) entries[at] = entries[at - 1];
    entries[at] = entry;
  }
}

static inline int bit_width(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// Stable, by the highest byte in which keys differ, then by the next.
template <class Key>
void sort_many(Ranked<Key>* entries, int64_t count, Ranked<Key>* spare) {
  Key low = entries[0].key, high = low;
  for (int64_t i = 1; i < count; ++i) {
    const Key key = entries[i].key;
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  if (low == high) return;
  const int width = bit_width(high - low), shift = width > 8 ? width - 8 : 0;
  uint32_t ends[257] = {0};
  for (int64_t i = 0; i < count; ++i) ++ends[((entries[i].key - low) >> shift) + 1];
  for (int b = 0; b < 256; ++b) ends[b + 1] += ends[b];
  for (int64_t i = 0; i < count; ++i) spare[ends[(entries[i].key - low) >> shift]++] = entries[i];
  __builtin_memcpy(entries, spare, size_t(count) * sizeof(*entries));
  if (shift == 0) return;
  for (int64_t b = 0, begin = 0; b < 256; begin = ends[b++]) {
    const int64_t size = ends[b] - begin;
    if (size > kFew)
      sort_many(entries + begin, size, spare);
    else
      sort_few(entries + begin, size);
  }
}

// Where a key goes in the first pass: 0 has a bin of its own, as elements that no training changed are many; the bins
// above it cover the octaves just below the largest key, where nearly all others are.
template <class T>
struct RankBins {
  static constexpr int kOctaves = 8;
  Bits<T> floor;
  int shift, bins;

  RankBins(Bits<T> low, Bits<T> high, int64_t count) {
    int log = 4;
    while (log < 12 && (int64_t(1) << log) < count) ++log;
    bins = 1 << log;
    const Bits<T> window = Bits<T>(kOctaves) << ExponentField<T>::fraction;
    floor = high - low > window ? high - window : low;
    shift = 0;
    while (((high - floor) >> shift) >= Bits<T>(bins - 1)) ++shift;
  }
  uint32_t operator()(Bits<T> key) const {
    const Bits<T> above = key > floor ? key - floor : 0;
    return key ? uint32_t(above >> shift) + 1 : 0;
  }
};

// ranks[j] of (count,) keys. `work`: rank_work(count) bytes.
template <class T>
void rank_keys(const Bits<T>* __restrict keys, int64_t count, T* __restrict ranks, Arena& arena) {
  using Entry = Ranked<Bits<T>>;
  Bits<T> low = ~Bits<T>(0), high = 0;
  for (int64_t j = 0; j < count; ++j) {  // the least apart from 0, which has its own bin
    const Bits<T> key = keys[j], lower = key ? key : ~Bits<T>(0);
    low = lower < low ? lower : low;
    high = key > high ? key : high;
  }
  if (low >= high) low = high;
  const RankBins<T> bin_of(low, high, count);
  Entry* entries = arena.take<Entry>(size_t(count));
  Entry* spare = arena.take<Entry>(size_t(count));
  uint32_t* ends = arena.take<uint32_t>(size_t(kRankBins));
  for (int b = 0; b < bin_of.bins; ++b) ends[b] = 0;
  for (int64_t j = 0; j < count; ++j) ++ends[bin_of(keys[j])];
  uint32_t total = 0;
  bool many = false;
  for (int b = 0; b < bin_of.bins; ++b) {
    const uint32_t size = ends[b];
    many |= size > kFew;
    ends[b] = total;
    total += size;
  }
  for (int64_t j = 0; j < count; ++j) entries[ends[bin_of(keys[j])]++] = {keys[j], uint32_t(j)};
  if (many)
    for (int64_t b = 0, begin = 0; b < bin_of.bins; begin = ends[b++])
      if (ends[b] - begin > kFew) sort_many(entries + begin, ends[b] - begin, spare);
  sort_few(entries, count);
  for (int64_t i = 0; i < count; ++i) ranks[entries[i].column] = T(i);
}

// Ranks the deltas of one input in a row.
template <class T>
void rank_row(const Operands& operands, int input, int64_t row, RankedRow& target) {
  const Operands one{operands.inputs + input, 1, operands.base, operands.first, operands.policy};
  const int64_t columns = operands.program->columns;
  Arena arena(target.work);
  Staged<T> staged(one, arena);
  Bits<T>* keys = arena.take<Bits<T>>(size_t(columns));
  int64_t ignored[2];
  for (int64_t done = 0; done < columns; done += kStage) {
    const int n = int(columns - done < kStage ? columns - done : kStage);
    staged.load(one, nullptr, row * columns + done, n, ignored);
    for (int j = 0; j < n; ++j) keys[done + j] = magnitude_key(staged.d[0][j]);
  }
  rank_keys<T>(keys, columns, static_cast<T*>(target.ranks), arena);
  target.row = row;
}
