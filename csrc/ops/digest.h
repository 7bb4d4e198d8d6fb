// A 64-bit digest of a byte string (docs/numerics.md, "The digest").
//
// The digest is a sum modulo 2^64: one mixed value for each little-endian 8-byte word (the last one padded with zeros),
// and one for the length. So a tensor is digested in pieces, in any order, by any number of threads. It finds damage;
// it does not protect against forgery. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#pragma once

#include "common.h"

namespace warpmerge {

WM_FN uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The contribution of the word at position `index`.
WM_FN uint64_t digest_word(uint64_t word, uint64_t index) { return mix64(word + (index + 1) * 0x9e3779b97f4a7c15ull); }

WM_FN uint64_t digest_length(uint64_t bytes) { return mix64(~bytes); }

}  // namespace warpmerge
