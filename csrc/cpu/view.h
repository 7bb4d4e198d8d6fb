// Views: where a tensor's elements come from. The two direct kinds, memory and a region of a file, are plain fields
// that loaders look at themselves. Any other kind is composed of views, and produces a range of its bytes into the
// memory of whoever asks: a worker's buffer, a page-locked slot, an output. Nothing here knows dtypes of elements or
// allocates while it reads. The kinds and their meaning are those of python/warpmerge/models/views.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../ops/common.h"

namespace warpmerge {

class Composition;

// Bytes from `offset` on of memory that the caller keeps alive, of an open file, or of a composition.
struct View {
  Dtype dtype = Dtype::f32;
  const char* memory = nullptr;  // already at the offset
  int fd = -1;
  int64_t offset = 0;
  std::shared_ptr<const Composition> composition;

  // Produces the bytes [begin, begin + bytes). Throws std::system_error as read_at does.
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

// Row i of `row_bytes` is row index[i] of the source. Neighbours in the source are read at once.
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

// Stripes that each have a piece of every part: that of part p lies between starts[p] and starts[p + 1] of the stripe.
// Parts that are joined along the first axis make a single stripe.
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

}  // namespace warpmerge
