// Ranks of magnitudes within a row (csrc/ops/select.h defines them), for the instruction RANK of programs.
//
// A row is sorted with one stable counting pass over bins of keys, then by insertion within each bin. Deltas of 16-bit
// weights repeat few values. Equal keys need no more than to stay in order, so insertion has little to do. A bin of
// many different keys is sorted by their bytes first. Sorting costs more than deciding a rank mask (by_rank.inl); only
// expressions that need all exact ranks pay for it.

template <class Key>
struct Ranked {
  Key key_;
  uint32_t column_;

  WM_FN Ranked of(Key key, int64_t column) { return {key, uint32_t(column)}; }
  Key key() const { return key_; }
  uint32_t column() const { return column_; }
  bool above(const Ranked& other) const { return key_ > other.key_; }
};
// Key and column are one word, stored and loaded at once. A load of a word stored in halves would wait for both stores.
template <>
struct Ranked<uint32_t> {
  uint64_t word;

  WM_FN Ranked of(uint32_t key, int64_t column) { return {uint64_t(key) << 32 | uint32_t(column)}; }
  uint32_t key() const { return uint32_t(word >> 32); }
  uint32_t column() const { return uint32_t(word); }
  bool above(const Ranked& other) const { return word > other.word; }  // equal keys come in the order of columns
};

constexpr int64_t kFew = 64;  // entries that insertion sorts

// Insertion. The entry before the first one must not be above any.
template <class Key>
void sort_few(Ranked<Key>* entries, int64_t count) {
  for (int64_t i = 1; i < count; ++i) {
    const Ranked<Key> entry = entries[i];
    if (!entries[i - 1].above(entry)) continue;
    int64_t at = i;
    do {
      entries[at] = entries[at - 1];
      --at;
    } while (entries[at - 1].above(entry));
    entries[at] = entry;
  }
}

static inline int bit_width(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// A stable sort: by the highest byte that differs among the keys, then by the next.
template <class Key>
void sort_many(Ranked<Key>* entries, int64_t count, Ranked<Key>* spare) {
  Key low = entries[0].key(), high = low;
  for (int64_t i = 1; i < count; ++i) {
    const Key key = entries[i].key();
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  if (low == high) return;
  const int width = bit_width(high - low), shift = width > 8 ? width - 8 : 0;
  uint32_t ends[257] = {0};
  for (int64_t i = 0; i < count; ++i) ++ends[((entries[i].key() - low) >> shift) + 1];
  for (int b = 0; b < 256; ++b) ends[b + 1] += ends[b];
  for (int64_t i = 0; i < count; ++i) spare[ends[(entries[i].key() - low) >> shift]++] = entries[i];
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

// The bins of the first pass. 0 has a bin of its own, because training leaves many elements unchanged. The bins above
// it cover the octaves just below the largest key, where nearly all other keys are.
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
  uint32_t of(Bits<T> key) const {
    const Bits<T> above = (key > floor ? key : floor) - floor;
    return uint32_t(above >> shift) + (key != 0);
  }
};

// ranks[j] of (count,) keys. Both halves of a row are counted and placed side by side, each with its own ends of the
// bins: an increment need not wait for the one before. For bf16 deltas in rows of 896 and 4864 that takes 3.1 and 2.4
// ns per element, against 5.4 and 5.2 ns in one chain.
template <class T>
void rank_keys(const Bits<T>* __restrict keys, int64_t count, T* __restrict ranks, Arena& arena) {
  using Key = Bits<T>;
  Key below = ~Key(0), high = 0;  // one below the least key that is not 0; 0 - 1 wraps around
  for (int64_t j = 0; j < count; ++j) {
    const Key key = keys[j], one_below = key - 1;
    below = one_below < below ? one_below : below;
    high = key > high ? key : high;
  }
  const RankBins<T> bins(high ? below + 1 : 0, high, count);
  uint16_t* __restrict bin = arena.take<uint16_t>(size_t(count));
  for (int64_t j = 0; j < count; ++j) bin[j] = uint16_t(bins.of(keys[j]));

  uint32_t* ends = arena.take<uint32_t>(2 * kRankBins);
  uint32_t* second_ends = ends + bins.bins;
  for (int b = 0; b < 2 * bins.bins; ++b) ends[b] = 0;
  const int64_t half = count / 2;
  for (int64_t j = 0; j < half; ++j) ++ends[bin[j]], ++second_ends[bin[half + j]];
  if (count % 2) ++second_ends[bin[count - 1]];
  uint32_t total = 0;
  bool many = false;
  for (int b = 0; b < bins.bins; ++b) {
    const uint32_t first = ends[b], both = first + second_ends[b];
    many |= both > kFew;
    ends[b] = total;
    second_ends[b] = total + first;
    total += both;
  }

  Ranked<Key>* entries = arena.take<Ranked<Key>>(size_t(count) + 1);
  *entries++ = Ranked<Key>::of(0, 0);
  const auto place = [&](uint32_t* of, int64_t j) { entries[of[bin[j]]++] = Ranked<Key>::of(keys[j], j); };
  for (int64_t j = 0; j < half; ++j) place(ends, j), place(second_ends, half + j);
  if (count % 2) place(second_ends, count - 1);
  if (many) {
    Ranked<Key>* spare = arena.take<Ranked<Key>>(size_t(count));
    for (int64_t b = 0, begin = 0; b < bins.bins; begin = second_ends[b++])
      if (second_ends[b] - begin > kFew) sort_many(entries + begin, second_ends[b] - begin, spare);
  }
  sort_few(entries, count);
  for (int64_t i = 0; i < count; ++i) ranks[entries[i].column()] = T(i);
}

// Ranks the deltas of one input in a row.
template <class T>
void rank_row(const Operands& operands, int input, int64_t row, RankedRow& target) {
  const Operands one{operands.inputs + input, 1, operands.base, operands.first, operands.policy};
  const int64_t columns = operands.program->columns;
  Arena arena(target.work);
  Staged<T> staged(one, arena);
  Bits<T>* keys = arena.take<Bits<T>>(size_t(columns));
  int64_t ignored[2] = {0, 0};
  for (int64_t done = 0; done < columns; done += kStage) {
    const int n = int(columns - done < kStage ? columns - done : kStage);
    staged.load(one, nullptr, row * columns + done, n, ignored);
    for (int j = 0; j < n; ++j) keys[done + j] = magnitude_key(staged.d[0][j]);
  }
  rank_keys<T>(keys, columns, static_cast<T*>(target.ranks), arena);
  target.row = row;
}
