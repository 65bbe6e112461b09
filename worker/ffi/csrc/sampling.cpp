// Softmax statistics, inverse-CDF sampling and the residual accumulator, one pass a row.
#include <ATen/ATen.h>

#include <cmath>
#include <unordered_set>
#include <vector>

#include "parallel.h"
#include "status.h"
#include "vector.h"

using namespace g2rl;

namespace {

// Tokens whose weights are summed before the running sum is looked at. A multiple of kWidth.
constexpr int64_t kBlock = 256;

// The softmax of one row, unnormalised: weights e^((x - max) / T).
struct Row {
  std::vector<float> weights; // padded to a multiple of kWidth with zeros
  std::vector<double> block_sums; // of kBlock weights each
  float maximum = 0;
  double inverse_temperature = 1;
  double total = 0; // sum of the weights, at least 1
  double entropy = 0;

  double logprob(const float* logits, int64_t token) const {
    return (static_cast<double>(logits[token]) - maximum) * inverse_temperature - std::log(total);
  }
};

// The largest value, or NaN if any value is not finite.
G2RL_CLONES float finite_maximum(const float* x, int64_t count) {
  Floats top = splat(-FLT_MAX);
  Ints bad = {};
  const Floats limit = splat(FLT_MAX);
  for (int64_t i = 0; i < count; i += kWidth) {
    const Floats v = i + kWidth <= count ? load(x + i) : load_part(x + i, count - i, -FLT_MAX);
    // NaN compares false with everything.
    bad |= ~((v <= limit) & (v >= -limit));
    top = larger(top, v);
  }
  for (int i = 0; i < kWidth; ++i) {
    if (bad[i] != 0) {
      return NAN;
    }
  }
  return largest(top);
}

// Writes the weights and their sums by block; returns the sum of weight times scaled logit.
G2RL_CLONES double weigh(const float* x, int64_t count, float maximum, float inverse_temperature, Row* row) {
  Doubles8 weighted = {};
  const Floats top = splat(maximum);
  const Floats scale = splat(inverse_temperature);
  float* weights = row->weights.data();
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = block + kBlock < count ? block + kBlock : count;
    Doubles8 block_sum = {};
    for (int64_t i = block; i < end; i += kWidth) {
      // Below -87.3 the weight is 0; the bound keeps 0 times the scaled logit finite. Padding falls
      // under it too.
      const Floats v = i + kWidth <= count ? load(x + i) : load_part(x + i, count - i, -FLT_MAX);
      const Floats z = larger((v - top) * scale, splat(-1000.0f));
      const Floats e = exponential(z);
      store(weights + i, e);
      add_to(block_sum, e);
      add_to(weighted, e * z);
    }
    row->block_sums[static_cast<size_t>(block / kBlock)] = sum(block_sum);
  }
  return sum(weighted);
}

// residual -= factor * weights
G2RL_CLONES void subtract(float* residual, const float* weights, float factor, int64_t count) {
  const Floats f = splat(factor);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(residual + i, load(residual + i) - f * load(weights + i));
  }
  for (; i < count; ++i) {
    residual[i] -= factor * weights[i];
  }
}

// Fills `row`; false if a logit is not finite. A temperature of 0 (greedy) gives the softmax at 1.
bool soften(const float* logits, int64_t vocab, double temperature, Row& row) {
  row.maximum = finite_maximum(logits, vocab);
  if (std::isnan(row.maximum)) {
    return false;
  }
  row.inverse_temperature = temperature > 0 ? 1.0 / temperature : 1.0;
  row.weights.resize(static_cast<size_t>((vocab + kWidth - 1) / kWidth * kWidth));
  row.block_sums.resize(static_cast<size_t>((vocab + kBlock - 1) / kBlock));
  const double weighted =
      weigh(logits, vocab, row.maximum, static_cast<float>(row.inverse_temperature), &row);
  row.total = 0;
  for (double sum : row.block_sums) {
    row.total += sum;
  }
  // H = log Z - E[z]; rounding can leave a saturated row just below 0.
  row.entropy = std::max(0.0, std::log(row.total) - weighted / row.total);
  return true;
}

struct Truncation {
  int64_t top_k; // 0: off
  double top_p; // 1: off
  double min_p; // 0: off
};

bool is_off(const Truncation& t, int64_t vocab) {
  return (t.top_k == 0 || t.top_k >= vocab) && t.top_p >= 1 && t.min_p <= 0;
}

int64_t first_largest(const float* logits, int64_t vocab, float maximum) {
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] == maximum) {
      return i;
    }
  }
  return 0;
}

// Inverse CDF in token order over the full softmax.
int64_t draw(const Row& row, int64_t vocab, double uniform) {
  const double target = uniform * row.total;
  double below = 0;
  int64_t last = 0;
  for (size_t block = 0; block < row.block_sums.size(); ++block) {
    const double sum = row.block_sums[block];
    if (sum <= 0) {
      continue;
    }
    const int64_t start = static_cast<int64_t>(block) * kBlock;
    const int64_t end = std::min(vocab, start + kBlock);
    const bool inside = below + sum > target;
    const bool any_after = block + 1 < row.block_sums.size();
    if (inside || !any_after) {
      double running = below;
      for (int64_t i = start; i < end; ++i) {
        if (row.weights[static_cast<size_t>(i)] > 0) {
          running += row.weights[static_cast<size_t>(i)];
          last = i;
          if (running > target) {
            return i;
          }
        }
      }
      if (inside) {
        // The block's sum was rounded up past the target; its last token is the one.
        return last;
      }
    } else {
      // Remember a token that may be drawn, should rounding leave nothing above the target.
      for (int64_t i = end - 1; i >= start; --i) {
        if (row.weights[static_cast<size_t>(i)] > 0) {
          last = i;
          break;
        }
      }
    }
    below += sum;
  }
  return last;
}

// Tokens that top-k keeps; tokens equal to the k-th largest logit all stay, as in transformers.
std::vector<int64_t> top_k_tokens(const float* logits, int64_t vocab, int64_t k) {
  std::vector<int64_t> kept;
  float threshold = -FLT_MAX;
  if (k > 0 && k < vocab) {
    std::vector<float> copy(logits, logits + vocab);
    std::nth_element(copy.begin(), copy.begin() + (k - 1), copy.end(), std::greater<>());
    threshold = copy[static_cast<size_t>(k - 1)];
  }
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] >= threshold) {
      kept.push_back(i);
    }
  }
  return kept;
}

// Keeps the most probable tokens until the mass before a token reaches p of the mass of all.
void keep_top_p(const float* logits, const Row& row, double p, std::vector<int64_t>& kept) {
  auto weight = [&](int64_t i) { return static_cast<double>(row.weights[static_cast<size_t>(i)]); };
  double mass = 0;
  for (int64_t i : kept) {
    mass += weight(i);
  }
  // All tokens under this weight together have less than the mass to be cut: no need to sort them.
  const double negligible = 0.5 * (1 - p) * mass / static_cast<double>(kept.size());
  kept.erase(std::remove_if(kept.begin(), kept.end(), [&](int64_t i) { return weight(i) < negligible; }), kept.end());
  std::sort(kept.begin(), kept.end(), [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  double before = 0;
  size_t count = 0;
  while (count < kept.size() && (count == 0 || before < p * mass)) {
    before += weight(kept[count]);
    ++count;
  }
  kept.resize(count);
}

int64_t draw_truncated(const float* logits, int64_t vocab, const Row& row, const Truncation& cut, double uniform) {
  std::vector<int64_t> kept = top_k_tokens(logits, vocab, cut.top_k);
  if (cut.top_p < 1) {
    keep_top_p(logits, row, cut.top_p, kept);
  }
  if (cut.min_p > 0) {
    // The most probable token has weight 1 and is never cut.
    const auto low = [&](int64_t i) { return row.weights[static_cast<size_t>(i)] < cut.min_p; };
    kept.erase(std::remove_if(kept.begin(), kept.end(), low), kept.end());
  }
  std::sort(kept.begin(), kept.end());
  double mass = 0;
  for (int64_t i : kept) {
    mass += row.weights[static_cast<size_t>(i)];
  }
  const double target = uniform * mass;
  double running = 0;
  int64_t last = kept.front();
  for (int64_t i : kept) {
    const double weight = row.weights[static_cast<size_t>(i)];
    if (weight > 0) {
      running += weight;
      last = i;
      if (running > target) {
        break;
      }
    }
  }
  return last;
}

void require(bool condition, const char* message) {
  if (!condition) {
    invalid(message);
  }
}

// Logits [rows, vocab] f32 whose rows are contiguous.
struct Logits {
  const float* data;
  int64_t rows, vocab, stride;

  explicit Logits(const at::Tensor& tensor) {
    require(tensor.dim() == 2 && tensor.scalar_type() == at::kFloat && tensor.device().is_cpu(),
            "the logits must be f32 [b, v] on the CPU");
    require(tensor.size(1) > 0, "the vocabulary is empty");
    require(tensor.size(1) == 1 || tensor.stride(1) == 1, "the logits' rows must be contiguous");
    data = tensor.const_data_ptr<float>();
    rows = tensor.size(0);
    vocab = tensor.size(1);
    stride = tensor.stride(0);
  }

  const float* row(int64_t i) const {
    return data + i * stride;
  }
};

// Residual accumulators [slots, vocab] f32 and each row's slot.
struct Residual {
  float* data = nullptr;
  const int64_t* slots = nullptr;
  int64_t stride = 0;

  Residual(const at::Tensor* tensor, const int64_t* slots, const Logits& logits) {
    if (tensor == nullptr) {
      return;
    }
    require(tensor->dim() == 2 && tensor->scalar_type() == at::kFloat && tensor->device().is_cpu() &&
                tensor->is_contiguous() && tensor->size(1) == logits.vocab,
            "the residual must be contiguous f32 [slots, v] on the CPU");
    std::unordered_set<int64_t> seen;
    for (int64_t i = 0; i < logits.rows; ++i) {
      if (slots[i] < 0 || slots[i] >= tensor->size(0)) {
        invalid("row " + std::to_string(i) + " names residual slot " + std::to_string(slots[i]) + " of " +
                std::to_string(tensor->size(0)));
      }
      if (!seen.insert(slots[i]).second) {
        invalid("residual slot " + std::to_string(slots[i]) + " is named twice");
      }
    }
    data = tensor->mutable_data_ptr<float>();
    this->slots = slots;
    stride = logits.vocab;
  }

  // residual[slot of row] += weight * (onehot(token) - softmax)
  void add(int64_t i, const Row& row, int64_t token, float weight) const {
    if (data == nullptr) {
      return;
    }
    float* out = data + slots[i] * stride;
    subtract(out, row.weights.data(), static_cast<float>(weight / row.total), stride);
    out[token] += weight;
  }
};

struct Rows {
  const Logits& logits;
  double temperature;
  const Residual& residual;
  float* logprobs;
  float* entropies;
};

// Runs `choose(row index, logits, row)` for every row and records what follows from the token.
template <typename Choose, typename Weight>
void for_each_row(const Rows& rows, const Choose& choose, const Weight& weight) {
  const Logits& logits = rows.logits;
  std::atomic<int64_t> bad{INT64_MAX};
  for_each_task(logits.rows, [&](int64_t i) {
    thread_local Row row;
    const float* x = logits.row(i);
    if (!soften(x, logits.vocab, rows.temperature, row)) {
      // The first bad row is reported whatever the threads' order.
      int64_t seen = bad.load();
      while (i < seen && !bad.compare_exchange_weak(seen, i)) {
      }
      return;
    }
    const int64_t token = choose(i, x, row);
    rows.logprobs[i] = static_cast<float>(row.logprob(x, token));
    rows.entropies[i] = static_cast<float>(row.entropy);
    rows.residual.add(i, row, token, weight(i));
  });
  if (bad.load() != INT64_MAX) {
    throw Failure(G2RL_NOT_FINITE, "logits that are not finite", bad.load());
  }
}

} // namespace

extern "C" struct G2rlSampleRows {
  at::Tensor* logits;
  double temperature;
  int64_t top_k; // 0: off
  double top_p;
  double min_p;
  const double* uniforms;
  at::Tensor* residual; // may be null
  const int64_t* slots; // null with residual
};

extern "C" G2rlStatus g2rl_sample_rows(const G2rlSampleRows* a, int64_t* tokens, float* logprobs, float* entropies) {
  return guarded([&] {
    const Logits logits(*a->logits);
    const Residual residual(a->residual, a->slots, logits);
    const Truncation cut{a->top_k, a->top_p, a->min_p};
    const bool full = is_off(cut, logits.vocab);
    auto choose = [&](int64_t i, const float* x, const Row& row) {
      int64_t token;
      if (a->temperature <= 0) {
        token = first_largest(x, logits.vocab, row.maximum);
      } else if (full) {
        token = draw(row, logits.vocab, a->uniforms[i]);
      } else {
        token = draw_truncated(x, logits.vocab, row, cut, a->uniforms[i]);
      }
      tokens[i] = token;
      return token;
    };
    for_each_row({logits, a->temperature, residual, logprobs, entropies}, choose, [](int64_t) { return 1.0f; });
  });
}

extern "C" struct G2rlResidualRows {
  at::Tensor* logits;
  double temperature;
  const int64_t* tokens;
  const float* weights;
  at::Tensor* residual; // may be null
  const int64_t* slots; // null with residual
};

extern "C" G2rlStatus g2rl_residual_rows(const G2rlResidualRows* a, float* logprobs, float* entropies) {
  return guarded([&] {
    const Logits logits(*a->logits);
    const Residual residual(a->residual, a->slots, logits);
    for (int64_t i = 0; i < logits.rows; ++i) {
      if (a->tokens[i] < 0 || a->tokens[i] >= logits.vocab) {
        invalid("row " + std::to_string(i) + " names token " + std::to_string(a->tokens[i]) + " of " +
                std::to_string(logits.vocab));
      }
    }
    for_each_row(
        {logits, a->temperature, residual, logprobs, entropies},
        [&](int64_t i, const float*, const Row&) { return a->tokens[i]; }, [&](int64_t i) { return a->weights[i]; });
  });
}

// e^x of `count` floats, for the tests of its accuracy.
extern "C" G2RL_CLONES void g2rl_exponential(const float* x, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t n = count - i < kWidth ? count - i : kWidth;
    const Floats e = exponential(load_part(x + i, n, 0.0f));
    std::memcpy(out + i, &e, static_cast<size_t>(n) * sizeof(float));
  }
}
