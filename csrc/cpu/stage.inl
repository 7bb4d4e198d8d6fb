// Staging: up to kStage elements of every input, widened to the compute type, side by side in L1. The arithmetic that
// follows sees plain arrays of T whatever the storage types are.

class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}
  template <class U>
  U* take(size_t count) {
    next_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(next_) + 63) & ~uintptr_t(63));
    U* result = reinterpret_cast<U*>(next_);
    next_ += count * sizeof(U);
    return result;
  }

 private:
  char* next_;
};

// Widens `count` elements and returns the largest magnitude key among them (infinity or above: not all finite).
template <class D, class T>
Bits<T> widen_all(const char* __restrict source, T* __restrict out, int count) {
  Bits<T> top = 0;
  for (int j = 0; j < count; ++j) {
    D stored;
    __builtin_memcpy(&stored, source + j * sizeof(D), sizeof(D));
    const T x = T(widen(stored));
    const Bits<T> key = magnitude_key(x);
    top = key > top ? key : top;
    out[j] = x;
  }
  return top;
}

template <class T>
Bits<T> widen_source(const Source& source, int64_t begin, int count, T* out) {
  const char* data = static_cast<const char*>(source.data) + begin * itemsize(source.dtype);
  return visit(source.dtype, [&](auto tag) { return widen_all<decltype(tag), T>(data, out, count); });
}

template <class D, class T>
void narrow_all(const T* __restrict in, char* __restrict target, int count) {
  for (int j = 0; j < count; ++j) {
    const D stored = Narrow<D>::from(in[j]);
    __builtin_memcpy(target + j * sizeof(D), &stored, sizeof(D));
  }
}

template <class T>
void narrow_into(const T* in, Dtype dtype, void* target, int64_t begin, int count) {
  char* out = static_cast<char*>(target) + begin * itemsize(dtype);
  visit(dtype, [&](auto tag) { narrow_all<decltype(tag), T>(in, out, count); });
}

template <class T>
int64_t count_nonfinite(const T* x, int count) {
  int64_t total = 0;
  for (int j = 0; j < count; ++j) total += !is_finite(x[j]);
  return total;
}

// All inputs and the base of one stage.
template <class T>
struct Staged {
  T** x;    // one array per model; shared scratch, overwritten by every call
  T* base;  // zeros if there is none
  bool finite;

  Staged(const Operands& operands, Arena& arena) : x(arena.take<T*>(operands.models)), base(arena.take<T>(kStage)) {
    for (int k = 0; k < operands.models; ++k) x[k] = arena.take<T>(kStage);
    if (!operands.base)
      for (int j = 0; j < kStage; ++j) base[j] = T(0);
  }

  void load(const Operands& operands, int64_t begin, int count, int64_t* nonfinite) {
    finite = true;
    for (int k = 0; k < operands.models; ++k) load_one(operands.inputs[k], begin, count, x[k], nonfinite[k]);
    if (operands.base) load_one(*operands.base, begin, count, base, nonfinite[operands.models]);
  }

  // Turns every x[k] into its delta, with the policy for values that are not finite applied.
  void subtract_base(const Operands& operands, int count) {
    for (int k = 0; k < operands.models; ++k) subtract(operands, x[k], base, finite, count);
  }

  static void subtract(const Operands& operands, T* __restrict x, const T* __restrict base, bool finite, int count) {
    if (operands.base)
      for (int j = 0; j < count; ++j) x[j] = x[j] - base[j];
    if (!finite)
      for (int j = 0; j < count; ++j) x[j] = settle_nonfinite(x[j], operands.policy);
  }

 private:
  void load_one(const Source& source, int64_t begin, int count, T* out, int64_t& nonfinite) {
    if (widen_source(source, begin, count, out) >= FloatTraits<T>::infinity) {
      nonfinite += count_nonfinite(out, count);
      finite = false;
    }
  }
};

// 16-bit decisions for a stage of elements from flat index `begin` on, a multiple of kPhiloxLanes. Round by round over
// all counters: so the multiplications vectorise.
static void draw(uint64_t seed, int64_t begin, uint16_t* __restrict lanes) {
  constexpr int kCalls = kStage / kPhiloxLanes;
  uint32_t c0[kCalls], c1[kCalls], c2[kCalls], c3[kCalls];
  const uint64_t first = uint64_t(begin / kPhiloxLanes);
  for (int i = 0; i < kCalls; ++i) {
    c0[i] = uint32_t(first + uint64_t(i));
    c1[i] = uint32_t((first + uint64_t(i)) >> 32);
    c2[i] = c3[i] = 0;
  }
  PhiloxKey key{uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < kPhiloxRounds; ++round, key = philox_next(key))
    for (int i = 0; i < kCalls; ++i) philox_round(c0[i], c1[i], c2[i], c3[i], key);
  for (int i = 0; i < kCalls; ++i) {
    const uint32_t word[4] = {c0[i], c1[i], c2[i], c3[i]};
    __builtin_memcpy(lanes + i * kPhiloxLanes, word, sizeof(word));  // little-endian: the low half is the first lane
  }
}

// Zeroes what `keep` drops from one staged delta.
template <class T>
void drop(const Keep& keep, int64_t begin, int count, T* __restrict d, uint16_t* __restrict lanes) {
  if (keep.random) {
    draw(keep.key, begin, lanes);
    const uint32_t cut = keep.cut;
    for (int j = 0; j < count; ++j) d[j] = lanes[j] < cut ? d[j] : T(0);
    return;
  }
  int done = 0;
  while (done < count) {
    // At most two runs: before tie_end and from it on.
    const int64_t left = keep.tie_end - (begin + done);
    const int run = left > 0 && left < count - done ? int(left) : count - done;
    const uint64_t lowest = lowest_kept_key(keep, begin + done);
    const bool none = lowest > FloatTraits<T>::magnitude;
    const Bits<T> low = Bits<T>(none ? 0 : lowest);
    T* __restrict part = d + done;
    if (none)
      for (int j = 0; j < run; ++j) part[j] = T(0);
    else if (low > 0)
      for (int j = 0; j < run; ++j) part[j] = magnitude_key(part[j]) >= low ? part[j] : T(0);
    done += run;
  }
}
