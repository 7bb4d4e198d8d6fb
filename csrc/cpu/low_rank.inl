// W + s L R for a range of W's elements (row-major, rows x columns): L is rows x rank, R is rank x columns.
//
// Each element is defined by itself: its products are added up in order of the rank, in float64, from zero on. So
// ranges, blocks and widths of registers do not change a bit. If L and R are no more than float32, products are exact
// in float64, and a fused multiply-add is the same as its two steps.

#if defined(__AVX512F__)
using DoubleLanes = __m512d;
static inline DoubleLanes doubles_at(const double* from) { return _mm512_loadu_pd(from); }
static inline DoubleLanes all_doubles(double value) { return _mm512_set1_pd(value); }
static inline DoubleLanes multiply_add(DoubleLanes a, DoubleLanes b, DoubleLanes sum) {
  return _mm512_fmadd_pd(a, b, sum);
}
#elif defined(__AVX2__)
using DoubleLanes = __m256d;
static inline DoubleLanes doubles_at(const double* from) { return _mm256_loadu_pd(from); }
static inline DoubleLanes all_doubles(double value) { return _mm256_set1_pd(value); }
static inline DoubleLanes multiply_add(DoubleLanes a, DoubleLanes b, DoubleLanes sum) {
  return _mm256_fmadd_pd(a, b, sum);
}
#else
typedef double DoubleLanes __attribute__((vector_size(16)));
static inline DoubleLanes doubles_at(const double* from) {
  DoubleLanes value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
static inline DoubleLanes all_doubles(double value) { return DoubleLanes{value, value}; }
static inline DoubleLanes multiply_add(DoubleLanes a, DoubleLanes b, DoubleLanes sum) { return sum + a * b; }
#endif
constexpr int kDoubleLanes = sizeof(DoubleLanes) / sizeof(double);
constexpr int kSumsAtOnce = sizeof(DoubleLanes) == 64 ? 16 : 8;  // vectors: half of the registers

using SumRow = double[kPanelColumns];
constexpr int kSumRows = 4;  // so many rows share what is loaded of R

// Sums of `rows` rows for columns of a panel from `first` on, `vectors` registers of them at a time, as far as `end`.
// Returns the first column that is left.
template <bool exact, int rows, int vectors>
int low_rank_columns(const LowRankArgs& w, int64_t row, int64_t panel, int first, int end, SumRow* sums) {
  const int64_t stride = panel_width(w.columns, panel);
  const double* const left = w.left + row * w.rank;
  int j = first;
  for (; j + vectors * kDoubleLanes <= end; j += vectors * kDoubleLanes) {
    DoubleLanes sum[rows][vectors];
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] = all_doubles(0.0);
    const double* right = w.right + panel * kPanelColumns * w.rank + j;
    for (int k = 0; k < w.rank; ++k, right += stride) {
      DoubleLanes loaded[vectors];
      for (int v = 0; v < vectors; ++v) loaded[v] = doubles_at(right + v * kDoubleLanes);
      for (int i = 0; i < rows; ++i) {
        const DoubleLanes factor = all_doubles(left[i * w.rank + k]);
        for (int v = 0; v < vectors; ++v)
          sum[i][v] = exact ? multiply_add(factor, loaded[v], sum[i][v]) : sum[i][v] + factor * loaded[v];
      }
    }
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v)
        __builtin_memcpy(sums[i] + j + v * kDoubleLanes, &sum[i][v], sizeof(DoubleLanes));
  }
  return j;
}

// For the columns [first, end) of a panel, both multiples of kPanelStep.
template <int rows>
void low_rank_sums(const LowRankArgs& w, int64_t row, int64_t panel, int first, int end, SumRow* sums) {
  if (w.exact) {
    first = low_rank_columns<true, rows, kSumsAtOnce / rows>(w, row, panel, first, end, sums);
    low_rank_columns<true, rows, 2>(w, row, panel, first, end, sums);
  } else {
    low_rank_columns<false, rows, 2>(w, row, panel, first, end, sums);
  }
}

// Calls body(row, column, width, sums) for each part of a row in [row, row + rows) x [column, end). A panel of R stays
// in the cache for all rows.
template <class Body>
void low_rank_block(const LowRankArgs& w, int64_t row, int64_t rows, int64_t column, int64_t end, Body&& body) {
  alignas(64) SumRow sums[kSumRows];
  while (column < end) {
    const int64_t panel = column / kPanelColumns, start = panel * kPanelColumns;
    const int from = int(column - start), to = end - start < kPanelColumns ? int(end - start) : kPanelColumns;
    const int first = from / kPanelStep * kPanelStep, last = (to + kPanelStep - 1) / kPanelStep * kPanelStep;
    for (int64_t i = 0; i < rows;) {
      const int some = rows - i >= kSumRows ? kSumRows : rows - i >= 2 ? 2 : 1;
      const auto make = some == kSumRows ? low_rank_sums<kSumRows> : some == 2 ? low_rank_sums<2> : low_rank_sums<1>;
      make(w, row + i, panel, first, last, sums);
      for (int n = 0; n < some; ++n) body(row + i + n, column, to - from, sums[n] + from);
      i += some;
    }
    column = start + to;
  }
}

// The range as blocks: the rest of a row, whole rows, the start of a row.
template <class Body>
void low_rank_range(const LowRankArgs& w, int64_t begin, int64_t count, Body&& body) {
  const int64_t end = begin + count;
  while (begin < end) {
    const int64_t row = begin / w.columns, column = begin % w.columns;
    const int64_t whole = column ? 0 : (end - begin) / w.columns;
    const int64_t rest = end - begin < w.columns - column ? end - begin : w.columns - column;
    low_rank_block(w, row, whole ? whole : 1, column, whole ? w.columns : column + rest, body);
    begin += whole ? whole * w.columns : rest;
  }
}

// The type of a result before it is stored: float32 holds 16-bit numbers and their roundings well enough.
template <class D>
struct ResultOf {
  using type = float;
};
template <>
struct ResultOf<double> {
  using type = double;
};

template <class T>
void add_scaled(T* __restrict values, double scale, const double* __restrict sums, int width) {
  for (int j = 0; j < width; ++j) values[j] = T(double(values[j]) + scale * sums[j]);
}

// The same, times a factor for each element.
template <class T, class Factor>
void add_and_multiply(T* __restrict values, double scale, const double* __restrict sums, int width, Factor factor) {
  for (int j = 0; j < width; ++j) values[j] = T((double(values[j]) + scale * sums[j]) * factor(j));
}

template <class D>
void add_low_rank_as(const LowRankArgs& w, int64_t begin, int64_t count, char* data) {
  low_rank_range(w, begin, count, [&](int64_t row, int64_t column, int width, const double* sums) {
    char* const place = data + (row * w.columns + column - begin) * int64_t(sizeof(D));
    alignas(64) typename ResultOf<D>::type values[kPanelColumns];
    widen_all<D>(place, values, width);
    if (w.row_factors) {
      const double factor = w.row_factors[row];
      add_and_multiply(values, w.scale, sums, width, [=](int) { return factor; });
    } else if (w.column_factors) {
      const double* const factors = w.column_factors + column;
      add_and_multiply(values, w.scale, sums, width, [=](int j) { return factors[j]; });
    } else {
      add_scaled(values, w.scale, sums, width);
    }
    round_all<D>(values, place, width);
  });
}

void add_low_rank(const LowRankArgs& w, Dtype dtype, int64_t begin, int64_t count, char* data) {
  visit(dtype, [&](auto tag) { add_low_rank_as<decltype(tag)>(w, begin, count, data); });
}

void add_squares(const double* __restrict values, double* __restrict sums, int width) {
  for (int j = 0; j < width; ++j) sums[j] += values[j] * values[j];
}

template <class D>
void low_rank_squares_as(const LowRankArgs& w, int64_t row, int64_t rows, const char* data, double* squares,
                         bool by_column) {
  static_assert(kPanelColumns % kSquareLanes == 0, "a panel begins at the first lane");
  const int64_t begin = row * w.columns;
  low_rank_range(w, begin, rows * w.columns, [&](int64_t i, int64_t column, int width, const double* sums) {
    alignas(64) double values[kPanelColumns];
    widen_all<D>(data + (i * w.columns + column - begin) * int64_t(sizeof(D)), values, width);
    add_scaled(values, w.scale, sums, width);
    if (by_column) return add_squares(values, squares + column, width);
    for (int done = 0; done < width; done += kSquareLanes)
      add_squares(values + done, squares + i * kSquareLanes, width - done < kSquareLanes ? width - done : kSquareLanes);
  });
}

void low_rank_squares(const LowRankArgs& w, Dtype dtype, int64_t row, int64_t rows, const char* data, double* squares,
                      bool by_column) {
  visit(dtype, [&](auto tag) { low_rank_squares_as<decltype(tag)>(w, row, rows, data, squares, by_column); });
}

// Elements of one storage type as another, through float64: rounded once.
void convert(const void* data, Dtype from, int64_t count, Dtype to, void* out) {
  double staged[kStage];
  for (int64_t begin = 0; begin < count; begin += kStage) {
    const int part = count - begin < kStage ? int(count - begin) : kStage;
    widen_source(Source{data, from}, begin, part, staged);
    round_into(staged, to, element(out, to, begin), part);
  }
}
