// Residual sums of finished rollouts times the head, on a CPU.
//
// A rollout's feature is a sum over the vocabulary in an order of its own: it depends neither on the
// rollouts that end in the same step nor on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Tokens that are summed in registers before their sum is added to the result.
constexpr int64_t kBlock = 32;
// Rollouts and columns of a register tile.
constexpr int kRows = 12;
constexpr int64_t kColumns = 2 * kWidth;

template <typename T>
struct Projection {
  const float* sums; // [slots, vocab]
  const int64_t* slots;
  int64_t rows, vocab, hidden;
  const T* head; // [vocab, hidden]
  float* out; // [rows, hidden], zero at first
};

template <int rows, typename T>
G2RL_INLINE void add_block(const Projection<T>& p, int64_t row, int64_t token, int64_t column) {
  const int64_t tokens = std::min(kBlock, p.vocab - token), left = p.hidden - column;
  const float* sums[rows];
  Floats low[rows] = {}, high[rows] = {};
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) sums[r] = p.sums + p.slots[row + r] * p.vocab + token;
  for (int64_t i = 0; i < tokens; ++i) {
    const T* head = p.head + (token + i) * p.hidden + column;
    const Floats a = take(head, left), b = take(head + kWidth, left - kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const Floats v = splat(sums[r][i]);
      low[r] += v * a;
      high[r] += v * b;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* out = p.out + (row + r) * p.hidden + column;
    put(out, take(out, left) + low[r], left);
    put(out + kWidth, take(out + kWidth, left - kWidth) + high[r], left - kWidth);
  }
}

// The columns of tiles `begin` to `end`. The head is read once, a block of tokens at a time.
template <typename T>
G2RL_INLINE void project(const Projection<T>& p, int64_t begin, int64_t end) {
  for (int64_t token = 0; token < p.vocab; token += kBlock) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t column = tile * kColumns;
      int64_t row = 0;
      for (; row + kRows <= p.rows; row += kRows) add_block<kRows>(p, row, token, column);
      for (; row + 4 <= p.rows; row += 4) add_block<4>(p, row, token, column);
      for (; row < p.rows; ++row) add_block<1>(p, row, token, column);
    }
  }
}

G2RL_CLONES void project_f32(const Projection<float>& p, int64_t begin, int64_t end) { project(p, begin, end); }
G2RL_CLONES void project_bf16(const Projection<uint16_t>& p, int64_t begin, int64_t end) { project(p, begin, end); }

} // namespace

// [rows, hidden] f32: the sums of the given slots times the head.
extern "C" G2rlStatus g2rl_project_residuals(
    const at::Tensor* sums, const int64_t* slots, int64_t rows, const at::Tensor* head, at::Tensor** result) {
  return guarded([&] {
    const bool bf16 = head->scalar_type() == at::kBFloat16;
    const bool fits = sums->dim() == 2 && head->dim() == 2 && sums->size(1) == head->size(0) &&
        sums->is_contiguous() && head->is_contiguous() && sums->device().is_cpu() && head->device().is_cpu() &&
        sums->scalar_type() == at::kFloat && (bf16 || head->scalar_type() == at::kFloat);
    if (!fits) {
      invalid("sums must be f32 [slots, vocab] and the head f32 or bf16 [vocab, hidden], contiguous on the CPU");
    }
    for (int64_t i = 0; i < rows; ++i) {
      if (slots[i] < 0 || slots[i] >= sums->size(0)) invalid("slot " + std::to_string(slots[i]) + " is not there");
    }
    const int64_t vocab = head->size(0), hidden = head->size(1);
    at::Tensor out = at::zeros({rows, hidden}, sums->options());
    auto run = [&](auto kind, auto function) {
      const auto* weights = static_cast<const decltype(kind)*>(head->const_data_ptr());
      const Projection<decltype(kind)> p{
          sums->const_data_ptr<float>(), slots, rows, vocab, hidden, weights, out.mutable_data_ptr<float>()};
      at::parallel_for(0, (hidden + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) { function(p, begin, end); });
    };
    if (bf16) {
      run(uint16_t{}, project_bf16);
    } else {
      run(float{}, project_f32);
    }
    *result = new at::Tensor(std::move(out));
  });
}
