// The common part of all items: operands, outputs, and the walk over tiles.
//
// An item is one request on one tensor (docs/architecture.md, "CPU"). The pool calls an item with the number of a tile.
// `TensorItem` loads the operands of the tile and calls `range`; there each subclass calls its kernel. `CombineItem`
// also finds memory for the results, takes their digest and writes them. So a kernel sees plain addresses, wherever a
// tensor lies. Operands in memory are used in place. Other operands are copied once, into the worker's buffer, where
// they stay in the cache.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "../io/background.h"
#include "formula.h"
#include "kernels.h"
#include "pool.h"
#include "view.h"

namespace warpmerge {

// The decisions of a rank mask on a model's elements, one bit each, with room for whole stages.
struct Decisions {
  int model;
  Mask rule;
  bool complete = false;
  std::vector<uint8_t> bits;
};

// The inputs of one output tensor.
struct Tensors {
  int64_t count = 0;
  std::vector<View> inputs;
  View base;
  bool has_base = false;
  bool fp64 = false;  // compute in float64
  Nonfinite policy = Nonfinite::error;
  std::shared_ptr<const Formula> formula;  // null: none

  int models() const { return int(inputs.size()); }
  // How many values are measured or written: those of the formula, or one for each delta.
  int values() const { return formula ? formula->program().values : models(); }
  // The first value that is the same operand as value k.
  int first_like(int k) const { return formula ? formula->program().firsts[k] : k; }
  // The input whose delta is value k; -1 if value k is not a delta.
  int input_of(int k) const {
    const int number = formula ? formula->program().outputs[k] : k;
    return number < models() ? number : -1;
  }
  // Whether tiles need whole rows.
  bool ranked() const { return formula && formula->program().ranked_count > 0; }

  // The decisions of `rule` on the model's deltas; new ones if there are none.
  Decisions& decisions_of(int model, const Mask& rule);
  bool decided() const { return !decisions_.empty(); }

 private:
  std::deque<Decisions> decisions_;  // a deque: references to its entries stay valid
};

// The elements [begin, begin + count) of all operands: in place if an operand is in memory, else in the worker's
// buffer. Rows are loaded whole if ranks are asked for, or if `columns`, their length, is given. `only`: the one input
// that is loaded; -1: all of them.
class Loaded {
 public:
  Loaded(const Tensors& tensors, int64_t begin, int64_t count, Worker& worker, int64_t columns = 0, int only = -1);
  Operands operands() { return {sources_.data(), models_, base_, first_, policy_, program_, ranks_.data()}; }

 private:
  void prepare_ranks(int64_t columns, bool fp64, Worker& worker);

  std::vector<Source> sources_;  // the models, then the base
  std::vector<RankedRow> ranks_;
  int models_;
  const Source* base_;
  int64_t first_;
  Nonfinite policy_;
  const Program* program_;
};

// Where results go: memory, or a region of a file.
struct Output {
  Dtype dtype = Dtype::f32;
  char* memory = nullptr;
  std::shared_ptr<File> file;
  int64_t offset = 0;
  std::shared_ptr<Background> background;

  // Writes bytes of the result, from its byte `begin` on, to the file.
  void write(const void* data, int64_t bytes, int64_t begin) const;
};

// An item over the elements of `tensors`, in tiles of `tile_elements`.
class TensorItem : public Item {
 public:
  // `columns`: length of the rows that tiles load whole; 0: none.
  TensorItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns = 0);
  int64_t tiles() const override { return tensors_->count == 0 ? 1 : (tensors_->count + step_ - 1) / step_; }
  void tile(int64_t index, Worker& worker) override;

  // How many elements are NaN or infinite, per model and for the base; last, how many results are of finite elements.
  std::vector<int64_t> nonfinite() const { return {nonfinite_.begin(), nonfinite_.end()}; }
  bool any_nonfinite() const {
    return std::any_of(nonfinite_.begin(), nonfinite_.end(), [](const auto& count) { return count != 0; });
  }
  const Tensors& tensors() const { return *tensors_; }

 protected:
  // Whether tiles have nothing to do. Then they are not read.
  virtual bool idle() const { return false; }
  // The first element of a tile. For the number after the last tile it is the tensor's end.
  virtual int64_t first_of(int64_t index) const { return std::min(index * step_, tensors_->count); }
  virtual void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                     int64_t* nonfinite) = 0;
  // Loads elements and calls `range` on them.
  void part(int64_t index, int64_t begin, int64_t count, Worker& worker);
  template <class T>
  const KernelSet<T>& set() const {
    return kernels_.of<T>();
  }
  size_t scratch_size() const {
    return scratch_bytes(tensors_->models()) + (tensors_->formula ? scratch_bytes(tensors_->formula->program()) : 0);
  }
  void* scratch(Worker& worker) const { return worker.scratch(scratch_size()); }

  const Kernels& kernels_;
  const std::shared_ptr<Tensors> tensors_;
  const int64_t step_;

 private:
  const int64_t columns_;
  std::vector<std::atomic<int64_t>> nonfinite_;
};

// Elements per tile, a multiple of `unit`. If ranks are asked for, tiles cut as few rows as they can: each tile that
// has part of a row ranks the whole row.
int64_t tile_step(const Tensors& tensors, int64_t tile_elements, int64_t unit, int64_t columns = 0);

// A measuring item: its tiles are whole blocks of the reduction order.
inline int64_t whole_blocks(const Tensors& tensors, int64_t tile_elements, int64_t columns = 0) {
  return tile_step(tensors, tile_elements, kBlock, columns);
}

// An item that makes one or several output tensors.
class CombineItem : public TensorItem {
 public:
  CombineItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
              std::vector<Output> outputs, int64_t columns = 0);
  std::vector<uint64_t> digests() const;

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) final;
  virtual void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                       int64_t* nonfinite) = 0;
  const std::vector<Output> outputs_;

 private:
  std::vector<std::atomic<uint64_t>> digests_;
};

// Copies bytes, and takes their digest if `digested`. Without an output it takes the digest only. `position`: where
// these bytes begin in the byte string that is digested, a multiple of 8.
class CopyItem final : public Item {
 public:
  CopyItem(const Kernels& kernels, View source, int64_t bytes, int64_t tile_bytes, Output output, int64_t position,
           bool digested);
  int64_t tiles() const override { return bytes_ == 0 ? 1 : (bytes_ + step_ - 1) / step_; }
  void tile(int64_t index, Worker& worker) override;
  uint64_t digest() const;
  // The digest without the term of the length. Those of all pieces of a byte string add up.
  uint64_t partial_digest() const { return digest_; }

 private:
  const Kernels& kernels_;
  const View source_;
  const int64_t bytes_;
  const int64_t step_;
  const Output output_;
  const int64_t position_;
  const bool digested_;
  std::atomic<uint64_t> digest_{0};
};

}  // namespace warpmerge
