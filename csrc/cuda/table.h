// The launch table as a kernel sees it (launch.h has its layout).
//
// `Table` is an argument by value: the addresses of the arrays, and what all segments of the launch have in common. A
// thread block works on one chunk of 16384 elements. It finds its segment in `chunk_map`: one dependent load. A search
// over prefix sums would cost eight (docs/decisions.md). In exchange the map takes four bytes for each chunk.
#pragma once

#include <stdexcept>

#include "../ops/convert.h"
#include "../ops/gram.h"
#include "grid.h"
#include "launch.h"

namespace warpmerge {

constexpr int kMaxModels = 1024;

struct Table {
  const int64_t* segment_rows;
  const int32_t* chunk_map;
  const double* numbers;
  const int64_t* rules;
  const int64_t* words;
  unsigned long long* nonfinite;
  int64_t segments, chunks;
  int models, outputs, columns, numbers_per_segment;
  bool has_base, aligned;
  Dtype base, out;
  Nonfinite policy;
  uint64_t dtypes[kMaxModels / 32];  // of the inputs, 2 bits each
};

WM_FN Dtype dtype_of(const Table& table, int model) {
  return Dtype(table.dtypes[model / 32] >> (2 * (model % 32)) & 3);
}

inline Table make_table(const KernelLaunch& launch, int numbers_per_segment, int64_t* nonfinite) {
  if (launch.models < 1 || launch.models > kMaxModels || launch.inputs.size() != size_t(launch.models))
    throw std::runtime_error("a launch takes 1 to " + std::to_string(kMaxModels) + " models");
  Table table{};
  table.segment_rows = launch.segment_rows;
  table.chunk_map = launch.chunk_map;
  table.numbers = launch.numbers;
  table.rules = launch.rules;
  table.words = launch.words;
  table.nonfinite = reinterpret_cast<unsigned long long*>(nonfinite);
  table.segments = launch.segments;
  table.chunks = launch.chunks;
  table.models = launch.models;
  table.outputs = launch.outputs;
  table.columns = kSegmentInputs + launch.models + launch.outputs;
  table.numbers_per_segment = numbers_per_segment;
  table.has_base = launch.base >= 0;
  table.aligned = launch.aligned;
  table.base = launch.base >= 0 ? Dtype(launch.base) : Dtype::f32;
  table.out = launch.out;
  table.policy = launch.policy;
  for (int k = 0; k < launch.models; ++k) table.dtypes[k / 32] |= uint64_t(launch.inputs[k]) << (2 * (k % 32));
  return table;
}

// Models that a combining kernel takes in registers at once.
constexpr int kMaxPacked = 8;

// Whether inputs and base can be read as packed vectors of one storage type that is computed in float32.
inline bool packed(const KernelLaunch& launch) {
  if (!launch.aligned || launch.fp64 || launch.inputs[0] == Dtype::f64) return false;
  for (const Dtype dtype : launch.inputs)
    if (dtype != launch.inputs[0]) return false;
  return launch.base < 0 || Dtype(launch.base) == launch.inputs[0];
}

// What a thread block works on: a segment's row of `segment_rows`, and a range of its elements.
struct Chunk {
  const int64_t* segment_row;
  int64_t segment;
  int64_t begin;  // position of the first element in the segment
  int count;
};

WM_FN const int64_t* segment_row_of(const Table& table, int64_t segment) {
  return table.segment_rows + segment * table.columns;
}

WM_FN Chunk chunk_of(const Table& table, int64_t number) {
  Chunk chunk;
  chunk.segment = table.chunk_map[number];
  chunk.segment_row = segment_row_of(table, chunk.segment);
  chunk.begin = (number - chunk.segment_row[kSegmentChunk]) * kChunk;
  const int64_t left = chunk.segment_row[kSegmentCount] - chunk.begin;
  chunk.count = int(left < kChunk ? left : kChunk);
  return chunk;
}

WM_FN const char* address(const int64_t* segment_row, int column) {
  return reinterpret_cast<const char*>(segment_row[column]);
}

}  // namespace warpmerge
