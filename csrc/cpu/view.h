// Views: where a tensor's elements come from. python/warpmerge/models/views.py defines the kinds.
//
// Memory and a region of a file are direct kinds. They are plain fields, and loaders look at them without a call. Any
// other kind is composed of views. It produces a range of its bytes into memory of the caller: a worker's buffer, a
// page-locked slot, an output. So a permuted vocabulary costs no copy of a whole tensor. Nothing here looks at
// elements, and nothing allocates while it reads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../io/file.h"
#include "../ops/common.h"

namespace warpmerge {

class Composition;

// Bytes from `offset` on of memory that the caller keeps alive, of a file, or of a composition.
struct View {
  Dtype dtype = Dtype::f32;
  const char* memory = nullptr;  // already at the offset
  std::shared_ptr<File> file;
  int64_t offset = 0;
  std::shared_ptr<const Composition> composition;

  // Produces the bytes [begin, begin + bytes). Throws InputError.
  void read(int64_t begin, int64_t bytes, char* out) const;
  // The same view without its first bytes.
  View from(int64_t byte) const;
};

// How the bytes of a view follow from those of others.
class Composition {
 public:
  virtual ~Composition() = default;
  virtual void read(int64_t begin, int64_t bytes, char* out) const = 0;
};

// Row i, of `row_bytes` bytes, is row index[i] of the source. Rows that follow each other in the source are read at
// once.
class GatheredRows final : public Composition {
 public:
  GatheredRows(View source, std::vector<int64_t> index, int64_t row_bytes)
      : source_(std::move(source)), index_(std::move(index)), row_bytes_(row_bytes) {}
  void read(int64_t begin, int64_t bytes, char* out) const override;

 private:
  const View source_;
  const std::vector<int64_t> index_;
  const int64_t row_bytes_;
};

// Parts that are joined along an axis. The bytes are stripes, and a stripe has a piece of every part. The piece of part
// p lies between starts[p] and starts[p + 1] of the stripe. Parts joined along the first axis make a single stripe.
class JoinedParts final : public Composition {
 public:
  JoinedParts(std::vector<View> parts, std::vector<int64_t> starts)
      : parts_(std::move(parts)), starts_(std::move(starts)) {}
  void read(int64_t begin, int64_t bytes, char* out) const override;

 private:
  void read_part(size_t number, int64_t begin, int64_t end, char* out) const;

  const std::vector<View> parts_;
  const std::vector<int64_t> starts_;
};

// Row i is the mean of a row of each source that has one for it: of source s the row index[s * rows + i], unless that
// is negative. Of no source it is zero. Sources may be of other types: a single row is converted, a mean is taken in
// double and rounded once. Ranges are whole elements.
class MeanRows final : public Composition {
 public:
  MeanRows(Dtype dtype, std::vector<View> sources, std::vector<int64_t> index, int64_t row_elements);
  void read(int64_t begin, int64_t bytes, char* out) const override;

 private:
  int64_t index(int source, int64_t row) const { return index_[size_t(source * int64_t(only_.size()) + row)]; }
  void convert(const View& source, int64_t first, int64_t count, char* out) const;
  void mean(int64_t row, int64_t first, int64_t count, char* out) const;

  const Dtype dtype_;
  const std::vector<View> sources_;
  const std::vector<int64_t> index_;
  const int64_t row_;
  std::vector<int> only_;  // of each row its single source, kNone or kSeveral
};

// The sum of the rows of a view, added in double one after the other. Throws InputError.
std::vector<double> sum_rows(const View& view, int64_t rows, int64_t row_elements);

}  // namespace warpmerge
