// Attention of one new token over a prompt extent and an own extent, for the query heads that share one
// key head of one sequence.
#pragma once

#include <cstring>
#include <type_traits>

#include "vector.h"

namespace g2rl {

// Tokens whose keys or values are worked on while they are in the first-level cache.
constexpr int64_t kTokens = 32;
// Query heads whose sums are in registers at once.
constexpr int kHeads = 4;

// Rows of one extent of one key head.
struct Extent {
  const void* data;
  int64_t length;
};

struct AttendTask {
  const float* query; // [group, padded], scaled
  float* scores; // [group, tokens]
  float* out; // [group, padded]
  float* staging; // [kTokens, padded]
  int64_t group, padded, dim, tokens;

  // Floats of scratch memory for `query`, `out`, `staging` and `scores` together.
  static int64_t scratch(int64_t group, int64_t padded, int64_t tokens) {
    return 2 * group * padded + kTokens * padded + group * tokens;
  }
};

// `bf16` tells the kind of the rows. Adds to `out`, which must be zero.
void attend(Extent prompt_keys, Extent prompt_values, Extent keys, Extent values, const AttendTask& task, bool bf16);

} // namespace g2rl
