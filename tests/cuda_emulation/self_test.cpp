// Checks the emulation itself: what device code may rely on, and that mistakes of device code do not pass unnoticed.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("FAILED: %s\n", what), ++failures;
}

template <class... P, class... A>
std::string error_of(unsigned threads, void (*kernel)(P...), A... args) {
  try {
    emulate(nullptr, 3, threads, kernel, args...);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// Barriers and shuffles together: the sum of 256 numbers by a tree across lanes and warps.
__global__ void __launch_bounds__(256) sum(const int* values, int* result) {
  __shared__ int warps[8];
  int value = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < 8 ? warps[threadIdx.x] : 0;
    for (int delta = 4; delta > 0; delta /= 2) value += __shfl_down_sync(0xffffffffu, value, delta);
    if (threadIdx.x == 0) result[blockIdx.x] = value;
  }
}

__global__ void votes(unsigned* votes_of, int64_t* fp64, double* real, int* counts) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;  // two halves meet apart from each other
  votes_of[threadIdx.x] = __ballot_sync(half, lane % 3 == 0);
  fp64[threadIdx.x] = __shfl_sync(0xffffffffu, int64_t(lane) << 40, 5);
  real[threadIdx.x] = __shfl_down_sync(0xffffffffu, double(lane), 1);
  counts[threadIdx.x] = __syncthreads_count(threadIdx.x < 10);
  atomicAdd(&counts[64], int(__popc(votes_of[threadIdx.x])));
}

// Every thread reads what its neighbour wrote: wrong without the barrier, whatever the order of threads.
__global__ void neighbours(int* wrong, bool barrier) {
  __shared__ int values[64];
  for (int round = 1; round <= 3; ++round) {
    values[threadIdx.x] = 100 * round + int(threadIdx.x);
    if (barrier) __syncthreads();
    const unsigned other = (threadIdx.x + 1) % 64;
    if (values[other] != 100 * round + int(other)) ++*wrong;
    if (barrier) __syncthreads();
  }
}

__global__ void one_leaves() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}
__global__ void one_stays_away() {
  if (threadIdx.x != 40) __syncwarp();
}
__global__ void two_kinds() {
  if (threadIdx.x % 32 < 4)
    __syncwarp();
  else
    __ballot_sync(0xffffffffu, 1);
}
__global__ void outside_its_mask() { __shfl_sync(0x0000ffffu, 1, 0); }
__global__ void reads_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1, 20);
}
__global__ void traps() {
  __syncthreads();
  if (threadIdx.x == 3) __trap();
}
__global__ void nothing(int64_t* count) { ++*count; }

void check_results() {
  std::vector<int> values(3 * 256), results(3);
  for (size_t i = 0; i < values.size(); ++i) values[i] = int(i * i % 1009);
  emulate(nullptr, 3, 256, sum, values.data(), results.data());
  for (int block = 0; block < 3; ++block) {
    int total = 0;
    for (int i = 0; i < 256; ++i) total += values[256 * block + i];
    expect(results[block] == total, "sum over a block");
  }

  std::vector<unsigned> votes_of(64);
  std::vector<int64_t> fp64(64);
  std::vector<double> real(64);
  std::vector<int> counts(65);
  emulate(nullptr, 1, 64, votes, votes_of.data(), fp64.data(), real.data(), counts.data());
  for (unsigned i = 0; i < 64; ++i) {
    unsigned expected = 0;
    for (unsigned lane = i % 32 / 16 * 16; lane < i % 32 / 16 * 16 + 16; ++lane)
      expected |= unsigned(lane % 3 == 0) << lane;
    expect(votes_of[i] == expected, "vote of half a warp");
    expect(fp64[i] == int64_t(5) << 40, "shuffle of 64-bit integers");
    expect(real[i] == (i % 32 == 31 ? 31 : i % 32 + 1), "shuffle of doubles, the last lane keeps its own");
    expect(counts[i] == 10, "count at a barrier");
  }
  expect(counts[64] == 2 * (16 * 6 + 16 * 5), "atomic additions");

  int wrong = 0;
  emulate(nullptr, 2, 64, neighbours, &wrong, true);
  expect(wrong == 0, "barriers order writes and reads");
  emulate(nullptr, 2, 64, neighbours, &wrong, false);
  expect(wrong > 0, "a missing barrier shows");

  int64_t count = 0;
  emulate(nullptr, 5, 1024, nothing, &count);
  expect(count == 5 * 1024, "every thread runs once");
}

void check_mistakes() {
  expect(contains(error_of(64, one_leaves), "1 have ended, 63 wait in __syncthreads"), "a thread that returned");
  expect(contains(error_of(64, one_stays_away), "31 of warp 1 in __syncwarp"), "a lane that never comes");
  expect(contains(error_of(32, two_kinds), "other lanes of the warp are in"), "lanes in different collectives");
  expect(contains(error_of(32, outside_its_mask), "not in the mask"), "a lane outside its mask");
  expect(contains(error_of(32, reads_outside_mask), "outside the mask"), "a shuffle from outside the mask");
  expect(contains(error_of(32, traps), "__trap"), "a trap");
  int64_t count = 0;
  expect(contains(error_of(1025, nothing, &count), "invalid configuration"), "too many threads");
  expect(count == 0, "nothing runs of what cannot be launched");
}

}  // namespace

int main() {
  for (const bool reverse : {false, true}) {
    cuda_emulation::reverse_order = reverse;
    check_results();
    check_mistakes();
    check_results();  // no stack of an abandoned block is used again as it was
  }
  if (failures == 0) std::puts("the emulation holds");
  return failures != 0;
}
