// Folds of rows, block by block, in the order of csrc/ops/reduce.h.
//
// Sums and largest values go straight from the compute type into lanes of float64. Products take another way: the
// values of a stage are converted to float64 once, whatever the number of products they are in. Rows of up to 32
// elements would leave most lanes empty, so their products are taken many rows at a time.

// Adds elements [filled, filled + count) of a block to its lanes. The first row of lanes sets them.
template <class T>
void add_to_lanes(const T* __restrict v, int64_t filled, int count, double* __restrict lanes) {
  while (count > 0) {
    const int lane = int(filled % kLanes), n = kLanes - lane < count ? kLanes - lane : count;
    if (filled < kLanes)
      for (int i = 0; i < n; ++i) lanes[lane + i] = 0.0 + double(v[i]);
    else
      for (int i = 0; i < n; ++i) lanes[lane + i] = lanes[lane + i] + double(v[i]);
    v += n, filled += n, count -= n;
  }
}

// Not in place: compilers do not vectorise that.
static void add_neighbours(const double* __restrict in, int width, double* __restrict out) {
  for (int i = 0; i < width; ++i) out[i] = in[2 * i] + in[2 * i + 1];
}

static double sum_block(double* lanes, int64_t filled) {
  double other[kLanes / 2];
  double *from = lanes, *to = other;
  int width = lanes_of(filled);
  for (int64_t i = filled; i < width; ++i) lanes[i] = 0.0;
  for (width /= 2; width > 0; width /= 2) {
    add_neighbours(from, width, to);
    double* const next = from;
    from = to, to = next;
  }
  return from[0];
}

template <class T>
double largest_of(const T* __restrict v, int count) {
  Ordered<T> most = ordered(v[0]);
  for (int j = 0; j < count; ++j) {
    const Ordered<T> rank = ordered(v[j]);
    most = rank > most ? rank : most;
  }
  return double(from_ordered<T>(most));
}

// Walks the row blocks in [begin, begin + count), a tile of whole blocks. Calls load(first, n) for at most kStage
// elements. Then add(done, run, filled) for each run of them that is in one block: `done` is its place in the stage,
// `filled` the number of the block's earlier elements. Calls close(size) after the last element of a block.
template <class Load, class Add, class Close>
void each_row_block(int64_t columns, int64_t begin, int64_t count, Load&& load, Add&& add, Close&& close) {
  const int64_t end = begin + count;
  int64_t left_of_row = columns - begin % columns, filled = 0;
  for (int64_t at = begin; at < end;) {
    const int64_t to_border = kStage - at % kStage;
    const int n = int(to_border < end - at ? to_border : end - at);
    load(at, n);
    at += n;
    for (int done = 0; done < n;) {
      const int64_t size = filled + left_of_row < kBlock ? filled + left_of_row : kBlock;
      const int run = size - filled < n - done ? int(size - filled) : n - done;
      add(done, run, filled);
      done += run, filled += run, left_of_row -= run;
      if (filled < size) continue;
      close(size);
      filled = 0;
      if (left_of_row == 0) left_of_row = columns;
    }
  }
}

template <class T>
void reduce_values(const Operands& operands, bool largest, int64_t columns, int64_t begin, int64_t count,
                   double* blocks, int64_t stride, void* scratch, int64_t* nonfinite) {
  const int values = operands.values();
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  double* lanes = arena.take<double>(size_t(values) * kLanes);
  const auto load = [&](int64_t at, int n) { measured.load(operands, at, n, nonfinite); };
  const auto add = [&](int done, int run, int64_t filled) {
    for (int m = 0; m < values; ++m) {
      const T* v = measured.d[m] + done;
      double* own = lanes + m * kLanes;
      if (largest) {
        const double most = largest_of(v, run);
        own[0] = filled == 0 || most > own[0] ? most : own[0];
      } else {
        add_to_lanes(v, filled, run, own);
      }
    }
  };
  const auto close = [&](int64_t size) {
    for (int m = 0; m < values; ++m) {
      double* own = lanes + m * kLanes;
      blocks[m * stride] = largest ? own[0] : sum_block(own, size);
    }
    ++blocks;
  };
  each_row_block(columns, begin, count, load, add, close);
}

// Values of a formula in float64, converted once, whatever the number of products they are in.
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

// sum + a b. In float64 the product of two float32 is exact, so a fused multiply-add has the same result.
template <class T>
WM_FN double add_product(double sum, double a, double b) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == sizeof(float)) return __builtin_fma(a, b, sum);
#endif
  return sum + a * b;
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
      for (int i = 0; i < n; ++i) lanes[lane + i] = add_product<T>(lanes[lane + i], a[i], b[i]);
    a += n, b += n, filled += n, count -= n;
  }
}

// The sum of a row of at most kLanes products, which are overwritten. A sum without a partner moves up as it is: adding
// the +0 of an empty lane would change nothing.
static double sum_short_row(double* products, int columns) {
  while (columns > 1) {
    const int half = columns / 2;
    for (int i = 0; i < half; ++i) products[i] = products[2 * i] + products[2 * i + 1];
    if (columns % 2) products[half] = products[columns - 1];
    columns = half + columns % 2;
  }
  return products[0];
}

// The longest row whose products are taken many rows at a time. For rows of 7 and seven pairs an element takes 5 ns,
// and 20 ns one row at a time. Rows of 64 gain nothing.
constexpr int kShortRow = 32;

template <class T>
void short_row_products(const Operands& operands, const Terms& terms, int64_t length, int64_t begin, int64_t count,
                        double* blocks, int64_t stride, Doubles<T>& doubles, double* values, double* products,
                        int64_t* nonfinite) {
  const int columns = int(length), rows = (kStage - kPhiloxLanes) / columns;
  for (int64_t done = 0; done < count; done += rows * columns, blocks += rows) {
    const int n = int(rows * columns < count - done ? rows * columns : count - done);
    doubles.load(operands, begin + done, n, values, kStage, nonfinite);
    for (int p = 0; p < terms.count; ++p) {
      const double* __restrict a = values + terms.first[p] * kStage;
      const double* __restrict b = values + terms.second[p] * kStage;
      for (int j = 0; j < n; ++j) products[j] = add_product<T>(0.0, a[j], b[j]);
      for (int r = 0; r < n / columns; ++r) blocks[p * stride + r] = sum_short_row(products + r * columns, columns);
    }
  }
}

template <class T>
void multiply_rows(const Operands& operands, const Terms& terms, int64_t columns, int64_t begin, int64_t count,
                   double* blocks, int64_t stride, void* scratch, int64_t* nonfinite) {
  Arena arena(scratch);
  Doubles<T> doubles(operands, arena);
  double* values = arena.take<double>(size_t(operands.values()) * kStage);
  double* lanes = arena.take<double>(size_t(terms.count + 2) * kLanes);
  if (columns <= kShortRow)
    return short_row_products(operands, terms, columns, begin, count, blocks, stride, doubles, values, lanes,
                              nonfinite);
  const auto load = [&](int64_t at, int n) { doubles.load(operands, at, n, values, kStage, nonfinite); };
  const auto add = [&](int done, int run, int64_t filled) {
    for (int p = 0; p < terms.count; ++p) {
      const double *a = values + terms.first[p] * kStage, *b = values + terms.second[p] * kStage;
      add_to_lanes<T>(a + done, b + done, filled, run, lanes + p * kLanes);
    }
  };
  const auto close = [&](int64_t size) {
    for (int p = 0; p < terms.count; ++p) blocks[p * stride] = sum_block(lanes + p * kLanes, size);
    ++blocks;
  };
  each_row_block(columns, begin, count, load, add, close);
}

template <class T>
void reduce_rows(const Operands& operands, const Terms& terms, int64_t columns, int64_t begin, int64_t count,
                 double* blocks, int64_t stride, void* scratch, int64_t* nonfinite) {
  if (terms.kind == Term::product)
    return multiply_rows<T>(operands, terms, columns, begin, count, blocks, stride, scratch, nonfinite);
  reduce_values<T>(operands, terms.kind == Term::largest, columns, begin, count, blocks, stride, scratch, nonfinite);
}
