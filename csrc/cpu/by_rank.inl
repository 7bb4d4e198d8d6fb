// Decisions of a rank mask: one bit for each element of a tile (by_rank.h).
//
// A row is not sorted. Most draws decide alone: they are below the cuts of all ranks, or above all of them. For most
// other elements bounds of the rank are enough. One counting pass over bins of magnitude keys gives the bounds,
// separately for each quarter of the row. About one element in two hundred stays open, and its rank is counted.
// Elements that are 0 are not looked at: kept or dropped, they are 0.
//
// With AVX-512, groups of 16 float32 elements are decided at once. The scalar code beside it makes the same decisions.

constexpr int kQuarters = 4;
constexpr int kGroup = 16;  // elements worked on at once; a group begins at a multiple of it in the flat tensor

// Decides the rows of one model's deltas, one after the other.
template <class T>
class RowDecisions {
  using Key = Bits<T>;

 public:
  RowDecisions(const Operands& operands, const Mask& rule, int64_t begin, int64_t end, Arena& arena)
      : operands_(operands),
        rule_(rule),
        ramp_{T(rule.low), T(rule.step)},
        columns_(rule.columns),
        begin_(begin),
        end_(end),
        drawn_(begin),
        first_drawn_(begin),
        staged_(operands, arena) {
    const size_t room = size_t(columns_) + 3 * kGroup;
    keys_ = arena.take<Key>(room);
    nonzero_ = arena.take<Key>(room);
    step_ = arena.take<uint16_t>(room);
    open_keys_ = arena.take<Key>(room);
    open_draws_ = arena.take<uint32_t>(room);
    open_places_ = arena.take<uint32_t>(room);
    kept_ = arena.take<uint16_t>(room / kGroup + 8);
    sure_ = arena.take<uint16_t>(room / kGroup + 8);
    open_ = arena.take<uint16_t>(room / kGroup + 8);
    lanes_ = arena.take<uint16_t>(size_t(columns_) + 3 * kStage);
    counts_ = arena.take<uint32_t>(kQuarters * kMostSteps);
    lower_ = arena.take<uint32_t>(kQuarters * kMostSteps);
    upper_ = arena.take<uint32_t>(kQuarters * kMostSteps);
  }

  // `bits`: the bits of the elements from begin_ on, all 0 before.
  void decide(int64_t row, uint8_t* bits) {
    load(row);
    if (count_ == 0) return;
    draw_row();
    count_steps();
    settle(bits);
  }

 private:
  // Loads the magnitude keys of the row. Place 0 is a multiple of kGroup in the flat tensor; the row begins at place
  // pad_.
  void load(int64_t row) {
    first_ = row * columns_;
    pad_ = int(first_ % kGroup);
    places_ = (pad_ + columns_ + kGroup - 1) / kGroup * kGroup;
    quarter_ = (places_ / kQuarters + kGroup - 1) / kGroup * kGroup;
    for (int j = 0; j < kGroup; ++j) keys_[j] = keys_[places_ - 1 - j] = 0;
    int64_t ignored[2] = {0, 0};
    for (int64_t done = 0; done < columns_; done += kStage) {
      const int n = int(columns_ - done < kStage ? columns_ - done : kStage);
      staged_.load(operands_, nullptr, first_ + done, n, ignored);
      copy_keys(staged_.d[0], n, keys_ + pad_ + done);
    }
    count_ = 0;
    for (int q = 0; q < kQuarters; ++q) {
      starts_[q] = count_;
      const int64_t from = q * quarter_, left = places_ - from;
      if (left > 0) count_ += take_nonzero(keys_ + from, left < quarter_ ? left : quarter_, nonzero_ + count_);
    }
    starts_[kQuarters] = count_;
    zeros_ = columns_ - count_;
  }

  static int64_t take_nonzero(const Key* keys, int64_t count, Key* out) {
    Key* next = out;
#if defined(__AVX512F__)
    if constexpr (sizeof(Key) == 4) {
      for (int64_t j = 0; j < count; j += kGroup) {
        const __m512i key = _mm512_loadu_si512(keys + j);
        const __mmask16 some = _mm512_test_epi32_mask(key, key);
        _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(some, key));
        next += __builtin_popcount(_cvtmask16_u32(some));
      }
      return next - out;
    }
#endif
    for (int64_t j = 0; j < count; ++j) {
      *next = keys[j];
      next += keys[j] != 0;
    }
    return next - out;
  }

  // Makes the draws of the row's elements within [begin_, end_), a stage at a time. The next row uses what is left
  // over.
  void draw_row() {
    const int64_t from = first_ - pad_ > begin_ ? first_ - pad_ : begin_;
    const int64_t until = first_ + columns_ < end_ ? first_ + columns_ : end_;
    if (from > drawn_) {
      first_drawn_ = drawn_ = from - (from - begin_) % kStage;
    } else {
      __builtin_memmove(lanes_, lanes_ + (from - first_drawn_), size_t(drawn_ - from) * sizeof(*lanes_));
      first_drawn_ = from;
    }
    for (; drawn_ < until; drawn_ += kStage) draw(rule_.key, drawn_, lanes_ + (drawn_ - first_drawn_));
  }

  // Counts the keys of each step and quarter, and makes bounds of ranks of the counts: `lower_` is the lowest rank,
  // `upper_` is one above the highest.
  void count_steps() {
    Key low = ~Key(0), high = 0;
    for (int64_t i = 0; i < count_; ++i) {
      low = nonzero_[i] < low ? nonzero_[i] : low;
      high = nonzero_[i] > high ? nonzero_[i] : high;
    }
    steps_ = KeySteps<T>(low, high, columns_ > 2048 ? kMostSteps : columns_ > 64 ? kMostSteps / 4 : kMostSteps / 16);
    const KeySteps<T> steps = steps_;
    for (int64_t i = 0; i < count_; ++i) step_[i] = uint16_t(kQuarters * steps.of(nonzero_[i]));

    const int entries = (kQuarters * steps.count + kGroup - 1) / kGroup * kGroup;
    for (int i = 0; i < entries; ++i) counts_[i] = 0;
    int64_t least = count_;
    for (int q = 0; q < kQuarters; ++q) {
      const int64_t size = starts_[q + 1] - starts_[q];
      least = size < least ? size : least;
    }
    static_assert(kQuarters == 4, "counted side by side");
    const uint16_t *a = step_ + starts_[0], *b = step_ + starts_[1], *c = step_ + starts_[2], *d = step_ + starts_[3];
    for (int64_t i = 0; i < least; ++i) ++counts_[a[i]], ++counts_[b[i] + 1], ++counts_[c[i] + 2], ++counts_[d[i] + 3];
    for (int q = 0; q < kQuarters; ++q)
      for (int64_t i = starts_[q] + least; i < starts_[q + 1]; ++i) ++counts_[step_[i] + q];
    running_sums(counts_, entries, uint32_t(zeros_), lower_, upper_);
  }

  void settle(uint8_t* bits) {
    const uint32_t low = uint32_t(ramp_cut(ramp_, T(zeros_))), high = uint32_t(ramp_cut(ramp_, T(columns_ - 1)));
    const int64_t origin = first_ - pad_;  // the element at place 0
    const int64_t from = origin > begin_ ? 0 : begin_ - origin;
    const int64_t to = origin + places_ < end_ ? places_ : (end_ - origin + kGroup - 1) / kGroup * kGroup;
    int64_t opened = 0, place = from;
    for (int q = 0; q < kQuarters; ++q) {
      const int64_t started = opened, stop = (q + 1) * quarter_ < to ? (q + 1) * quarter_ : to;
      for (; place < stop; place += kGroup)
        opened += open(keys_ + place, lanes_ + (origin + place - first_drawn_), low, high, uint32_t(place), opened);
      for (int64_t i = started / kGroup; i <= opened / kGroup; ++i)
        if (i > started / kGroup || started % kGroup == 0) kept_[i] = 0;
      for (int64_t i = started; i < opened; i = i / kGroup * kGroup + kGroup) close(i, opened, q);
    }
    write(from, to, origin, bits);
  }

  // Divides a group of places into elements that are kept whatever their rank, elements that are dropped, and open
  // elements, whose rank decides. Lists the open elements and returns their number.
  int open(const Key* keys, const uint16_t* lanes, uint32_t low, uint32_t high, uint32_t place, int64_t at) {
    const uint32_t group = place / kGroup;
#if defined(__AVX512F__)
    if constexpr (sizeof(Key) == 4) {
      const __m512i key = _mm512_loadu_si512(keys);
      const __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
      const __mmask16 some = _mm512_test_epi32_mask(key, key);
      const __mmask16 sure = _mm512_mask_cmplt_epu32_mask(some, u, _mm512_set1_epi32(int(low)));
      const __mmask16 open = _mm512_mask_cmplt_epu32_mask(_kandn_mask16(sure, some), u, _mm512_set1_epi32(int(high)));
      const __m512i where = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(int(place)));
      _mm512_storeu_si512(open_keys_ + at, _mm512_maskz_compress_epi32(open, key));
      _mm512_storeu_si512(open_draws_ + at, _mm512_maskz_compress_epi32(open, u));
      _mm512_storeu_si512(open_places_ + at, _mm512_maskz_compress_epi32(open, where));
      sure_[group] = uint16_t(_cvtmask16_u32(sure));
      open_[group] = uint16_t(_cvtmask16_u32(open));
      return __builtin_popcount(_cvtmask16_u32(open));
    }
#endif
    uint32_t sure = 0, open = 0;
    int count = 0;
    for (int j = 0; j < kGroup; ++j) {
      const uint32_t u = lanes[j];
      const bool some = keys[j] != 0, is_sure = some && u < low, is_open = some && !is_sure && u < high;
      sure |= uint32_t(is_sure) << j;
      open |= uint32_t(is_open) << j;
      open_keys_[at + count] = keys[j];
      open_draws_[at + count] = u;
      open_places_[at + count] = place + uint32_t(j);
      count += is_open;
    }
    sure_[group] = uint16_t(sure);
    open_[group] = uint16_t(open);
    return count;
  }

  // Decides the open elements from number `at` on, up to the next multiple of kGroup or `end`. All are in quarter q.
  void close(int64_t at, int64_t end, int q) {
    const int64_t start = at / kGroup * kGroup;
    const int64_t stop = start + kGroup < end ? start + kGroup : end;
    uint32_t kept = 0, unsettled = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(Key) == 4) {
      const __m512i key = _mm512_loadu_si512(open_keys_ + start);
      const __m128i shift = _mm_cvtsi32_si128(steps_.shift);
      const __m512i inside = _mm512_max_epu32(key, _mm512_set1_epi32(int(steps_.below)));
      const __m512i ceiling = _mm512_add_epi32(inside, _mm512_set1_epi32(int((Key(1) << steps_.shift) - 1)));
      const __m512i step =
          _mm512_sub_epi32(_mm512_add_epi32(_mm512_srl_epi32(inside, shift), _mm512_srl_epi32(ceiling, shift)),
                           _mm512_set1_epi32(int(2 * steps_.first - 1)));
      const __mmask16 mask = __mmask16((0xffffu >> (kGroup - (stop - start))) & (0xffffu << (at - start)));
      const __mmask16 one_key = _mm512_test_epi32_mask(step, _mm512_set1_epi32(1));
      const __m512i entry = _mm512_slli_epi32(step, 2), zero = _mm512_setzero_si512();
      const __m512i first = _mm512_mask_add_epi32(entry, one_key, entry, _mm512_set1_epi32(q));
      const __m512i last = _mm512_add_epi32(entry, _mm512_mask_set1_epi32(_mm512_set1_epi32(3), one_key, q));
      const __m512i least = _mm512_mask_i32gather_epi32(zero, mask, first, lower_, 4);
      const __m512i past = _mm512_mask_i32gather_epi32(zero, mask, last, upper_, 4);
      const __m512 u = _mm512_cvtepu32_ps(_mm512_loadu_si512(open_draws_ + start));
      const __mmask16 low = _mm512_mask_cmp_ps_mask(mask, u, cuts(least), _CMP_LT_OQ);
      const __mmask16 high =
          _mm512_mask_cmp_ps_mask(mask, u, cuts(_mm512_sub_epi32(past, _mm512_set1_epi32(1))), _CMP_LT_OQ);
      kept = _cvtmask16_u32(low);
      unsettled = _cvtmask16_u32(_kandn_mask16(low, high));
    } else
#endif
      for (int64_t i = at; i < stop; ++i) {
        const uint32_t step = steps_.of(open_keys_[i]), bit = 1u << (i - start);
        const bool one_key = KeySteps<T>::one_key(step);
        const T u = T(open_draws_[i]);
        if (u < ramp_cut(ramp_, T(lower_[kQuarters * step + (one_key ? q : 0)])))
          kept |= bit;
        else if (u < ramp_cut(ramp_, T(upper_[kQuarters * step + (one_key ? q : 3)] - 1)))
          unsettled |= bit;
      }
    for (; unsettled; unsettled &= unsettled - 1) {
      const int64_t i = start + __builtin_ctz(unsettled);
      if (T(open_draws_[i]) < ramp_cut(ramp_, T(rank_of(open_keys_[i], open_places_[i], q))))
        kept |= unsettled & -unsettled;
    }
    kept_[start / kGroup] = uint16_t(kept_[start / kGroup] | kept);
  }

#if defined(__AVX512F__)
  __m512 cuts(__m512i ranks) const {
    const __m512 big = _mm512_set1_ps(ExponentField<float>::big);
    const __m512 share = _mm512_add_ps(_mm512_set1_ps(float(ramp_.low)),
                                       _mm512_mul_ps(_mm512_cvtepu32_ps(ranks), _mm512_set1_ps(float(ramp_.step))));
    const __m512 whole = _mm512_sub_ps(_mm512_add_ps(share, big), big);
    return _mm512_min_ps(_mm512_max_ps(whole, _mm512_set1_ps(1.0f)), _mm512_set1_ps(65535.0f));
  }
#endif

  int64_t rank_of(Key key, int64_t place, int q) const {
    const uint32_t step = steps_.of(key);
    if (KeySteps<T>::one_key(step))
      return lower_[kQuarters * step + uint32_t(q)] + equal(keys_ + q * quarter_, keys_ + place, key);
    uint32_t below = 0;
    for (int64_t i = 0; i < count_; ++i) below += nonzero_[i] < key;
    return zeros_ + below + equal(keys_ + pad_, keys_ + place, key);
  }

  static uint32_t equal(const Key* from, const Key* to, Key key) {
    uint32_t total = 0;
    for (int64_t j = 0; j < to - from; ++j) total += from[j] == key;
    return total;
  }

  void write(int64_t from, int64_t to, int64_t origin, uint8_t* bits) {
    int64_t at = 0;
    uint8_t* target = bits + (origin + from - begin_) / 8;
    for (int64_t group = from / kGroup; group < to / kGroup; ++group, target += 2) {
      uint32_t stream, word = sure_[group];
      __builtin_memcpy(&stream, reinterpret_cast<const char*>(kept_) + at / 8, sizeof(stream));
      stream >>= at % 8;
      uint32_t open = open_[group];
      at += __builtin_popcount(open);
#if defined(__BMI2__)
      word |= _pdep_u32(stream, open);
#else
      for (; open; open &= open - 1, stream >>= 1)
        if (stream & 1) word |= open & -open;
#endif
      target[0] = uint8_t(target[0] | word);
      target[1] = uint8_t(target[1] | word >> 8);
    }
  }

  const Operands& operands_;
  const Mask& rule_;
  const Ramp<T> ramp_;
  const int64_t columns_, begin_, end_;
  int64_t drawn_, first_drawn_;  // there are draws of the elements from first_drawn_ to drawn_
  Staged<T> staged_;
  KeySteps<T> steps_;
  int64_t first_ = 0, places_ = 0, quarter_ = 0, count_ = 0, zeros_ = 0;
  int64_t starts_[kQuarters + 1];
  int pad_ = 0;
  Key *keys_, *nonzero_, *open_keys_;
  uint16_t *step_, *kept_, *sure_, *open_, *lanes_;
  uint32_t *open_draws_, *open_places_, *counts_, *lower_, *upper_;
};

// Sets the bits of the elements [begin, begin + count), all 0 before; `begin` is a multiple of kStage. Rows that reach
// beyond the range are loaded whole.
template <class T>
void decide_by_rank(const Operands& operands, int model, const Mask& rule, int64_t begin, int64_t count, uint8_t* bits,
                    void* work) {
  if (count == 0) return;
  const Operands one{operands.inputs + model, 1, operands.base, operands.first, operands.policy};
  Arena arena(work);
  RowDecisions<T> rows(one, rule, begin, begin + count, arena);
  const int64_t last = (begin + count - 1) / rule.columns;
  for (int64_t row = begin / rule.columns; row <= last; ++row) rows.decide(row, bits);
}
