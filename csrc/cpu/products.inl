// Sums of products, per row and per column, in the orders of ops/products.h.

// The values of a formula in float64. They are converted once, whatever the number of products they are in.
template <class T>
class Doubles {
 public:
  Doubles(const Operands& operands, Arena& arena) : staged_(operands, arena) {
    evaluator_.prepare(operands, staged_, arena);
  }

  // Value m of the elements from `begin` on goes to out + m * stride.
  void load(const Operands& operands, int64_t begin, int count, double* out, int64_t stride, int64_t* nonfinite) {
    staged_.load(operands, nullptr, begin, count, nonfinite);
    evaluator_.run(operands, begin, count);
    for (int m = 0; m < operands.values(); ++m) convert(evaluator_.value(m), count, out + m * stride);
  }

 private:
  static void convert(const T* __restrict value, int count, double* __restrict out) {
    for (int j = 0; j < count; ++j) out[j] = double(measured(value[j]));
  }

  Staged<T> staged_;
  Evaluator<T> evaluator_;
};

// sum + a b. A product of two float32 is exact in float64, so that a fused one is the same.
template <class T>
WM_FN double add_product(double sum, double a, double b) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == sizeof(float)) return __builtin_fma(a, b, sum);
#endif
  return sum + a * b;
}

// Adds the products of kRows rows to sums, which are loaded and stored once; the rows are `stride` apart.
template <int kRows, class T>
void add_rows(const double* __restrict a, const double* __restrict b, int64_t stride, int count,
              double* __restrict sums) {
  for (int j = 0; j < count; ++j) {
    double sum = sums[j];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum = add_product<T>(sum, a[r * stride + j], b[r * stride + j]);
    sums[j] = sum;
  }
}

// Adds the products of elements [filled, filled + count) of a row block to its lanes.
template <class T>
void add_to_lanes(const double* __restrict a, const double* __restrict b, int64_t filled, int count,
                  double* __restrict lanes) {
  while (count > 0) {
    const int lane = int(filled % kLanes), n = kLanes - lane < count ? kLanes - lane : count;
    if (filled < kLanes)
      for (int i = 0; i < n; ++i) lanes[lane + i] = add_product<T>(0.0, a[i], b[i]);
    else
      add_rows<1, T>(a, b, 0, n, lanes + lane);
    a += n, b += n, filled += n, count -= n;
  }
}

// The sum of a row of at most kLanes products, which is overwritten. A sum without a partner moves up as it is: to add
// the +0 of an empty lane changes nothing.
static double sum_short_row(double* products, int columns) {
  while (columns > 1) {
    const int half = columns / 2;
    for (int i = 0; i < half; ++i) products[i] = products[2 * i] + products[2 * i + 1];
    if (columns % 2) products[half] = products[columns - 1];
    columns = half + columns % 2;
  }
  return products[0];
}

// Rows whose products are taken many rows at a time: 5 ns an element for rows of 7 and seven pairs, 20 one by one; rows
// of 64 are as well off by themselves.
constexpr int kShortRow = 32;

template <class T>
void short_row_products(const Operands& operands, const ProductPairs& pairs, int64_t begin, int64_t count,
                        double* blocks, int64_t stride, Doubles<T>& doubles, double* values, double* products,
                        int64_t* nonfinite) {
  const int columns = int(operands.program->columns), rows = (kStage - kPhiloxLanes) / columns;
  for (int64_t done = 0; done < count; done += rows * columns, blocks += rows) {
    const int n = int(rows * columns < count - done ? rows * columns : count - done);
    doubles.load(operands, begin + done, n, values, kStage, nonfinite);
    for (int p = 0; p < pairs.count; ++p) {
      const double* __restrict a = values + pairs.first[p] * kStage;
      const double* __restrict b = values + pairs.second[p] * kStage;
      for (int j = 0; j < n; ++j) products[j] = add_product<T>(0.0, a[j], b[j]);
      for (int r = 0; r < n / columns; ++r) blocks[p * stride + r] = sum_short_row(products + r * columns, columns);
    }
  }
}

template <class T>
void row_products(const Operands& operands, const ProductPairs& pairs, int64_t begin, int64_t count, double* blocks,
                  int64_t stride, void* scratch, int64_t* nonfinite) {
  Arena arena(scratch);
  Doubles<T> doubles(operands, arena);
  double* values = arena.take<double>(size_t(operands.values()) * kStage);
  double* lanes = arena.take<double>(size_t(pairs.count + 2) * kLanes);
  if (operands.program->columns <= kShortRow)
    return short_row_products(operands, pairs, begin, count, blocks, stride, doubles, values, lanes, nonfinite);
  const auto load = [&](int64_t at, int n) { doubles.load(operands, at, n, values, kStage, nonfinite); };
  const auto add = [&](int done, int run, int64_t filled) {
    for (int p = 0; p < pairs.count; ++p) {
      const double *a = values + pairs.first[p] * kStage, *b = values + pairs.second[p] * kStage;
      add_to_lanes<T>(a + done, b + done, filled, run, lanes + p * kLanes);
    }
  };
  const auto close = [&](int64_t size) {
    for (int p = 0; p < pairs.count; ++p) blocks[p * stride] = sum_block(lanes + p * kLanes, size);
    ++blocks;
  };
  each_row_block(operands.program->columns, begin, count, load, add, close);
}

// Adds the products of rows of loaded values, `stride` apart and `size` from value to value, to sums of n columns.
template <class T>
void add_panel(const double* values, int64_t size, const ProductPairs& pairs, int rows, int64_t stride, int n,
               double* sums, int64_t columns) {
  for (int p = 0; p < pairs.count; ++p) {
    const double *a = values + pairs.first[p] * size, *b = values + pairs.second[p] * size;
    double* own = sums + p * columns;
    int r = 0;
    for (; r + 4 <= rows; r += 4) add_rows<4, T>(a + r * stride, b + r * stride, stride, n, own);
    for (; r < rows; ++r) add_rows<1, T>(a + r * stride, b + r * stride, stride, n, own);
  }
}

template <class T>
void column_products(const Operands& operands, const ProductPairs& pairs, int64_t begin, int64_t count, double* sums,
                     void* scratch, int64_t* nonfinite) {
  const int64_t columns = operands.program->columns, size = kPanelRows * kPanel;
  Arena arena(scratch);
  Doubles<T> doubles(operands, arena);
  double* values = arena.take<double>(size_t(operands.values()) * size);
  if (columns <= kPanel / 2) {  // several rows are a stage
    const int64_t rows = (kStage - kPhiloxLanes) / columns;
    for (int64_t done = 0; done < count; done += rows * columns) {
      const int n = int(rows * columns < count - done ? rows * columns : count - done);
      doubles.load(operands, begin + done, n, values, size, nonfinite);
      add_panel<T>(values, size, pairs, int(n / columns), columns, int(columns), sums, columns);
    }
    return;
  }
  const int64_t first = begin % columns, width = count < columns - first ? count : columns - first;
  const int64_t rows = count / width;
  const int most = operands.program->ranked_count ? 1 : kPanelRows;  // ranks are kept of one row at a time
  for (int64_t row = 0; row < rows; row += most) {
    const int some = int(rows - row < most ? rows - row : most);
    for (int64_t done = 0; done < width; done += kPanel) {
      const int n = int(width - done < kPanel ? width - done : kPanel);
      for (int r = 0; r < some; ++r)
        doubles.load(operands, begin + (row + r) * columns + done, n, values + r * kPanel, size, nonfinite);
      add_panel<T>(values, size, pairs, some, kPanel, n, sums + first + done, columns);
    }
  }
}
