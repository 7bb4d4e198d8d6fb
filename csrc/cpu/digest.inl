// The digest of a piece of a byte string. csrc/ops/digest.h defines it, docs/numerics.md has it in numpy.
//
// The digest is a sum over words. So each tile is digested by the worker that wrote it, while its bytes are in the
// cache, and the order of tiles does not matter. Each word is mixed by itself: one loop without intrinsics serves all
// instruction sets. `first_word` is the position of the first word in the whole byte string. Only the last piece of a
// byte string may end within a word.

static uint64_t digest(const void* data, size_t bytes, uint64_t first_word) {
  const char* __restrict at = static_cast<const char*>(data);
  const uint64_t words = bytes / 8;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < words; ++i) {
    uint64_t word;
    __builtin_memcpy(&word, at + 8 * i, 8);
    sum += digest_word(word, first_word + i);
  }
  if (bytes % 8) {
    uint64_t word = 0;
    __builtin_memcpy(&word, at + 8 * words, bytes % 8);
    sum += digest_word(word, first_word + words);
  }
  return sum;
}
