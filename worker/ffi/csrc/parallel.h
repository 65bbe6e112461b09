// Tasks of unequal length over libtorch's thread pool.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace g2rl {

// Runs task(0) .. task(count - 1), each wholly on one thread; a thread that is done takes the next.
// `task` must not throw.
template <typename Task>
void for_each_task(int64_t count, const Task& task) {
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) {
      task(i);
    }
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
        task(i);
      }
    }
  });
}

} // namespace g2rl
