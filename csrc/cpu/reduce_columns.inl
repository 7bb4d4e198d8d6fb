// Folds of the columns of one block of rows, in the order of csrc/ops/reduce.h.
//
// A worker takes the block in panels of kPanelRows rows by kPanel columns. The values of a panel stay in L1, in
// float64, while every term is folded. So the number of a column is loaded and stored once for kPanelRows rows. Short
// rows would leave panels nearly empty: several of them are loaded as one stage.

// How the term of a row joins the number of its column.
template <class T>
struct ProductTerm {
  WM_FN double add(double found, double a, double b) { return add_product<T>(found, a, b); }
};
struct ValueTerm {
  WM_FN double add(double found, double a, double) { return found + a; }
};
struct LargestTerm {
  WM_FN double add(double found, double a, double) { return a > found ? a : found; }
};

// Folds kRows rows, `stride` apart, into `found`.
template <int kRows, class Kind>
void fold_rows(const double* __restrict a, const double* __restrict b, int64_t stride, int count,
               double* __restrict found) {
  for (int j = 0; j < count; ++j) {
    double now = found[j];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) now = Kind::add(now, a[r * stride + j], b[r * stride + j]);
    found[j] = now;
  }
}

// Folds rows of loaded values, `stride` apart and `size` from value to value, into `found` of n columns.
template <class Kind>
void fold_panel(const double* values, int64_t size, const Terms& terms, int rows, int64_t stride, int n, double* found,
                int64_t columns) {
  for (int t = 0; t < terms.count; ++t) {
    const double *a = values + terms.first[t] * size, *b = values + terms.second[t] * size;
    double* own = found + t * columns;
    int r = 0;
    for (; r + 4 <= rows; r += 4) fold_rows<4, Kind>(a + r * stride, b + r * stride, stride, n, own);
    for (; r < rows; ++r) fold_rows<1, Kind>(a + r * stride, b + r * stride, stride, n, own);
  }
}

template <class T, class Kind>
void fold_columns(const Operands& operands, const Terms& terms, int64_t columns, int64_t begin, int64_t count,
                  double* found, void* scratch, int64_t* nonfinite) {
  const int64_t size = kPanelRows * kPanel;
  Arena arena(scratch);
  Doubles<T> doubles(operands, arena);
  double* values = arena.take<double>(size_t(operands.values()) * size);
  if (columns <= kPanel / 2) {  // several rows fit into a stage
    const int64_t rows = (kStage - kPhiloxLanes) / columns;
    for (int64_t done = 0; done < count; done += rows * columns) {
      const int n = int(rows * columns < count - done ? rows * columns : count - done);
      doubles.load(operands, begin + done, n, values, size, nonfinite);
      fold_panel<Kind>(values, size, terms, int(n / columns), columns, int(columns), found, columns);
    }
    return;
  }
  const int64_t first = begin % columns, width = count < columns - first ? count : columns - first;
  const int64_t rows = count / width;
  const int most = operands.program->ranked_count ? 1 : kPanelRows;  // ranks are there for one row at a time
  for (int64_t row = 0; row < rows; row += most) {
    const int some = int(rows - row < most ? rows - row : most);
    for (int64_t done = 0; done < width; done += kPanel) {
      const int n = int(width - done < kPanel ? width - done : kPanel);
      for (int r = 0; r < some; ++r)
        doubles.load(operands, begin + (row + r) * columns + done, n, values + r * kPanel, size, nonfinite);
      fold_panel<Kind>(values, size, terms, some, kPanel, n, found + first + done, columns);
    }
  }
}

template <class T>
void reduce_columns(const Operands& operands, const Terms& terms, int64_t columns, int64_t begin, int64_t count,
                    double* found, void* scratch, int64_t* nonfinite) {
  const auto fold = terms.kind == Term::product ? fold_columns<T, ProductTerm<T>>
                    : terms.kind == Term::value ? fold_columns<T, ValueTerm>
                                                : fold_columns<T, LargestTerm>;
  fold(operands, terms, columns, begin, count, found, scratch, nonfinite);
}
