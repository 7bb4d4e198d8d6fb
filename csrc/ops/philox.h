// The random numbers of masks and draws: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011).
//
// A number is a function of a key and of the element's flat index. There is no state, so tiles and devices draw
// independently and agree. The convention is that of Triton's randint4x: key = 64-bit seed split low/high, counter =
// (offset low, offset high, 0, 0). One call serves eight elements: lane j of the call at offset e / 8 decides element e
// with j = e % 8, as 16 bits. docs/numerics.md ("Random drops") says where keys come from.
#pragma once

#include "common.h"

namespace warpmerge {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr int kPhiloxRounds = 10;
constexpr int kPhiloxLanes = 8;  // 16-bit decisions of one call

struct PhiloxKey {
  uint32_t low, high;
};

// One of the ten rounds, on one counter.
WM_FN void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, PhiloxKey key) {
  const uint64_t a = uint64_t(c0) * kPhiloxM0;
  const uint64_t b = uint64_t(c2) * kPhiloxM1;
  c0 = uint32_t(b >> 32) ^ c1 ^ key.low;
  c1 = uint32_t(b);
  c2 = uint32_t(a >> 32) ^ c3 ^ key.high;
  c3 = uint32_t(a);
}

WM_FN PhiloxKey philox_next(PhiloxKey key) { return {key.low + 0x9E3779B9u, key.high + 0xBB67AE85u}; }

}  // namespace warpmerge
