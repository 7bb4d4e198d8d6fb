// The host functions that launch the kernels, and the layout of the tables that describe their work.
//
// A table lies in device memory and describes many segments, so one launch covers many tensors of any size.
// python/warpmerge/backends/gpu/tables.py packs the tables. Segments of a launch agree in dtypes, number of models and
// flags. Nothing here allocates, copies or waits: the caller owns all memory and decides when to look at results. In
// exchange the caller must know the shape of each array of results; the comments below give it in brackets.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "../ops/common.h"

namespace warpmerge {

// Elements that one thread block works on. Chunks never cross tensors.
constexpr int kChunk = 16384;

// Columns of a row of `KernelLaunch::segment_rows`. The addresses of all inputs follow, then the addresses of all
// outputs. An address is that of the segment's first element. Its index is a multiple of kChunk, unless the request
// needs segments that end between rows or blocks (python/warpmerge/backends/gpu/formulas.py).
enum SegmentColumn : int {
  kSegmentCount = 0,   // elements of the segment
  kSegmentFirst = 1,   // flat index of its first element in the tensor
  kSegmentChunk = 2,   // number of its first chunk in this launch
  kSegmentTensor = 3,  // number of its tensor: the row in the arrays of results
  kSegmentBlock = 4,   // row of its first block of the reduction order in the arrays of block partials
  kSegmentTotal = 5,   // elements of the whole tensor; 0: the segment is the tensor
  kSegmentBase = 6,    // address, 0: no base
  kSegmentInputs = 7
};

// The table of a launch. A segment is a range of elements of one tensor. Segments differ in their rows of the arrays
// only. The pointers are device addresses of arrays that start at multiples of 16 bytes.
struct KernelLaunch {
  int64_t segments = 0;
  int64_t chunks = 0;
  int models = 0;
  int outputs = 0;
  std::vector<Dtype> inputs;  // one per model
  int base = -1;              // dtype code, or -1: the deltas are the inputs themselves
  Dtype out = Dtype::f32;
  bool fp64 = false;  // compute in float64
  Nonfinite policy = Nonfinite::error;
  bool aligned = false;                   // all addresses of elements are multiples of 16
  const int64_t* segment_rows = nullptr;  // [segments, kSegmentInputs + models + outputs]
  const int32_t* chunk_map = nullptr;     // [chunks]: the segment of each
  const double* numbers = nullptr;        // [segments, n]: coefficients
  const int64_t* rules = nullptr;         // [segments, models, 4]: cut (-1: by threshold), threshold, tie_end, key
  const int64_t* words = nullptr;         // [segments, n]: of formulas and rows
};

// `nonfinite`: [tensors, models + 2] counters: of each input, then of the base, the elements that are NaN or infinite;
// then the results that are, of which all operands are finite. Null: do not count.

// `numbers`: per segment, `outputs` rows of `models` coefficients.
void weighted_sum(cudaStream_t stream, const KernelLaunch& launch, bool agree, int64_t* nonfinite);

// `numbers`: per segment value[models], vote[models], divisor[models], lambda.
void elect_and_sum(cudaStream_t stream, const KernelLaunch& launch, bool elect, int64_t* nonfinite);

// Sums of each input (or delta) in the compute type: `partials` [blocks, models].
void tensor_sums(cudaStream_t stream, const KernelLaunch& launch, double* partials, int64_t* nonfinite);

// Sums of all magnitudes, and sums of the magnitudes that `rules` keep: `partials` [blocks, models, 2].
void kept_sums(cudaStream_t stream, const KernelLaunch& launch, double* partials, int64_t* nonfinite);

// `partials`: [blocks, gram_size(models)].
void gram(cudaStream_t stream, const KernelLaunch& launch, double* partials, int64_t* nonfinite);

// The program of a formula, the same for all segments of a launch. Operands are numbered: the inputs (deltas if there
// is a base), the base (0 without one), the temporaries, the constants.
struct KernelProgram {
  // Rows of kFormulaFields, and behind them the operand numbers of the values, in whole rows.
  const int16_t* code = nullptr;
  int instructions = 0, operands = 0, constants = 0, values = 0;  // operands: all but the constants
  int rules = 0, keys = 0, vectors = 0, ranks = 0;
  void* file = nullptr;  // memory for operands where they do not fit into shared memory
  int64_t file_bytes = 0;
};
enum FormulaField : int {
  kFieldOp = 0,      // of FormulaOp
  kFieldTarget = 1,  // the temporary; kNoOperand: only the next instruction needs the result
  kFieldA = 2,       // operands: kLastResult, kNoOperand, or a number
  kFieldB = 3,
  kFieldC = 4,
  kFieldPayload = 5,  // which rule, key, vector or ranks
  kFormulaFields = 8
};
constexpr int kLastResult = 0xffff, kNoOperand = 0xfffe;  // the largest numbers, unsigned
// Columns of a row of `KernelLaunch::words`. Behind them: keys [keys], addresses of float64 vectors [vectors], and for
// each ranked input the address of the ranks of the segment's elements, in the compute type.
enum WordColumn : int { kWordColumns = 0, kWordOrder = 1, kWordRest = 2 };  // length of a row; for `ranks`, else 0

// Operands stay in shared memory if those of one warp, and the constants, take no more bytes than this.
constexpr int64_t kFormulaShared = 96 << 10;

// Writes the values of a formula to the launch's outputs. `numbers`: constants; `rules`: [segments, rules, 4]. With
// `combine` the outputs are results. With a base, a value is added to it. Without a base, if the first `agree` inputs
// are bit-identical, the output is that input. Without `combine` the values will be measured: one that is not finite
// becomes 0.
void formula(cudaStream_t stream, const KernelLaunch& launch, const KernelProgram& program, bool combine, int agree,
             int64_t* nonfinite);

// Writes the ranks of one input's magnitudes within their rows to the `ordinal`-th address of ranks. Segments are whole
// rows of at most `longest` elements. If a row is longer than kRankShared, kWordOrder is the address of 8 bytes of
// scratch per element.
constexpr int64_t kRankShared32 = 8192, kRankShared64 = 4096;
void ranks(cudaStream_t stream, const KernelLaunch& launch, const KernelProgram& program, int input, int ordinal,
           int64_t longest);

// Sums, or largest values, of the blocks of rows of each input: `partials` [row blocks, models]. kSegmentBlock is the
// number of the tensor's first block of a row. A segment has whole blocks of rows. `words` [segments, 1]: kWordColumns.
void row_values(cudaStream_t stream, const KernelLaunch& launch, bool largest, double* partials);

// Folds these partials to `result` [rows, models]. `ranges` [tensors, 4]: first row, rows, first block, blocks of a
// row. Destroys `partials`.
void row_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t rows, int models,
                bool largest, double* result);

// Sums of products of two inputs: `sums` of them for each row. A row of `value_pairs` [number, kValuePairColumns] has
// two inputs a and b, and the numbers of the sums of a a, a b and b b, or -1 for a sum that is not asked for.
// `partials` [row blocks, sums]; otherwise as `row_values`.
constexpr int kValuePairColumns = 5, kColumnTile = 128, kColumnWords = 2;
void row_products(cudaStream_t stream, const KernelLaunch& launch, const int64_t* value_pairs, int number, int sums,
                  double* partials);

// Folds of columns. `term` is a `Term` of ops/reduce.h. For sums of values and largest values, the sums of a a and b b
// in `value_pairs` stand for those of a and b. The `partials` of a tensor, [column blocks, sums, columns], begin at
// kSegmentBlock. `chunks` counts tiles of kColumnTile columns of a block of rows: tile t of a segment belongs to its
// block t / (tiles of a row). Segments are whole rows. If a block began in an earlier segment, its numbers so far are
// in `partials`. So launches that share blocks must run in order. `words` [segments, kColumnWords]: kWordColumns and
// rows_of_column_block.
void column_terms(cudaStream_t stream, const KernelLaunch& launch, const int64_t* value_pairs, int number, int sums,
                  int term, double* partials);

// Folds the partials of columns to `result` [sums]. `ranges` [tensors, 4]: first sum, sums, first partial, blocks.
// Destroys `partials`.
void column_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t sums,
                   bool largest, double* result);

// Adds up the rows of `partials` of each tensor to `result` [tensors, width]. `ranges` [tensors, 2]: first row, number
// of rows. Destroys `partials`.
void reduce_blocks(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int width,
                   double* result);

// Columns of `state` [tensors, models, kSelectColumns]: the progress of one selection.
enum SelectColumn : int {
  kSelectTarget = 0,  // rank from the largest, from 1 on; 0: none asked for
  kSelectLow = 1,     // the interval of keys that holds it, both ends inclusive
  kSelectHigh = 2,
  kSelectAbove = 3,   // keys above the interval
  kSelectInside = 4,  // keys inside, -1: not known
  kSelectTieEnd = 5,
  kSelectStatus = 6,  // of SelectStatus
  kSelectTie = 7,     // the last tie to keep: its block within the tensor << kTieRankBits | its rank within the block
  kSelectColumns = 8
};
enum SelectStatus : int { kSearching = 0, kKeyKnown = 1, kSelected = 2 };
constexpr int kTieRankBits = 20;

// `bins` [tensors, models, kSelectBins + 2]: the counters of one sweep. Behind the bins is the count of keys above the
// interval.
void select_sample(cudaStream_t stream, const KernelLaunch& launch, int64_t* state);
void select_sweep(cudaStream_t stream, const KernelLaunch& launch, const int64_t* state, int64_t* bins,
                  int64_t* nonfinite);
void shrink_interval(cudaStream_t stream, int64_t* state, int64_t* bins, int64_t pairs, bool fp64, bool keep_all_ties);
// `tie_counts`: [blocks, models].
void select_ties(cudaStream_t stream, const KernelLaunch& launch, const int64_t* state, int32_t* tie_counts);
void select_locate(cudaStream_t stream, int64_t* state, const int32_t* tie_counts, const int64_t* ranges,
                   int64_t tensors, int models);
void select_position(cudaStream_t stream, const KernelLaunch& launch, int64_t* state);

}  // namespace warpmerge
