#include "low_rank.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>

#include "../ops/convert.h"

namespace warpmerge {

namespace {

constexpr int64_t kChunk = 64 << 10;  // bytes that are on the stack or in a buffer at a time

std::vector<double> widened(const View& view, int64_t count) {
  const int64_t size = itemsize(view.dtype);
  std::vector<char> raw(size_t(count * size));
  view.read(0, count * size, raw.data());
  std::vector<double> found(static_cast<size_t>(count));
  visit(view.dtype, [&](auto tag) {
    using D = decltype(tag);
    for (int64_t i = 0; i < count; ++i) {
      D stored;
      std::memcpy(&stored, raw.data() + i * size, sizeof(D));
      found[size_t(i)] = double(widen(stored));
    }
  });
  return found;
}

// `from` has `rows` rows; in the result they are columns.
std::vector<double> transposed(const std::vector<double>& from, int64_t rows) {
  const int64_t columns = int64_t(from.size()) / rows;
  std::vector<double> found(from.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) found[size_t(j * rows + i)] = from[size_t(i * columns + j)];
  return found;
}

// A row-major matrix in the panels of LowRankArgs.
std::vector<double> in_panels(const std::vector<double>& from, int64_t rows, int64_t columns) {
  const int64_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
  std::vector<double> found(size_t(((panels - 1) * kPanelColumns + panel_width(columns, panels - 1)) * rows));
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t start = panel * kPanelColumns, width = std::min<int64_t>(kPanelColumns, columns - start);
    double* to = found.data() + start * rows;
    for (int64_t k = 0; k < rows; ++k, to += panel_width(columns, panel))
      std::copy_n(from.data() + k * columns + start, width, to);
  }
  return found;
}

// The factors that were used last, the oldest first. They are dropped when there are more than kHeldFactors bytes, and
// with the view that they are of.
class Held {
 public:
  void add(const LowRank* owner, std::shared_ptr<const void> factors, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_back({owner, std::move(factors), bytes});
    bytes_ += bytes;
    while (bytes_ > kHeldFactors) {
      bytes_ -= entries_.front().bytes;
      entries_.pop_front();
    }
  }
  void drop(const LowRank* owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (entry->owner == owner) bytes_ -= entry->bytes;
      entry = entry->owner == owner ? entries_.erase(entry) : entry + 1;
    }
  }

 private:
  struct Entry {
    const LowRank* owner;
    std::shared_ptr<const void> factors;
    size_t bytes;
  };
  std::mutex mutex_;
  std::deque<Entry> entries_;
  size_t bytes_ = 0;
};

Held& held() {
  static Held* const all = new Held;  // never destroyed: workers may outlive the end of main
  return *all;
}

}  // namespace

LowRank::LowRank(const Kernels& kernels, View base, View left, View right, Shape shape, double scale,
                 std::shared_ptr<const View> magnitudes, bool by_column)
    : kernels_(kernels),
      base_(std::move(base)),
      left_(std::move(left)),
      right_(std::move(right)),
      shape_(shape),
      scale_(scale),
      magnitudes_(std::move(magnitudes)),
      by_column_(by_column) {}

LowRank::~LowRank() { held().drop(this); }

void LowRank::read(int64_t begin, int64_t bytes, char* out) const {
  base_.read(begin, bytes, out);
  const std::shared_ptr<const Factors> found = factors();
  const int64_t size = itemsize(base_.dtype);
  kernels_.add_low_rank(args(*found), base_.dtype, begin / size, bytes / size, out);
}

LowRankArgs LowRank::args(const Factors& factors) const {
  const bool exact = left_.dtype != Dtype::f64 && right_.dtype != Dtype::f64;
  const double* lengths = lengths_.empty() ? nullptr : lengths_.data();
  return {factors.left.data(),
          factors.right.data(),
          shape_.rank,
          shape_.columns,
          scale_,
          exact,
          by_column_ ? nullptr : lengths,
          by_column_ ? lengths : nullptr};
}

std::shared_ptr<const LowRank::Factors> LowRank::factors() const {
  std::lock_guard<std::mutex> lock(mutex_);  // who comes meanwhile would have to read the same
  if (std::shared_ptr<const Factors> known = factors_.lock()) return known;
  auto made = std::make_shared<Factors>();
  made->left = widened(left_, shape_.rows * shape_.rank);
  std::vector<double> right = widened(right_, shape_.rank * shape_.columns);
  if (shape_.transposed) {
    made->left = transposed(made->left, shape_.rank);
    right = transposed(right, shape_.columns);
  }
  made->right = in_panels(right, shape_.rank, shape_.columns);
  if (magnitudes_ && lengths_.empty()) lengths_ = lengthen(args(*made));
  factors_ = made;
  held().add(this, made, (made->left.size() + made->right.size()) * sizeof(double));
  return made;
}

// What each row or column is multiplied by: its magnitude over its length.
std::vector<double> LowRank::lengthen(const LowRankArgs& args) const {
  const int64_t count = by_column_ ? shape_.columns : shape_.rows, lanes = by_column_ ? 1 : kSquareLanes;
  const int64_t row_bytes = shape_.columns * itemsize(base_.dtype);
  std::vector<double> squares(size_t(count * lanes));
  const int64_t step = std::max<int64_t>(1, kChunk / std::max<int64_t>(1, row_bytes));
  std::vector<char> staged(size_t(step * row_bytes));
  for (int64_t row = 0; row < shape_.rows; row += step) {
    const int64_t rows = std::min(step, shape_.rows - row);
    base_.read(row * row_bytes, rows * row_bytes, staged.data());
    kernels_.low_rank_squares(args, base_.dtype, row, rows, staged.data(), squares.data(), by_column_);
  }
  std::vector<double> found = widened(*magnitudes_, count);
  for (int64_t i = 0; i < count; ++i) {
    double* const parts = squares.data() + i * lanes;
    for (int64_t half = lanes / 2; half; half /= 2)
      for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    found[size_t(i)] /= std::sqrt(parts[0]);
  }
  return found;
}

void Rounded::read(int64_t begin, int64_t bytes, char* out) const {
  const int64_t from = itemsize(source_.dtype), to = itemsize(to_);
  char staged[kChunk];
  for (int64_t done = 0; done < bytes;) {
    const int64_t count = std::min((bytes - done) / to, kChunk / from);
    source_.read((begin + done) / to * from, count * from, staged);
    kernels_.convert(staged, source_.dtype, count, to_, out + done);
    done += count * to;
  }
}

}  // namespace warpmerge
