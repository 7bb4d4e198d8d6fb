// Staging: up to kStage elements of every input, widened to the compute type, side by side in L1.
//
// The arithmetic that follows sees plain arrays of T, whatever the storage types are. So a kernel is compiled once for
// each compute type, not for each mixture of storage types. In exchange each element is stored in L1 and loaded again.
// Deltas and masks are made while inputs are loaded. Elements that are not finite are rare: the fast path only notices
// them, and a slow path settles them.

class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}
  template <class U>
  U* take(size_t count) {
    next_ = reinterpret_cast<char*>(((reinterpret_cast<uintptr_t>(next_) + 63) & ~uintptr_t(63)));
    U* result = reinterpret_cast<U*>(next_);
    next_ += count * sizeof(U);
    return result;
  }

 private:
  char* next_;
};

template <class D, class T>
WM_FN T widened(const char* source, int j) {
  D stored;
  __builtin_memcpy(&stored, source + j * sizeof(D), sizeof(D));
  return T(widen(stored));
}

static inline const char* element(const Source& source, int64_t index) {
  return static_cast<const char*>(source.data) + index * itemsize(source.dtype);
}

template <class D, class T>
void widen_all(const char* __restrict source, T* __restrict out, int count) {
  for (int j = 0; j < count; ++j) out[j] = widened<D, T>(source, j);
}

template <class T>
void widen_source(const Source& source, int64_t begin, int count, T* out) {
  visit(source.dtype, [&](auto tag) { widen_all<decltype(tag), T>(element(source, begin), out, count); });
}

// The three forms of a mask, applied to the delta at position j of a stage.
struct KeepAny {
  template <class T>
  WM_FN T apply(const KeepAny&, T d, int) {
    return d;
  }
};
template <class T>
struct KeepFrom {
  Bits<T> low;
  WM_FN T apply(const KeepFrom& keep, T d, int) { return magnitude_key(d) >= keep.low ? d : T(0); }
};
struct KeepLanes {
  const uint16_t* __restrict lanes;
  uint32_t cut;
  template <class T>
  WM_FN T apply(const KeepLanes& keep, T d, int j) {
    return keep.lanes[j] < keep.cut ? d : T(0);
  }
};

// Turns the decisions of a rank mask into lanes for KeepLanes with a cut of 1.
static void lanes_of_bits(const uint8_t* __restrict bits, int count, uint16_t* __restrict lanes) {
#if defined(__AVX512BW__)
  for (int j = 0; j < count; j += 32) {
    uint32_t kept;
    __builtin_memcpy(&kept, bits + j / 8, sizeof(kept));
    _mm512_storeu_si512(lanes + j, _mm512_movm_epi16(~kept));
  }
#else
  for (int j = 0; j < count; j += 8)
    for (int i = 0; i < 8; ++i) lanes[j + i] = !(bits[j / 8] >> i & 1);
#endif
}

// Writes the deltas of `count` elements; dropped ones are 0. Returns the largest magnitude key among all deltas:
// infinity or above means that some input is not finite (or that a difference overflowed).
template <class D, class T, class K>
Bits<T> load_deltas(const char* __restrict source, const T* __restrict base, const K keep, T* __restrict out,
                    int count) {
  Bits<T> top = 0;
  for (int j = 0; j < count; ++j) {
    const T d = widened<D, T>(source, j) - base[j];
    const Bits<T> key = magnitude_key(d);
    top = key > top ? key : top;
    out[j] = K::apply(keep, d, j);
  }
  return top;
}

// Returns the largest magnitude key, to be compared with overflow_key: one more instruction for a vector.
template <class D, class T>
Bits<T> round_all(const T* __restrict in, char* __restrict target, int count) {
  Bits<T> top = 0;
  for (int j = 0; j < count; ++j) {
    const D stored = RoundTo<D>::from(in[j]);
    __builtin_memcpy(target + j * sizeof(D), &stored, sizeof(D));
    const Bits<T> key = magnitude_key(in[j]);
    top = key > top ? key : top;
  }
  return top;
}

template <class T>
Bits<T> round_into(const T* in, Dtype dtype, char* target, int count) {
  return visit(dtype, [&](auto tag) { return round_all<decltype(tag), T>(in, target, count); });
}

static inline char* element(void* output, Dtype dtype, int64_t index) {
  return static_cast<char*>(output) + index * itemsize(dtype);
}

template <class T>
void copy_keys(const T* __restrict d, int count, Bits<T>* __restrict out) {
  for (int j = 0; j < count; ++j) out[j] = magnitude_key(d[j]);
}

template <class T>
int64_t count_nonfinite(const T* x, int count) {
  int64_t total = 0;
  for (int j = 0; j < count; ++j) total += !is_finite(x[j]);
  return total;
}

template <class T, class K>
void drop_all(const T* __restrict d, const K keep, T* __restrict out, int count) {
  for (int j = 0; j < count; ++j) out[j] = K::apply(keep, d[j], j);
}

// Operands for sums of finite elements: one NaN that propagates must not turn the sum of a tensor into NaN. A formula
// takes its inputs as they are; there the values are checked.
static inline Operands over_finite(Operands operands) {
  if (!operands.program) operands.policy = Nonfinite::base;
  return operands;
}

// All deltas of one stage, side by side; elements that `keep` drops are 0. Without a base the deltas are the inputs
// themselves: x - 0 is x, bit for bit.
template <class T>
struct Staged {
  T** d;    // one array per model; shared scratch, overwritten by every call
  T* base;  // zeros if there is none
  uint16_t* lanes;

  Staged(const Operands& operands, Arena& arena)
      : d(arena.take<T*>(operands.models)), base(arena.take<T>(kStage)), lanes(arena.take<uint16_t>(kStage)) {
    for (int k = 0; k < operands.models; ++k) d[k] = arena.take<T>(kStage);
    if (!operands.base)
      for (int j = 0; j < kStage; ++j) base[j] = T(0);
  }

  // `keep`: one mask per model, or null to keep all. Returns whether all elements were finite.
  bool load(const Operands& operands, const Mask* keep, int64_t begin, int count, int64_t* nonfinite) {
    if (operands.base) widen_source(*operands.base, begin - operands.first, count, base);
    Bits<T> top = 0;
    for (int k = 0; k < operands.models; ++k) {
      const Bits<T> key =
          load_model(operands.inputs[k], keep ? keep + k : nullptr, begin, begin - operands.first, count, d[k]);
      top = key > top ? key : top;
    }
    if (top < FloatTraits<T>::infinity) return true;
    load_nonfinite(operands, keep, begin, count, nonfinite);
    return false;
  }

  // Rounds the results of the loaded stage to `target`. Those that the dtype cannot hold are settled by policy, and
  // counted behind the inputs and the base.
  void finish(const Operands& operands, int64_t begin, int count, T* results, Dtype dtype, char* target,
              int64_t* nonfinite) {
    const Bits<T> limit = overflow_key<T>(dtype);
    if (round_into(results, dtype, target, count) < limit) return;
    nonfinite[operands.models + 1] += settle_results(operands, begin, count, limit, results);
    round_into(results, dtype, target, count);
  }

  // Copies a loaded delta. Elements that `keep` drops become 0.
  void drop(const Mask& keep, int64_t begin, int count, const T* delta, T* out) {
    if (by_lanes(keep)) {
      drop_all(delta, drawn(keep, begin, count), out, count);
    } else {
      by_threshold(keep, begin, count,
                   [&](int done, int run, auto rule) { drop_all(delta + done, rule, out + done, run); });
    }
  }

  // Calls body(first, count, rule) for the elements before tie_end and for those from it on: at most two runs.
  template <class Body>
  static void by_threshold(const Mask& keep, int64_t begin, int count, Body&& body) {
    for (int done = 0; done < count;) {
      const int64_t left = keep.tie_end - (begin + done);
      const int run = left > 0 && left < count - done ? int(left) : count - done;
      const uint64_t lowest = lowest_kept_key(keep, begin + done);
      // No finite delta has the key of all ones: that threshold keeps nothing.
      const Bits<T> low = lowest > FloatTraits<T>::magnitude ? ~Bits<T>(0) : Bits<T>(lowest);
      if (low == 0)
        body(done, run, KeepAny{});
      else
        body(done, run, KeepFrom<T>{low});
      done += run;
    }
  }

 private:
  static bool by_lanes(const Mask& keep) { return keep.random || keep.columns; }

  // The decisions from element `begin` on, a multiple of kPhiloxLanes.
  KeepLanes drawn(const Mask& keep, int64_t begin, int count) {
    if (keep.random) {
      draw(keep.key, begin, lanes);
      return {lanes, keep.cut};
    }
    lanes_of_bits(keep.decided + begin / 8, count, lanes);
    return {lanes, 1};
  }

  template <class K>
  Bits<T> load_run(const Source& source, int64_t index, const T* from, const K& keep, T* out, int count) {
    return visit(source.dtype, [&](auto tag) {
      return load_deltas<decltype(tag), T>(element(source, index), from, keep, out, count);
    });
  }

  Bits<T> load_model(const Source& source, const Mask* keep, int64_t begin, int64_t at, int count, T* out) {
    if (!keep) return load_run(source, at, base, KeepAny{}, out, count);
    if (by_lanes(*keep)) return load_run(source, at, base, drawn(*keep, begin, count), out, count);
    Bits<T> top = 0;
    by_threshold(*keep, begin, count, [&](int done, int run, auto rule) {
      const Bits<T> key = load_run(source, at + done, base + done, rule, out + done, run);
      top = key > top ? key : top;
    });
    return top;
  }

  // The rare case: with the policy `base`, results that are not finite become the base's elements. Returns how many
  // there were of which all operands are finite.
  int64_t settle_results(const Operands& operands, int64_t begin, int count, Bits<T> limit, T* results) {
    bool sound[kStage];
    for (int j = 0; j < count; ++j) sound[j] = is_finite(base[j]);
    for (int k = 0; k < operands.models; ++k)
      visit(operands.inputs[k].dtype, [&](auto tag) {
        const char* from = element(operands.inputs[k], begin - operands.first);
        for (int j = 0; j < count; ++j) sound[j] &= is_finite(widened<decltype(tag), T>(from, j));
      });
    int64_t found = 0;
    for (int j = 0; j < count; ++j) {
      if (magnitude_key(results[j]) < limit) continue;
      found += sound[j];
      if (operands.base && operands.policy == Nonfinite::base) results[j] = base[j];
    }
    return found;
  }

  // The rare case: counts elements that are not finite, settles the deltas by policy, then applies the mask.
  void load_nonfinite(const Operands& operands, const Mask* keep, int64_t begin, int count, int64_t* nonfinite) {
    if (operands.base) nonfinite[operands.models] += count_nonfinite(base, count);
    for (int k = 0; k < operands.models; ++k) {
      T* out = d[k];
      widen_source(operands.inputs[k], begin - operands.first, count, out);
      nonfinite[k] += count_nonfinite(out, count);
      const bool random = keep && by_lanes(keep[k]);
      const uint32_t cut = random ? drawn(keep[k], begin, count).cut : 0;
      for (int j = 0; j < count; ++j) {
        const T delta = settle_nonfinite(out[j] - base[j], operands.policy);
        const bool kept =
            !keep || (random ? lanes[j] < cut : uint64_t(magnitude_key(delta)) >= lowest_kept_key(keep[k], begin + j));
        out[j] = kept ? delta : T(0);
      }
    }
  }
};
