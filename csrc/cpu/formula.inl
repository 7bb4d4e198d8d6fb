// The interpreter of programs. It carries out one instruction on a whole stage, then the next one.
//
// All operands of a stage are arrays in the first-level cache. So an instruction is decoded once for 512 elements, and
// interpreting costs little. In exchange each result is stored and loaded again. Each operation is a loop of its own,
// made from csrc/ops/formula.h by a template; compilers vectorise it. A pair of operations (formula.h) is one loop,
// too. A constant fills a strip of kStrip elements, which takes less of the cache than a stage.

template <class T>
struct Operand {
  T* at;
  int64_t step;  // ~0, or 0 for the one strip of a constant

  const T* strip(int64_t j) const { return at + (j & step); }
};

// Works on whole strips. Arrays of a stage have room for them, and results beyond `count` are never used. The target
// may be one of the operands.
template <FormulaOp kOp, class T>
void calculate_all(const Operand<T>& a, const Operand<T>& b, const Operand<T>& c, T* target, int count) {
  for (int j = 0; j < count; j += kStrip) {
    const T *x = a.strip(j), *y = b.strip(j), *z = c.strip(j);
    T* out = target + j;
#pragma GCC ivdep
    for (int i = 0; i < kStrip; ++i) out[i] = calculate<kOp>(x[i], y[i], z[i]);
  }
}

template <FormulaOp kOp, class T>
void calculate_function(const Operand<T>& a, const Operand<T>&, const Operand<T>&, T* target, int count) {
  for (int j = 0; j < count; j += kStrip) {
    const T* x = a.strip(j);
    T* out = target + j;
#pragma GCC ivdep
    for (int i = 0; i < kStrip; ++i) out[i] = function_of<kOp>(x[i]);
  }
}

template <FormulaOp kFirst, FormulaOp kSecond, bool kSwapped, class T>
void calculate_pairs(const Operand<T>& a, const Operand<T>& b, const Operand<T>& c, T* target, int count) {
  for (int j = 0; j < count; j += kStrip) {
    const T *x = a.strip(j), *y = b.strip(j), *z = c.strip(j);
    T* out = target + j;
#pragma GCC ivdep
    for (int i = 0; i < kStrip; ++i) {
      const T first = calculate<kFirst>(x[i], y[i], T(0));
      out[i] = kSwapped ? calculate<kSecond>(z[i], first, T(0)) : calculate<kSecond>(first, z[i], T(0));
    }
  }
}

template <class T>
using Calculation = void (*)(const Operand<T>& a, const Operand<T>& b, const Operand<T>& c, T* target, int count);

template <FormulaOp kFirst, FormulaOp... kSeconds, class T>
void find_pair(const Step& step, Calculation<T>& found) {
  ((step.then == kSeconds &&
    (found = step.swapped ? calculate_pairs<kFirst, kSeconds, true, T> : calculate_pairs<kFirst, kSeconds, false, T>)),
   ...);
}

// The operations that `begins_pair` and `ends_pair` (kernels.h) name.
template <FormulaOp... kFirsts, class T>
void find_pairs(const Step& step, Calculation<T>& found) {
  using Op = FormulaOp;
  ((step.op == kFirsts ? find_pair<kFirsts, Op::add, Op::sub, Op::mul, Op::min, Op::max, Op::lt, Op::le>(step, found)
                       : void()),
   ...);
}

// The loop of an instruction. Null for a skip, and for an instruction that depends on the element's place.
template <class T>
Calculation<T> calculation(const Step& step) {
  using Op = FormulaOp;
  Calculation<T> found = nullptr;
  if (step.op > Op::rank)
    visit_function(step.op, [&](auto one) { found = calculate_function<decltype(one)::op, T>; });
  else if (step.then == Op::keep)
    visit_calculation(step.op, [&](auto one) { found = calculate_all<decltype(one)::op, T>; });
  else
    find_pairs<Op::add, Op::sub, Op::mul, Op::min, Op::max, Op::abs>(step, found);
  return found;
}

template <class T>
bool none_is_0(const T* x, int count) {
  Bits<T> borrow = 0;  // only 0 - 1 sets the sign bit
  for (int j = 0; j < count; ++j) borrow |= magnitude_key(x[j]) - 1;
  return borrow <= FloatTraits<T>::magnitude;
}

template <class T>
class Evaluator {
 public:
  // Places the operands and fills in the constants. To be called once for each tile.
  void prepare(const Operands& operands, const Staged<T>& staged, Arena& arena) {
    program_ = operands.program;
    lanes_ = staged.lanes;
    const int first_constant = operands.models + 1 + program_->registers;
    operands_ = arena.take<Operand<T>>(size_t(first_constant + program_->constant_count));
    for (int k = 0; k < operands.models; ++k) operands_[k] = {staged.d[k], ~int64_t(0)};
    operands_[operands.models] = {staged.base, ~int64_t(0)};
    for (int r = operands.models + 1; r < first_constant; ++r) operands_[r] = {arena.take<T>(kStage), ~int64_t(0)};
    for (int j = 0; j < program_->constant_count; ++j) {
      T* strip = arena.take<T>(kStrip);
      for (int i = 0; i < kStrip; ++i) strip[i] = T(program_->constants[j]);
      operands_[first_constant + j] = {strip, 0};
    }
    expanded_ = arena.take<T>(kStage);
    calculations_ = arena.take<Calculation<T>>(size_t(program_->steps));
    for (int s = 0; s < program_->steps; ++s) calculations_[s] = calculation<T>(program_->code[s]);
  }

  // Carries out the program on loaded deltas. The stage begins at a multiple of kPhiloxLanes, or it does not reach
  // beyond the next multiple of kStage.
  void run(const Operands& operands, int64_t begin, int count) {
    for (int s = 0; s < program_->steps; ++s) {
      const Step& step = program_->code[s];
      T* target = operands_[step.target].at;
      const Operand<T>&a = operands_[step.a], &b = operands_[step.b], &c = operands_[step.c];
      if (calculations_[s]) {
        calculations_[s](a, b, c, target, count);
        continue;
      }
      if (step.op == kSkip) {
        if (none_is_0(a.at, count)) s = step.payload - 1;
        continue;
      }
      switch (step.op) {
        case FormulaOp::keep:
          keep(program_->rules[step.payload], a, begin, count, target);
          break;
        case FormulaOp::draw: {
          const uint16_t* lanes = drawn(program_->keys[step.payload], begin);
          for (int j = 0; j < count; ++j) target[j] = T(lanes[j]);
          break;
        }
        case FormulaOp::row: {
          const double* vector = program_->vectors[step.payload];
          each_row(begin, count, [&](int64_t row, int64_t, int done, int run) {
            const T entry = T(vector[row]);
            for (int j = 0; j < run; ++j) target[done + j] = entry;
          });
          break;
        }
        case FormulaOp::column: {
          const double* vector = program_->vectors[step.payload];
          each_row(begin, count, [&](int64_t, int64_t column, int done, int run) {
            for (int j = 0; j < run; ++j) target[done + j] = T(vector[column + j]);
          });
          break;
        }
        case FormulaOp::rank: {
          RankedRow& ranked = operands.ranks[step.payload];
          each_row(begin, count, [&](int64_t row, int64_t column, int done, int run) {
            if (ranked.row != row) rank_row<T>(operands, step.a, row, ranked);
            __builtin_memcpy(target + done, static_cast<const T*>(ranked.ranks) + column, size_t(run) * sizeof(T));
          });
          break;
        }
        default:
          break;
      }
    }
  }

  // The array of value m. A constant is spread over a shared array, which the next call overwrites.
  T* value(int m) {
    const Operand<T>& found = operands_[program_->outputs[m]];
    if (found.step) return found.at;
    for (int j = 0; j < kStage; ++j) expanded_[j] = found.at[0];
    return expanded_;
  }

 private:
  const uint16_t* drawn(uint64_t key, int64_t begin) {
    const int64_t within = begin % kPhiloxLanes;
    draw(key, begin - within, lanes_);
    return lanes_ + within;
  }

  void keep(const Mask& rule, const Operand<T>& a, int64_t begin, int count, T* target) {
    const uint16_t* lanes = rule.random ? drawn(rule.key, begin) : nullptr;
    for (int j = 0; j < count; j += kStrip) {
      const T* x = a.strip(j);
      T* out = target + j;
      const int n = count - j < kStrip ? count - j : kStrip;
      if (rule.random) {
        const uint16_t* bits = lanes + j;
#pragma GCC ivdep
        for (int i = 0; i < n; ++i) out[i] = bits[i] < rule.cut ? x[i] : T(0);
        continue;
      }
      Staged<T>::by_threshold(rule, begin + j, n, [&](int done, int run, auto which) {
#pragma GCC ivdep
        for (int i = done; i < done + run; ++i) out[i] = kept(which, x[i]);
      });
    }
  }

  WM_FN T kept(KeepAny, T a) { return a; }
  WM_FN T kept(KeepFrom<T> rule, T a) { return canonical_key(a) >= rule.low ? a : T(0); }

  // Calls body(row, column, first, count) for the runs of a stage that lie in one row.
  template <class Body>
  void each_row(int64_t begin, int count, Body&& body) {
    const int64_t columns = program_->columns;
    int64_t row = begin / columns, column = begin - row * columns;
    for (int done = 0; done < count; ++row, column = 0) {
      const int64_t left = columns - column;
      const int run = left < count - done ? int(left) : count - done;
      body(row, column, done, run);
      done += run;
    }
  }

  const Program* program_ = nullptr;
  uint16_t* lanes_ = nullptr;
  Operand<T>* operands_ = nullptr;
  T* expanded_ = nullptr;
  Calculation<T>* calculations_ = nullptr;
};

template <class T>
bool all_finite(const T* __restrict values, int count) {
  Bits<T> top = 0;
  for (int j = 0; j < count; ++j) {
    const Bits<T> key = magnitude_key(values[j]);
    top = key > top ? key : top;
  }
  return top < FloatTraits<T>::infinity;
}

// The values that are measured, a stage at a time: the deltas, or the values of a formula. A value of a formula that is
// not finite is 0.
template <class T>
class Measured {
 public:
  T** d;  // valid until the next load; values that are the same operand share an array

  Measured(const Operands& operands, Arena& arena) : staged_(operands, arena) {
    d = staged_.d;
    if (!operands.program) return;
    evaluator_.prepare(operands, staged_, arena);
    d = arena.take<T*>(size_t(operands.values()));
    copies_ = arena.take<T*>(size_t(operands.values()));
    for (int m = 0; m < operands.values(); ++m) copies_[m] = arena.take<T>(kStage);
  }

  void load(const Operands& operands, int64_t begin, int count, int64_t* nonfinite) {
    const bool finite = staged_.load(operands, nullptr, begin, count, nonfinite);
    if (!operands.program) return;
    evaluator_.run(operands, begin, count);
    const Program& program = *operands.program;
    for (int m = 0; m < operands.values(); ++m) {
      const int first = program.firsts[m], number = program.outputs[m];
      if (first < m) {
        d[m] = d[first];
        continue;
      }
      d[m] = evaluator_.value(m);
      const bool constant = number > operands.models + program.registers;  // the next constant uses the same array
      if (!constant && ((finite && number < operands.models) || all_finite(d[m], count))) continue;
      const T* __restrict value = d[m];
      T* __restrict out = copies_[m];
      for (int j = 0; j < count; ++j) out[j] = measured(value[j]);
      d[m] = out;
    }
  }

  // Copies a loaded value. Elements that `keep` drops become 0.
  void drop(const Mask& keep, int64_t begin, int count, const T* value, T* out) {
    staged_.drop(keep, begin, count, value, out);
  }

 private:
  Staged<T> staged_;
  Evaluator<T> evaluator_;
  T** copies_ = nullptr;
};

// Rounds base + value. Returns the largest magnitude key, as round_all does.
template <class D, class T>
Bits<T> round_sums(const T* __restrict base, const T* __restrict value, char* __restrict target, int count) {
  Bits<T> top = 0;
  for (int j = 0; j < count; ++j) {
    const T sum = add_delta(base[j], value[j]);
    const D stored = RoundTo<D>::from(sum);
    __builtin_memcpy(target + j * sizeof(D), &stored, sizeof(D));
    const Bits<T> key = magnitude_key(sum);
    top = key > top ? key : top;
  }
  return top;
}

// If the first `agree` inputs of an element are bit-identical, writes that input, else the value.
template <class T>
void unless_same(T* const* d, int agree, const T* value, int count, T* __restrict out) {
  const T* first = d[0];
  for (int start = 0; start < count; start += kStrip) {
    const int n = count - start < kStrip ? count - start : kStrip;
    Bits<T> differ[kStrip] = {0};
    for (int k = 1; k < agree; ++k) {
      const T* __restrict other = d[k] + start;
      for (int j = 0; j < n; ++j) differ[j] |= differing_bits(other[j], first[start + j]);
    }
    for (int j = 0; j < n; ++j) out[start + j] = differ[j] ? value[start + j] : first[start + j];
  }
}

template <class T>
void formula(const Operands& operands, int agree, int64_t begin, int64_t count, void* const* out, Dtype out_dtype,
             void* scratch, int64_t* nonfinite) {
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  Evaluator<T> evaluator;
  evaluator.prepare(operands, staged, arena);
  T* finished = arena.take<T>(kStage);
  const T* base = operands.base ? staged.base : nullptr;
  const Bits<T> limit = overflow_key<T>(out_dtype);
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    staged.load(operands, nullptr, begin + done, n, nonfinite);
    evaluator.run(operands, begin + done, n);
    for (int m = 0; m < operands.values(); ++m) {
      T* result = evaluator.value(m);
      char* target = element(out[m], out_dtype, done);
      if (base) {
        const Bits<T> top =
            visit(out_dtype, [&](auto tag) { return round_sums<decltype(tag), T>(base, result, target, n); });
        if (top < limit) continue;
        for (int j = 0; j < n; ++j) finished[j] = add_delta(base[j], result[j]);
        result = finished;
      } else if (agree) {
        unless_same(staged.d, agree, result, n, finished);
        result = finished;
      }
      staged.finish(operands, begin + done, n, result, out_dtype, target, nonfinite);
    }
  }
}
