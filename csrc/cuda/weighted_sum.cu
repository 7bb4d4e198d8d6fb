// Weighted sums of the inputs of a launch's tensors: one output for each row of coefficients.
//
// This is an accelerator. python/warpmerge/expr/library.py defines the sum as an expression, csrc/ops/weighted_sum.h
// has its two exact rules, and tests/expr/test_accelerators.py compares the bits. The packed kernels hold a pack of
// eight elements of each model in registers, so one read serves all outputs. They take aligned operands of one storage
// type and up to eight models. Packs that are cut short or not finite are left to the end, where the generic path takes
// them, so the loop needs no registers for them. The generic path reads the models once for each output. In exchange
// there is a packed kernel for each storage type and number of models.
#include "../ops/weighted_sum.h"

#include "deltas.h"
#include "stores.h"

namespace warpmerge {
namespace {

constexpr int kSumThreads = 256;
// Coefficients of a segment that are kept in shared memory.
constexpr int kSumCoefficients = 1024;

// Thread blocks on a multiprocessor: as many as the registers for K models allow.
constexpr int sum_blocks(int models) { return models <= 2 ? 4 : models == 3 ? 3 : models <= 7 ? 2 : 1; }

template <class T>
WM_DEVICE void stage_coefficients(const double* numbers, int count, T* staged) {
  for (int i = int(threadIdx.x); i < count && i < kSumCoefficients; i += kSumThreads) staged[i] = T(numbers[i]);
  __syncthreads();
}

template <class T>
WM_DEVICE T coefficient(const double* numbers, const T* staged, int i) {
  return i < kSumCoefficients ? staged[i] : T(numbers[i]);
}

// The generic path: any dtype, any alignment.
template <class T, int N>
WM_DEVICE void sum_pack(const Table& table, const Chunk& chunk, bool agree, int at, int n) {
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  Widened<T, N> base;
  load_base(table, chunk, at, n, base);
  WM_ROLLED
  for (int m = 0; m < table.outputs; ++m) {
    T sum[N] = {}, first[N] = {};
    Bits<T> differ[N] = {};
    WM_ROLLED
    for (int k = 0; k < table.models; ++k) {
      T d[N];
      load_deltas(table, chunk, k, base, at, n, m == 0, d);
      const T c = T(numbers[m * table.models + k]);
      WM_UNROLL
      for (int e = 0; e < N; ++e) {
        first[e] = k == 0 ? d[e] : first[e];
        differ[e] |= differing_bits(d[e], first[e]);
        sum[e] = k == 0 ? c * d[e] : sum[e] + c * d[e];
      }
    }
    WM_UNROLL
    for (int e = 0; e < N; ++e) {
      if (table.has_base)
        sum[e] = add_delta(base.get(e), sum[e]);
      else if (agree && differ[e] == 0)
        sum[e] = first[e];
    }
    settle_results(table, chunk, at, n, sum);
    store_any(table, chunk, m, at, n, sum);
  }
}

// The packs that a packed kernel leaves out, one element at a time: that needs few registers.
WM_DEVICE void unusual_sums(const Table& table, const Chunk& chunk, bool agree, int at) {
  WM_ROLLED
  for (int e = at; e < at + kPack && e < chunk.count; ++e) sum_pack<float, 1>(table, chunk, agree, e, 1);
}

template <class T>
__global__ void __launch_bounds__(kSumThreads, 1) weighted_sum_any(WM_PARAM Table table, bool agree) {
  const Chunk chunk = chunk_of(table, blockIdx.x);
  for (int at = int(threadIdx.x) * kPack; at < chunk.count; at += kSumThreads * kPack)
    sum_pack<T, kPack>(table, chunk, agree, at, chunk.count - at < kPack ? chunk.count - at : kPack);
}

// All inputs and the base have storage type S and are aligned.
template <class S, int K>
__global__ void __launch_bounds__(kSumThreads, sum_blocks(K)) weighted_sum_packed(WM_PARAM Table table, bool agree) {
  __shared__ float staged[kSumCoefficients];
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  stage_coefficients(numbers, table.outputs * K, staged);
  ChunkSource inputs[K];
  WM_UNROLL
  for (int k = 0; k < K; ++k) inputs[k] = input_of(table, chunk, k);
  const ChunkSource from = base_of(table, chunk);
  uint32_t unusual = 0;  // bit i: the pack of iteration i, left for the end
  WM_ROLLED
  for (int i = 0; i < kChunk / (kSumThreads * kPack); ++i) {
    const int at = (i * kSumThreads + int(threadIdx.x)) * kPack;
    if (at >= chunk.count) break;
    bool usual = at + kPack <= chunk.count;
    if (usual) {
      Packed<S, kPack> x[K], base;
      WM_UNROLL
      for (int k = 0; k < K; ++k) x[k].template load<true>(inputs[k], at, kPack);
      if (table.has_base)
        base.template load<true>(from, at, kPack);
      else
        base.clear();
      float poison = 0;  // NaN as soon as a delta is not finite
      WM_UNROLL
      for (int e = 0; e < kPack; ++e) {
        WM_UNROLL
        for (int k = 0; k < K; ++k) {
          const float d = x[k].get(e) - base.get(e);
          poison = poison + (d - d);
        }
      }
      usual = poison == poison;
      for (int m = 0; usual && m < table.outputs; ++m) {
        float c[K], y[kPack];
        WM_UNROLL
        for (int k = 0; k < K; ++k) c[k] = coefficient(numbers, staged, m * K + k);
        WM_UNROLL
        for (int e = 0; e < kPack; ++e) {
          const float b = base.get(e), first = x[0].get(e) - b;
          float sum = c[0] * first;
          uint32_t differ = 0;
          WM_UNROLL
          for (int k = 1; k < K; ++k) {
            const float d = x[k].get(e) - b;
            sum = sum + c[k] * d;
            differ |= differing_bits(d, first);
          }
          const float alone = agree && differ == 0 ? first : sum;
          y[e] = table.has_base ? add_delta(b, sum) : alone;
        }
        usual = store_packed(table, chunk, m, at, y);
      }
    }
    if (!usual) unusual |= 1u << i;
  }
  WM_ROLLED
  for (; unusual; unusual &= unusual - 1) {
    const int at = ((__ffs(int(unusual)) - 1) * kSumThreads + int(threadIdx.x)) * kPack;
    unusual_sums(table, chunk, agree, at);
  }
}

using SumKernel = void (*)(Table, bool);

template <class S>
SumKernel weighted_sum_of(int models) {
  constexpr SumKernel kernels[] = {weighted_sum_packed<S, 1>, weighted_sum_packed<S, 2>, weighted_sum_packed<S, 3>,
                                   weighted_sum_packed<S, 4>, weighted_sum_packed<S, 5>, weighted_sum_packed<S, 6>,
                                   weighted_sum_packed<S, 7>, weighted_sum_packed<S, 8>};
  return kernels[models - 1];
}

}  // namespace

void weighted_sum(cudaStream_t stream, const KernelLaunch& work, bool agree, int64_t* nonfinite) {
  const Table table = make_table(work, work.outputs * work.models, nonfinite);
  SumKernel kernel = work.fp64 ? weighted_sum_any<double> : weighted_sum_any<float>;
  if (packed(work) && work.models <= kMaxPacked && work.out != Dtype::f64)
    kernel = work.inputs[0] == Dtype::bf16  ? weighted_sum_of<bf16>(work.models)
             : work.inputs[0] == Dtype::f16 ? weighted_sum_of<f16>(work.models)
                                            : weighted_sum_of<float>(work.models);
  launch("weighted_sum", kernel, work.chunks, kSumThreads, stream, table, agree);
}

}  // namespace warpmerge
