// Sums and largest values of row blocks, in the order of ops/rows.h.

// Adds elements [filled, filled + count) of a block to its lanes; the first row of lanes starts them.
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

// Not in place, which compilers do not vectorize.
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

// Walks the row blocks that lie in [begin, begin + count), a tile of whole ones. Calls load(first, n) for at most
// kStage elements, add(done, run, filled) for those from `done` on that join the `filled` ones of a block, close(size)
// behind the last one of it.
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
void rows(const Operands& operands, bool largest, int64_t begin, int64_t count, double* blocks, int64_t stride,
          void* scratch, int64_t* nonfinite) {
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
  each_row_block(operands.program->columns, begin, count, load, add, close);
}
