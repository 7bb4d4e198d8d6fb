// The loops over one tile, compiled once per instruction set and reached through a table.
//
// All instruction sets compile the same sources, so there is one mathematics, and the bits do not depend on the
// processor. A call through the table serves a whole tile, so its cost does not count. A tile is the element range
// [begin, begin + count) of a tensor. Sources need no alignment. Arguments are plain data, and nothing here allocates:
// the caller gives scratch memory.
#pragma once

#include <cstddef>

#include "../ops/common.h"
#include "../ops/formula.h"
#include "../ops/gram.h"
#include "../ops/masks.h"
#include "../ops/reduce.h"
#include "../ops/select.h"

namespace warpmerge {

// Elements staged at once in the compute type. 512 floats per input keep 8 models and the base within a 32 KiB L1.
constexpr int kStage = 512;

struct Source {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

// A skip instead of an instruction: go on with step `payload` if no element of operand `a` is 0 in the stage.
constexpr FormulaOp kSkip = FormulaOp(-1);

// An instruction. Operands are numbered: inputs, base, registers, constants. The payload of a `rank` is its place in
// `Program::ranked`.
struct Step {
  FormulaOp op;
  int target, a, b, c, payload;
  // A second instruction, carried out at once on the first one's result and operand c; if `swapped`, on c and the
  // result. So the first result is not stored. FormulaOp::keep: there is none.
  FormulaOp then = FormulaOp::keep;
  bool swapped = false;
};

// Instructions that may be the first and the second of such a pair.
constexpr bool begins_pair(FormulaOp op) {
  return op == FormulaOp::add || op == FormulaOp::sub || op == FormulaOp::mul || op == FormulaOp::min ||
         op == FormulaOp::max || op == FormulaOp::abs;
}
constexpr bool ends_pair(FormulaOp op) {
  return op == FormulaOp::add || op == FormulaOp::sub || op == FormulaOp::mul || op == FormulaOp::min ||
         op == FormulaOp::max || op == FormulaOp::lt || op == FormulaOp::le;
}

// A program as plain data: straight-line code (python/warpmerge/expr/program.py), and the values of its slots.
struct Program {
  const Step* code;
  int steps;
  const int* outputs;
  const int* firsts;  // of each output, the first output that is the same operand
  int values;         // how many outputs
  int registers;
  const double* constants;
  int constant_count;
  const Mask* rules;
  const uint64_t* keys;
  const double* const* vectors;
  int64_t columns;    // elements of a row; 0 if no instruction asks
  const int* ranked;  // the inputs whose ranks are asked for
  int ranked_count;
};

// The ranks of one row, kept from stage to stage while a tile is worked on.
struct RankedRow {
  int64_t row;
  void* ranks;  // columns of the compute type
  void* work;   // rank_work(columns) bytes
};

struct Operands {
  const Source* inputs;
  int models;
  const Source* base;  // null: none
  int64_t first;       // flat index of the elements that the sources point at
  Nonfinite policy;
  const Program* program = nullptr;  // its values take the place of the deltas
  RankedRow* ranks = nullptr;        // one per ranked input

  int values() const { return program ? program->values : models; }
};

struct WeightedSumArgs {
  const double* coefficients;  // outputs x models
  int outputs;
  bool agree;
};

struct ElectAndSumArgs {
  const double *value, *vote, *divisor;  // one per model
  const Mask* keep;                      // one per model
  double lambda;
  bool elect;
};

// Whether an interval is in a tail of the distribution: hardly any key is at or above its lower end (`largest`), or at
// or below its upper end (`smallest`).
enum class Tail : uint8_t { none, largest, smallest };

// One model's interval in a sweep of `select`.
struct SelectInterval {
  uint64_t low, high;
  bool histogram;  // count bins over [low, high] instead of collecting
  int shift;
  Tail tail = Tail::none;
};
struct HistogramInterval {
  uint64_t low, high;
  int shift;
};
// The terms that are folded over rows and columns. A term of products is value first[i] times value second[i]. Of other
// kinds, term i is value i.
struct Terms {
  const int *first, *second;
  int count;
  Term kind;
};
// How many keys of one model a sweep found above its interval, at the two ends, and strictly inside.
struct SelectCounts {
  int64_t above = 0, at_high = 0, at_low = 0, inside = 0;
};

// A matrix W under an adapter: W + s L R (low_rank.inl), each row or column times a factor. Pointers of factors may be
// null.
struct LowRankArgs {
  const double* left;   // rows x rank
  const double* right;  // rank x columns, in panels
  int rank;
  int64_t columns;
  double scale;
  bool exact;  // whether products of L and R are exact in float64
  const double *row_factors, *column_factors;
};
// R lies in panels of so many columns, one after the other, each row-major. The last panel is filled up with zeros to a
// multiple of kPanelStep columns.
constexpr int kPanelColumns = 256, kPanelStep = 16;

inline int64_t panel_width(int64_t columns, int64_t panel) {
  const int64_t left = (columns + kPanelStep - 1) / kPanelStep * kPanelStep - panel * kPanelColumns;
  return left < kPanelColumns ? left : kPanelColumns;
}
// The squares of a row are added up in lanes, which are then folded in halves.
constexpr int kSquareLanes = 64;

template <class T>
struct KernelSet {
  // Each adds to `nonfinite` how many elements of each input, then of the base, are NaN or infinite; then how many
  // results are, of which all operands are finite.
  void (*weighted_sum)(const Operands&, const WeightedSumArgs&, int64_t begin, int64_t count, void* const* out,
                       Dtype out_dtype, void* scratch, int64_t* nonfinite);
  void (*elect_and_sum)(const Operands&, const ElectAndSumArgs&, int64_t begin, int64_t count, void* out,
                        Dtype out_dtype, void* scratch, int64_t* nonfinite);
  // One output per value. If the first `agree` inputs of an element are bit-identical, the output is that input.
  void (*formula)(const Operands&, int agree, int64_t begin, int64_t count, void* const* out, Dtype out_dtype,
                  void* scratch, int64_t* nonfinite);
  // Sums of values in the compute type: one per value and block of kBlock elements, blocks outermost. `begin` is a
  // multiple of kBlock.
  void (*tensor_sums)(const Operands&, int64_t begin, int64_t count, double* blocks, void* scratch, int64_t* nonfinite);
  // Sums of |delta| and of |masked delta|: two per model and block.
  void (*kept_sums)(const Operands&, const Mask*, int64_t begin, int64_t count, double* blocks, void* scratch,
                    int64_t* nonfinite);
  // `blocks`: gram_size(models) doubles per block.
  void (*gram)(const Operands&, int64_t begin, int64_t count, double* blocks, void* scratch, int64_t* nonfinite);
  // Magnitude keys of the deltas for which `active` is set, at most kStage of each, to keys[k].
  void (*keys)(const Operands&, const bool* active, int64_t begin, int count, Bits<T>* const* keys, void* scratch);
  // Counts `count` keys against [low, high] and collects those strictly inside, in order; `out` has room for 64 more.
  void (*collect)(const Bits<T>* keys, int64_t count, Bits<T> low, Bits<T> high, Bits<T>* out, SelectCounts* counts);
  // Classifies the keys of a block, for each delta or value whose `active` is set. Keys strictly inside go to
  // `inside[value]`, which has room for `count + 64` of them. `bins[value]`: kSelectBins counters for a histogram
  // sweep.
  void (*select)(const Operands&, const SelectInterval*, const bool* active, int64_t begin, int64_t count,
                 SelectCounts* counts, Bits<T>* const* inside, int64_t* const* bins, void* scratch, int64_t* nonfinite);
  // Counts the keys of value k above intervals[k], and those within it into bins[k] (kHistogramBins counters).
  // `only[k]`, unless null: for each bin the result of note_key.
  void (*histogram)(const Operands&, const HistogramInterval* intervals, int64_t begin, int64_t count,
                    uint32_t* const* bins, uint64_t* const* only, int64_t* above, void* scratch, int64_t* nonfinite);
  // Folds each row block of a tile; a tile has whole blocks, of rows of `columns`. The results of term t are stored
  // from blocks + t * stride on.
  void (*reduce_rows)(const Operands&, const Terms&, int64_t columns, int64_t begin, int64_t count, double* blocks,
                      int64_t stride, void* scratch, int64_t* nonfinite);
  // Folds whole rows, or a part of one, into `found`: terms x columns.
  void (*reduce_columns)(const Operands&, const Terms&, int64_t columns, int64_t begin, int64_t count, double* found,
                         void* scratch, int64_t* nonfinite);
  // Decides which of one model's elements [begin, begin + count) a rank mask keeps, and sets their bits, all 0 before.
  // `begin` is a multiple of kStage. The other elements of the rows are loaded too. `work`: by_rank_work(columns)
  // bytes.
  void (*decide_by_rank)(const Operands&, int model, const Mask&, int64_t begin, int64_t count, uint8_t* bits,
                         void* work);
};

struct Kernels {
  const char* isa;
  KernelSet<float> fp32;
  KernelSet<double> fp64;
  uint64_t (*digest)(const void* data, size_t bytes, uint64_t first_word);
  // Makes the elements [begin, begin + count) of a matrix from those of W, in place.
  void (*add_low_rank)(const LowRankArgs&, Dtype, int64_t begin, int64_t count, char* data);
  // Adds the squares of W + s L R in whole rows to those of each column, or to the lanes of each row.
  void (*low_rank_squares)(const LowRankArgs&, Dtype, int64_t row, int64_t rows, const char* data, double* squares,
                           bool by_column);
  void (*convert)(const void* data, Dtype from, int64_t count, Dtype to, void* out);

  template <class T>
  const KernelSet<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return fp32;
    else
      return fp64;
  }
};

// Bytes of scratch that any kernel needs for this many models, apart from a formula and from the pairs of a Gram
// matrix.
constexpr size_t scratch_bytes(int models) {
  const size_t stage = kStage * sizeof(double);
  const size_t lanes = kLanes * sizeof(double);
  const size_t combine = stage * (2 * size_t(models) + 8);
  return combine + lanes * (3 * size_t(models)) + 512 * (4 * size_t(models) + 16);
}

// A constant fills a strip, and instructions read the strip again and again. Other operands are arrays of a stage.
constexpr int kStrip = 64;

// Bytes of scratch for a formula, on top of those for the models.
inline size_t scratch_bytes(const Program& program) {
  const size_t array = kStage * sizeof(double) + 512, strip = kStrip * sizeof(double) + 512;
  const size_t lanes = kLanes * sizeof(double);
  return array * (size_t(program.registers) + 8) + strip * size_t(program.constant_count) +
         (array + lanes) * size_t(program.values) + sizeof(void (*)()) * size_t(program.steps) + 64;
}

// Rows and columns of a panel. Its values are kept in float64: 32 KiB for four values. With 4864 columns and seven
// pairs an element takes 0.98 ns. Panels of other sizes: 0.97 ns with 128 columns, 1.05 ns with 448 columns, 1.25 ns
// with 2 rows, 1.07 ns with 8 rows.
constexpr int kPanelRows = 4, kPanel = 256;

// Bytes of scratch to fold terms over rows or columns, on top of those for the models and their formula.
inline size_t scratch_bytes(int values, const Terms& terms) {
  const size_t lanes = size_t(terms.count + 2) + size_t(values);
  return sizeof(double) * (size_t(values) * kPanelRows * kPanel + lanes * kLanes) + 1024;
}

// Bytes that ranking a row needs.
inline size_t rank_work(int64_t columns) {
  return size_t(columns) * (2 * 16 + sizeof(double) + sizeof(uint16_t)) + 2 * sizeof(uint32_t) * kRankBins +
         4 * sizeof(double) * kStage;
}

// Bytes that the decisions of a rank mask need: arrays of a row, a stage's draws, three tables of the counting pass,
// staging.
inline size_t by_rank_work(int64_t columns) {
  const size_t row = size_t(columns) + 64;
  return row * (3 * sizeof(double) + 2 * sizeof(uint32_t) + 3 * sizeof(uint16_t)) + 3 * kStage * sizeof(uint16_t) +
         16 * kRankBins + 8 * kStage * sizeof(double) + 32 * 64;
}

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// Null if the name is unknown or the processor lacks the instructions. `name` empty: the best one.
const Kernels* find_kernels(const char* name);

}  // namespace warpmerge
