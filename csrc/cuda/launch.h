// The host functions that launch the kernels. Each describes its work by a table in device memory, so that one launch
// covers many tensors; nothing here allocates, copies or waits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "../ops/common.h"

namespace warpmerge {

// Elements that one thread block works on. Chunks never cross tensors.
constexpr int kChunk = 16384;

// Columns of a row of `KernelLaunch::segment_rows`; the addresses of all inputs follow, then those of all outputs.
// Addresses are those of the segment's first element.
enum SegmentColumn : int {
  kSegmentCount = 0,   // elements of the segment
  kSegmentFirst = 1,   // flat index of its first element in the tensor, a multiple of kChunk
  kSegmentChunk = 2,   // number of its first chunk in this launch
  kSegmentTensor = 3,  // number of its tensor: the row in the arrays of results
  kSegmentBlock = 4,   // row of its first block of the reduction order in the arrays of block partials
  kSegmentTotal = 5,   // elements of the whole tensor; 0: as many as of the segment
  kSegmentBase = 6,    // address, 0: no base
  kSegmentInputs = 7
};

// The table of a launch: `segments` element ranges of one tensor each, which agree in all but their rows and numbers.
// The pointers are device addresses of arrays that start at multiples of 16 bytes.
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

// `nonfinite`: [tensors, models + 1] counters of elements that are NaN or infinite, last those of the base; null: none.

// `numbers`: per segment, `outputs` rows of `models` coefficients.
void weighted_sum(cudaStream_t stream, const KernelLaunch& launch, bool agree, int64_t* nonfinite);

// `numbers`: per segment value[models], vote[models], divisor[models], lambda.
void elect_and_sum(cudaStream_t stream, const KernelLaunch& launch, bool elect, int64_t* nonfinite);

// Sums of each input (or delta) in the compute type: `partials` [blocks, models].
void tensor_sums(cudaStream_t stream, const KernelLaunch& launch, double* partials, int64_t* nonfinite);

// Sums of magnitudes, and of those of the elements that `rules` keep: `partials` [blocks, models, 2].
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
// Columns of a row of `KernelLaunch::words`. Behind them keys[keys], addresses of float64 vectors[vectors], and for
// each input that is ranked the address of the ranks, in the compute type, of the segment's elements.
enum WordColumn : int { kWordColumns = 0, kWordOrder = 1, kWordRest = 2 };  // length of a row; for `ranks`, else 0

// Bytes of shared memory up to which operands stay there, those of one warp and the constants counted.
constexpr int64_t kFormulaShared = 96 << 10;

// The values of a formula in the launch's outputs. `numbers`: constants; `rules`: [segments, rules, 4]. With `combine`
// they are results: added to the base, or without one, where the first `agree` inputs are the same that input. Else
// they are to be measured, and what is not finite becomes 0.
void formula(cudaStream_t stream, const KernelLaunch& launch, const KernelProgram& program, bool combine, int agree,
             int64_t* nonfinite);

// Ranks of one input's magnitudes in their rows, to the `ordinal`-th address of ranks. Segments are whole rows, at most
// `longest` elements each; where that is more than kRankShared, kWordOrder is the address of 8 bytes per element.
constexpr int64_t kRankShared32 = 8192, kRankShared64 = 4096;
void ranks(cudaStream_t stream, const KernelLaunch& launch, const KernelProgram& program, int input, int ordinal,
           int64_t longest);

// Sums (or the largest) of the blocks of rows of each input: `partials` [row blocks, models]. kSegmentBlock is the
// number of the tensor's first one; a segment begins and ends with whole ones. `words` [segments, 1]: kWordColumns.
void row_values(cudaStream_t stream, const KernelLaunch& launch, bool largest, double* partials);

// From those `result` [rows, models]. `ranges` [tensors, 4]: first row, rows, first block, blocks of a row. Destroys
// `partials`.
void row_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t rows, int models,
                bool largest, double* result);

// Sums of products of two of the inputs, for each row: `sums` of each. `value_pairs` [number, kValuePairColumns] says
// which: two inputs a and b, and the numbers of the sums of a a, a b and b b, -1 where one is not asked for. Otherwise
// as `row_values`: `partials` [row blocks, sums].
constexpr int kValuePairColumns = 5, kColumnTile = 128, kColumnWords = 2;
void row_products(cudaStream_t stream, const KernelLaunch& launch, const int64_t* value_pairs, int number, int sums,
                  double* partials);

// Folds of columns; `term`: of ops/reduce.h. Unless it is a product, the terms are the squares of `value_pairs`, which
// stand for their values. `partials` [column blocks of a tensor, sums, columns] begins for each tensor at
// kSegmentBlock, and `chunks` counts tiles of kColumnTile columns of a block of rows: tile t of a segment is of its
// block t / (tiles of a row). Segments are whole rows; what a block needs of an earlier segment is in `partials`, so
// launches that share blocks have to be done in order. `words` [segments, kColumnWords]: kWordColumns and
// rows_of_column_block.
void column_terms(cudaStream_t stream, const KernelLaunch& launch, const int64_t* value_pairs, int number, int sums,
                  int term, double* partials);

// From those of columns `result` [sums]. `ranges` [tensors, 4]: first sum, sums, first partial, blocks. Destroys
// `partials`.
void column_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t sums,
                   bool largest, double* result);

// Adds up the rows of each tensor, `ranges` [tensors, 2] = (first row, number of rows), to `result` [tensors, width].
// Destroys `partials`.
void reduce_blocks(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int width,
                   double* result);

// Columns of `state` [tensors, models, kSelectColumns], the progress of one selection.
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

// `bins` [tensors, models, kSelectBins + 2]: counters of one sweep, by key; behind the bins the keys above the
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
