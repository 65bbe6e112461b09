// State shared by a process group and the operations it runs.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace g2rl {

// What a waiter looks at: changes are announced on `changed`.
struct Signal {
  std::mutex mutex;
  std::condition_variable changed;
  bool aborted = false;
  // Operations that were started and have not ended.
  int64_t running = 0;
};

// Ends the running operations of a Gloo group over TCP at once: their threads leave with an error
// and touch no tensor afterwards. Other transports are left to their timeout.
void abort_gloo(c10d::Backend& backend, const char* reason);

} // namespace g2rl

struct G2rlStore {
  c10::intrusive_ptr<c10d::Store> store;
  uint16_t port;
};

struct G2rlGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  bool nccl;
  int64_t world_size;
  std::chrono::milliseconds timeout;
  std::shared_ptr<g2rl::Signal> signal = std::make_shared<g2rl::Signal>();
  // c10d matches operations across ranks by order, so they are started one at a time.
  std::mutex start;
};

struct G2rlWork {
  c10::intrusive_ptr<c10d::Work> work;
  std::shared_ptr<g2rl::Signal> signal;
  std::shared_ptr<bool> ended; // under signal->mutex; Gloo only
  bool nccl;
  std::chrono::milliseconds timeout;
  // The tensor to be divided once, and by what: Gloo has no average.
  at::Tensor unscaled;
  int64_t divisor = 1;
};
