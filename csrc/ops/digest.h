// A 64-bit digest of a byte string that can be taken in pieces, in any order: the sum, modulo 2^64, of one mixed value
// per little-endian 8-byte word (the last one padded with zeros) and of one for the length. It finds damage, not
// malice. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
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
