// Elect-and-sum on the tensors of a launch: masks, an election of each element's sign, and the sum of the terms that
// agree.
//
// This is an accelerator. python/warpmerge/expr/library.py defines the result as an expression,
// csrc/ops/elect_and_sum.h has the steps for one element, and tests/expr/test_accelerators.py compares the bits. A
// thread takes packs of eight elements: one Philox call, 16 bytes of a 16-bit type. The packed kernels hold the packs
// of all models in registers, so one read serves the votes and the sum. They take aligned operands of one storage type
// and up to eight models. Packs that are cut short, not finite or divided by `tie_end` are left to the end, where the
// generic path takes them, so the loop needs no registers for them. The generic path reads the models twice if there is
// an election. In exchange there is a packed kernel for each storage type and number of models, with and without an
// election.
#include "../ops/elect_and_sum.h"

#include <math.h>

#include "../ops/weighted_sum.h"
#include "deltas.h"
#include "stores.h"

namespace warpmerge {
namespace {

constexpr int kElectThreads = 256;

// Thread blocks on a multiprocessor: as many as the registers for K models allow.
constexpr int elect_and_sum_blocks(int models, size_t itemsize, bool elect) {
  if (models == 4 && itemsize == 4 && !elect) return 2;  // with three it would spill 4 bytes
  return models <= 2 || (models == 3 && itemsize == 2) ? 4 : models <= 4 ? 3 : 2;
}

// The generic path (any dtype, any alignment). An election needs two passes over the models: the first adds the votes,
// the second the terms that agree.
template <class T, int N>
WM_DEVICE void elect_and_sum_pack(const Table& table, const Chunk& chunk, bool elect, int at, int n) {
  const int models = table.models;
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  const int64_t flat = chunk.segment_row[kSegmentFirst] + chunk.begin + at;
  Widened<T, N> base;
  load_base(table, chunk, at, n, base);
  T votes[N], total[N], weight[N];
  WM_UNROLL
  for (int e = 0; e < N; ++e) votes[e] = total[e] = weight[e] = T(0);
  const int first_pass = elect ? 0 : 1;
  WM_ROLLED
  for (int pass = first_pass; pass < 2; ++pass) {
    WM_ROLLED
    for (int k = 0; k < models; ++k) {
      T d[N];
      load_deltas(table, chunk, k, base, at, n, pass == first_pass, d);
      drop(rule_of<T>(table.rules + (chunk.segment * models + k) * 4), flat, d);
      const T value = T(numbers[k]), vote = T(numbers[models + k]), divisor = T(numbers[2 * models + k]);
      WM_UNROLL
      for (int e = 0; e < N; ++e) {
        if (pass == 0) {
          votes[e] = votes[e] + vote * d[e];
        } else {
          const bool counted = !elect || toward(vote * d[e], votes[e] < T(0)) > T(0);
          total[e] = total[e] + (counted ? value * d[e] : T(0));
          weight[e] = weight[e] + (elect && counted ? divisor : T(0));
        }
      }
    }
  }
  const T lambda = T(numbers[3 * models]);
  WM_UNROLL
  for (int e = 0; e < N; ++e)
    total[e] = add_delta(base.get(e), elect_and_sum_delta(votes[e], total[e], weight[e], lambda));
  settle_results(table, chunk, at, n, total);
  store_any(table, chunk, 0, at, n, total);
}

// The packs that a packed kernel leaves out, one element at a time: that needs few registers.
WM_DEVICE void unusual_elect_and_sum(const Table& table, const Chunk& chunk, bool elect, int at) {
  WM_ROLLED
  for (int e = at; e < at + kPack && e < chunk.count; ++e) elect_and_sum_pack<float, 1>(table, chunk, elect, e, 1);
}

template <class T>
__global__ void __launch_bounds__(kElectThreads, 1) elect_and_sum_any(WM_PARAM Table table, bool elect) {
  const Chunk chunk = chunk_of(table, blockIdx.x);
  for (int at = int(threadIdx.x) * kPack; at < chunk.count; at += kElectThreads * kPack)
    elect_and_sum_pack<T, kPack>(table, chunk, elect, at, chunk.count - at < kPack ? chunk.count - at : kPack);
}

// All inputs and the base have storage type S and are aligned.
template <class S, int K, bool kElect>
__global__ void __launch_bounds__(kElectThreads, elect_and_sum_blocks(K, sizeof(S), kElect))
    elect_and_sum_packed(WM_PARAM Table table, bool elect) {
  __shared__ Rule<float> rules[K];
  const Chunk chunk = chunk_of(table, blockIdx.x);
  if (threadIdx.x < K) rules[threadIdx.x] = rule_of<float>(table.rules + (chunk.segment * K + threadIdx.x) * 4);
  __syncthreads();
  const double* numbers = table.numbers + chunk.segment * table.numbers_per_segment;
  float value[K], vote[K], divisor[K];
  ChunkSource inputs[K];
  bool drawn = false;
  WM_UNROLL
  for (int k = 0; k < K; ++k) {
    value[k] = float(numbers[k]), vote[k] = float(numbers[K + k]), divisor[k] = float(numbers[2 * K + k]);
    inputs[k] = input_of(table, chunk, k);
    drawn |= rules[k].drawn;
  }
  const float lambda = float(numbers[3 * K]);
  const ChunkSource from = base_of(table, chunk);
  uint32_t unusual = 0;  // bit i: the pack of iteration i, left for the end
  WM_ROLLED
  for (int i = 0; i < kChunk / (kElectThreads * kPack); ++i) {
    const int at = (i * kElectThreads + int(threadIdx.x)) * kPack;
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
      const int64_t flat = chunk.segment_row[kSegmentFirst] + chunk.begin + at;
      uint32_t bits[K];
      float lowest[K];
      WM_UNROLL
      for (int k = 0; k < K; ++k) {
        lowest[k] = bit_cast<float>(flat < rules[k].tie_end ? rules[k].before : rules[k].after);
        usual &= !straddles(rules[k], flat, kPack);
        bits[k] = 0xffu;
      }
      if (drawn) {
        WM_UNROLL
        for (int k = 0; k < K; ++k)
          if (rules[k].drawn) bits[k] = drawn_bits(rules[k], flat);
      }
      float y[kPack];
      float poison = 0;  // NaN as soon as a delta is not finite
      WM_UNROLL
      for (int e = 0; e < kPack; ++e) {
        const float b = base.get(e);
        float d[K], votes = 0, total = 0, weight = 0;
        WM_UNROLL
        for (int k = 0; k < K; ++k) {
          const float delta = x[k].get(e) - b;
          poison = poison + (delta - delta);
          // For finite numbers, keys order like magnitudes. A bound that keeps nothing is a NaN: `>=` is false.
          d[k] = (bits[k] & (1u << e)) != 0 && fabsf(delta) >= lowest[k] ? delta : 0.0f;
          if (kElect) votes = k == 0 ? vote[k] * d[k] : votes + vote[k] * d[k];
        }
        // Terms that do not agree are left out, and the first term is not added to 0. That changes the sign of a zero
        // at most, and add_delta ignores it.
        const float direction = toward(1.0f, votes < 0.0f);
        WM_UNROLL
        for (int k = 0; k < K; ++k) {
          const bool counted = !kElect || vote[k] * d[k] * direction > 0.0f;
          const float term = value[k] * d[k];
          if (k == 0) {
            total = counted ? term : 0.0f;
            weight = kElect && counted ? divisor[k] : 0.0f;
          } else if (counted) {
            total = total + term;
            if (kElect) weight = weight + divisor[k];
          }
        }
        y[e] = add_delta(b, elect_and_sum_delta(votes, total, weight, lambda));
      }
      usual &= poison == poison;
      if (usual) usual = store_packed(table, chunk, 0, at, y);
    }
    if (!usual) unusual |= 1u << i;
  }
  WM_ROLLED
  for (; unusual; unusual &= unusual - 1) {
    const int at = ((__ffs(int(unusual)) - 1) * kElectThreads + int(threadIdx.x)) * kPack;
    unusual_elect_and_sum(table, chunk, elect, at);
  }
}

using ElectAndSumKernel = void (*)(Table, bool);

template <class S, bool kElect>
ElectAndSumKernel elect_and_sum_of(int models) {
  constexpr ElectAndSumKernel kernels[] = {elect_and_sum_packed<S, 1, kElect>, elect_and_sum_packed<S, 2, kElect>,
                                           elect_and_sum_packed<S, 3, kElect>, elect_and_sum_packed<S, 4, kElect>,
                                           elect_and_sum_packed<S, 5, kElect>, elect_and_sum_packed<S, 6, kElect>,
                                           elect_and_sum_packed<S, 7, kElect>, elect_and_sum_packed<S, 8, kElect>};
  return kernels[models - 1];
}

template <class S>
ElectAndSumKernel elect_and_sum_of(int models, bool elect) {
  return elect ? elect_and_sum_of<S, true>(models) : elect_and_sum_of<S, false>(models);
}

}  // namespace

void elect_and_sum(cudaStream_t stream, const KernelLaunch& work, bool elect, int64_t* nonfinite) {
  const Table table = make_table(work, 3 * work.models + 1, nonfinite);
  ElectAndSumKernel kernel = work.fp64 ? elect_and_sum_any<double> : elect_and_sum_any<float>;
  if (packed(work) && work.models <= kMaxPacked && work.out != Dtype::f64)
    kernel = work.inputs[0] == Dtype::bf16  ? elect_and_sum_of<bf16>(work.models, elect)
             : work.inputs[0] == Dtype::f16 ? elect_and_sum_of<f16>(work.models, elect)
                                            : elect_and_sum_of<float>(work.models, elect);
  launch("elect_and_sum", kernel, work.chunks, kElectThreads, stream, table, elect);
}

}  // namespace warpmerge
