// The request `Gram` on the tensors of a launch: squared norms of the inputs, and squared distances of all pairs of
// inputs.
//
// csrc/ops/gram.h defines the terms and the layout, csrc/ops/reduce.h the order of the sums. A warp works on one block
// of 4096 elements, and each thread adds the terms of its lanes in registers (warps.h). Up to four packed vectors are
// read once for all their pairs. Other vectors are divided into sets of three, and a thread block takes the pairs
// within a set or between two sets. So registers suffice for any number of vectors. In exchange a set is read again for
// each other set. Thread blocks of one chunk have neighbouring numbers, so that these reads find the cache. reduce.cu
// adds the sums of the blocks.
#include "../ops/gram.h"

#include "warps.h"

namespace warpmerge {
namespace {

// Neighbouring lanes of a thread: few, because each lane needs a sum in float64 for every pair of vectors. A warp takes
// the lanes of a block in two halves. They are the two branches at the root of the tree.
constexpr int kGramPack = 4;
constexpr int kHalf = kWarp * kGramPack;
static_assert(kLanes == 2 * kHalf, "a row is two halves");
// For up to kWholeGram vectors a thread block takes all pairs at once. More vectors are divided into sets of kSet.
constexpr int kWholeGram = 4, kSet = 3;

// Thread blocks on a multiprocessor: as many as the registers for the sums allow.
constexpr int gram_blocks(int vectors) { return vectors <= 3 ? 4 : 3; }
template <class Pack>
constexpr int kSetBlocks = std::is_same_v<Pack, Packed<float, kGramPack>> ? 2 : 3;

struct GramBlock {
  int at;    // of the first element in the chunk
  int lane;  // of this thread in its warp
  double* partials;
};

// Where this thread's elements of a row are in the chunk.
WM_FN int element_of(const GramBlock& block, int row, int half) {
  return block.at + row * kLanes + half * kHalf + block.lane * kGramPack;
}

// Column of the distance between the vectors i < k.
WM_FN int64_t distance_column(int vectors, int i, int k) {
  return vectors + int64_t(i) * (2 * vectors - i - 1) / 2 + (k - i - 1);
}

// Writes the sum of a half of the lanes, or adds that of the second to it.
WM_DEVICE void put_sum(const GramBlock& block, int64_t column, int half, const double (&sums)[kGramPack], bool wanted) {
  const double sum = sum_of_lanes(sums);
  if (block.lane != 0 || !wanted) return;
  double* to = block.partials + column;
  *to = half == 0 ? sum : *to + sum;
}

// V vectors and the base, as they are stored. A number past the last vector stands for the last vector.
template <class Pack, int V>
struct Stored {
  Pack x[V], base;

  WM_METHOD void load(const Table& table, const Chunk& chunk, const int (&vectors)[V], int at) {
    const int n = left_in(chunk, at, kGramPack);
    WM_UNROLL
    for (int k = 0; k < V; ++k)
      x[k].template load<false>(input_of(table, chunk, vectors[k] < table.models ? vectors[k] : table.models - 1), at,
                                n);
    if (table.has_base)
      base.template load<false>(base_of(table, chunk), at, n);
    else
      base.clear();
  }

  WM_METHOD void deltas(const Table& table, const Chunk& chunk, const int (&vectors)[V], bool count,
                        typename Pack::T (&d)[V][kGramPack]) const {
    WM_UNROLL
    for (int k = 0; k < V; ++k)
      deltas_over_finite(table, chunk, vectors[k], x[k], base, count && vectors[k] < table.models, d[k]);
  }
};

// Norms of V vectors and the distances between them. `kTogether`: rows whose loads are issued together.
template <class Pack, int V, int kTogether>
WM_DEVICE void gram_within(const Table& table, const Chunk& chunk, const GramBlock& block, int first) {
  constexpr int kPairs = V * (V - 1) / 2;
  int vectors[V];
  WM_UNROLL
  for (int k = 0; k < V; ++k) vectors[k] = first + k;
  WM_ROLLED
  for (int half = 0; half < 2; ++half) {
    double norms[V][kGramPack], distances[kPairs + 1][kGramPack];
    WM_UNROLL
    for (int e = 0; e < kGramPack; ++e) {
      WM_UNROLL
      for (int k = 0; k < V; ++k) norms[k][e] = 0.0;
      WM_UNROLL
      for (int p = 0; p < kPairs; ++p) distances[p][e] = 0.0;
    }
    WM_ROLLED
    for (int row = 0; row < kRows; row += kTogether) {
      Stored<Pack, V> stored[kTogether];
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) stored[r].load(table, chunk, vectors, element_of(block, row + r, half));
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        typename Pack::T d[V][kGramPack];
        stored[r].deltas(table, chunk, vectors, true, d);
        WM_UNROLL
        for (int e = 0; e < kGramPack; ++e) {
          double v[V];
          WM_UNROLL
          for (int k = 0; k < V; ++k) v[k] = double(d[k][e]);
          int p = 0;
          WM_UNROLL
          for (int i = 0; i < V; ++i) {
            norms[i][e] = norms[i][e] + v[i] * v[i];
            WM_UNROLL
            for (int k = i + 1; k < V; ++k, ++p) {
              const double difference = v[i] - v[k];
              distances[p][e] = distances[p][e] + difference * difference;
            }
          }
        }
      }
    }
    int p = 0;
    WM_UNROLL
    for (int i = 0; i < V; ++i) {
      put_sum(block, first + i, half, norms[i], first + i < table.models);
      WM_UNROLL
      for (int k = i + 1; k < V; ++k, ++p)
        put_sum(block, distance_column(table.models, first + i, first + k), half, distances[p],
                first + k < table.models);
    }
  }
}

// Distances between two sets of vectors.
template <class Pack>
WM_DEVICE void gram_between(const Table& table, const Chunk& chunk, const GramBlock& block, int first, int second) {
  int vectors[2 * kSet];
  WM_UNROLL
  for (int k = 0; k < kSet; ++k) vectors[k] = first + k, vectors[kSet + k] = second + k;
  WM_ROLLED
  for (int half = 0; half < 2; ++half) {
    double distances[kSet * kSet][kGramPack];
    WM_UNROLL
    for (int e = 0; e < kGramPack; ++e) {
      WM_UNROLL
      for (int p = 0; p < kSet * kSet; ++p) distances[p][e] = 0.0;
    }
    WM_ROLLED
    for (int row = 0; row < kRows; ++row) {
      Stored<Pack, 2 * kSet> stored;
      stored.load(table, chunk, vectors, element_of(block, row, half));
      typename Pack::T d[2 * kSet][kGramPack];
      stored.deltas(table, chunk, vectors, false, d);
      WM_UNROLL
      for (int e = 0; e < kGramPack; ++e) {
        WM_UNROLL
        for (int p = 0; p < kSet * kSet; ++p) {
          const double difference = double(d[p / kSet][e]) - double(d[kSet + p % kSet][e]);
          distances[p][e] = distances[p][e] + difference * difference;
        }
      }
    }
    WM_UNROLL
    for (int p = 0; p < kSet * kSet; ++p)
      put_sum(block, distance_column(table.models, first + p / kSet, second + p % kSet), half, distances[p],
              second + p % kSet < table.models);
  }
}

WM_DEVICE GramBlock gram_block_of(const Table& table, const Chunk& chunk, double* partials) {
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t row = chunk.segment_row[kSegmentBlock] + chunk.begin / kBlock + warp;
  return {warp * kBlock, int(threadIdx.x) % kWarp, partials + row * gram_size(table.models)};
}

template <class Pack, int V>
__global__ void __launch_bounds__(kMeasureThreads, gram_blocks(V)) gram_whole(WM_PARAM Table table, double* partials) {
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const GramBlock block = gram_block_of(table, chunk, partials);
  if (block.at < chunk.count) gram_within<Pack, V, V <= 2 ? 4 : 2>(table, chunk, block, 0);
}

// A thread block per chunk and pair of sets (a, b), a <= b. Thread blocks of one chunk follow each other, so that they
// find its elements in the cache.
template <class Pack>
__global__ void __launch_bounds__(kMeasureThreads, kSetBlocks<Pack>)
    gram_sets(WM_PARAM Table table, int pairs, double* partials) {
  const Chunk chunk = chunk_of(table, blockIdx.x / unsigned(pairs));
  const GramBlock block = gram_block_of(table, chunk, partials);
  int b = 0, a = int(blockIdx.x % unsigned(pairs));
  while (a > b) a -= ++b;
  if (block.at >= chunk.count) return;
  if (a == b)
    gram_within<Pack, kSet, 1>(table, chunk, block, a * kSet);
  else
    gram_between<Pack>(table, chunk, block, a * kSet, b * kSet);
}

using WholeKernel = void (*)(Table, double*);

template <class Pack>
WholeKernel gram_whole_of(int vectors) {
  static_assert(kWholeGram == 4, "a kernel for each number of vectors");
  constexpr WholeKernel kernels[] = {gram_whole<Pack, 1>, gram_whole<Pack, 2>, gram_whole<Pack, 3>,
                                     gram_whole<Pack, 4>};
  return kernels[vectors - 1];
}

}  // namespace

void gram(cudaStream_t stream, const KernelLaunch& work, double* partials, int64_t* nonfinite) {
  const Table table = make_table(work, 0, nonfinite);
  if (packed(work) && work.models <= kWholeGram) {
    const WholeKernel kernel = work.inputs[0] == Dtype::bf16  ? gram_whole_of<Packed<bf16, kGramPack>>(work.models)
                               : work.inputs[0] == Dtype::f16 ? gram_whole_of<Packed<f16, kGramPack>>(work.models)
                                                              : gram_whole_of<Packed<float, kGramPack>>(work.models);
    return launch("gram", kernel, work.chunks, kMeasureThreads, stream, table, partials);
  }
  const int sets = (work.models + kSet - 1) / kSet, pairs = sets * (sets + 1) / 2;
  using Kernel = void (*)(Table, int, double*);
  const Kernel kernel = with_pack<kGramPack>(work, [](auto pack) -> Kernel { return gram_sets<decltype(pack)>; });
  launch("gram", kernel, work.chunks * pairs, kMeasureThreads, stream, table, pairs, partials);
}

}  // namespace warpmerge
