// Stores, process groups and collectives over c10d.
#include "process_group.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#ifdef G2RL_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <cstdlib>
#include <thread>

#include "status.h"

using g2rl::Failure;
using g2rl::guarded;
using g2rl::Signal;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// NCCL tells completion only when asked.
constexpr auto kNcclPoll = std::chrono::microseconds(50);

extern "C" struct G2rlGroupOptions {
  int32_t nccl; // 0: Gloo
  const char* prefix;
  const char* bind_host;
  int32_t rank;
  int32_t world_size;
  int64_t timeout_ms;
};

extern "C" G2rlStatus g2rl_store_host(
    const char* host, uint16_t port, int listening_socket, int64_t timeout_ms, G2rlStore** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = true;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    options.masterListenFd = listening_socket;
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    const uint16_t actual = store->getPort();
    *out = new G2rlStore{std::move(store), actual};
  });
}

extern "C" G2rlStatus g2rl_store_connect(const char* host, uint16_t port, int64_t timeout_ms, G2rlStore** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new G2rlStore{std::move(store), port};
  });
}

extern "C" uint16_t g2rl_store_port(const G2rlStore* store) {
  return store->port;
}

extern "C" void g2rl_store_free(G2rlStore* store) {
  // Destroying a server joins its thread; nothing in it may reach Rust.
  (void)guarded([&] { delete store; });
}

static c10::intrusive_ptr<c10d::Backend> make_gloo(
    c10::intrusive_ptr<c10d::Store> store, const G2rlGroupOptions& options) {
  auto gloo = c10d::ProcessGroupGloo::Options::create(milliseconds(options.timeout_ms));
  gloo->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(options.bind_host, /*lazyInit=*/false));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), options.rank, options.world_size, gloo);
}

static c10::intrusive_ptr<c10d::Backend> make_nccl(
    c10::intrusive_ptr<c10d::Store> store, const G2rlGroupOptions& options) {
#ifdef G2RL_CUDA
  if (c10::cuda::device_count() == 0) {
    throw Failure(G2RL_NO_CUDA, "no GPU was found");
  }
  // A failed peer must end the operation, not this process: abort the communicator and go on, and
  // let no monitor kill a process whose peers are slow. A value set by the user wins.
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 0);
  setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 0);
  auto nccl = c10d::ProcessGroupNCCL::Options::create();
  nccl->timeout = milliseconds(options.timeout_ms);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), options.rank, options.world_size, nccl);
#else
  throw Failure(G2RL_NO_CUDA, "built without CUDA");
#endif
}

extern "C" G2rlStatus g2rl_group_new(G2rlStore* store, const G2rlGroupOptions* options, G2rlGroup** out) {
  return guarded([&] {
    // A client of its own: the group's waits must not hold up other users of the store.
    auto own = store->store->clone();
    own->setTimeout(milliseconds(options->timeout_ms));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(options->prefix, std::move(own));
    auto group = std::make_unique<G2rlGroup>();
    group->nccl = options->nccl != 0;
    group->world_size = options->world_size;
    group->timeout = milliseconds(options->timeout_ms);
    group->backend = group->nccl ? make_nccl(prefixed, *options) : make_gloo(prefixed, *options);
    *out = group.release();
  });
}

static void abort_group(G2rlGroup& group) {
  {
    std::lock_guard<std::mutex> lock(group.signal->mutex);
    if (group.signal->aborted) {
      return;
    }
    group.signal->aborted = true;
  }
  group.signal->changed.notify_all();
  if (group.nccl) {
    group.backend->abort();
  } else {
    g2rl::abort_gloo(*group.backend, "the process group was aborted");
  }
}

extern "C" G2rlStatus g2rl_group_abort(G2rlGroup* group) {
  return guarded([&] { abort_group(*group); });
}

extern "C" void g2rl_group_free(G2rlGroup* group) {
  (void)guarded([&] {
    bool running;
    {
      std::lock_guard<std::mutex> lock(group->signal->mutex);
      running = group->signal->running > 0;
    }
    // Destroying a group waits for its operations, which may have no peer any more.
    if (running || group->nccl) {
      abort_group(*group);
    }
    delete group;
  });
}

// Starts an operation and wraps its handle.
template <typename Start>
static std::unique_ptr<G2rlWork> start(G2rlGroup& group, Start&& operation) {
  auto work = std::make_unique<G2rlWork>();
  work->signal = group.signal;
  work->nccl = group.nccl;
  work->timeout = group.timeout;
  std::lock_guard<std::mutex> order(group.start);
  {
    std::lock_guard<std::mutex> lock(group.signal->mutex);
    if (group.signal->aborted) {
      throw Failure(G2RL_ABORTED, "the process group was aborted");
    }
  }
  work->work = operation(*group.backend);
  TORCH_CHECK(work->work, "the backend returned no handle");
  if (!group.nccl) {
    work->ended = std::make_shared<bool>(false);
    {
      std::lock_guard<std::mutex> lock(group.signal->mutex);
      ++group.signal->running;
    }
    auto announce = [signal = group.signal, ended = work->ended](c10::ivalue::Future&) {
      {
        std::lock_guard<std::mutex> lock(signal->mutex);
        *ended = true;
        --signal->running;
      }
      signal->changed.notify_all();
    };
    work->work->getFuture()->addCallback(std::move(announce), /*uses_future=*/false);
  }
  return work;
}

static bool has_ended(const G2rlWork& work) {
  return work.nccl ? work.work->isCompleted() : *work.ended;
}

// Blocks until the operation ended, the group was aborted, or `timeout` passed.
static void wait_for(G2rlWork& work, milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  std::unique_lock<std::mutex> lock(work.signal->mutex);
  while (!work.signal->aborted && !has_ended(work)) {
    if (Clock::now() >= deadline) {
      throw Failure(G2RL_TIMEOUT, "not complete after " + std::to_string(timeout.count()) + " ms");
    }
    const auto until = work.nccl ? std::min(deadline, Clock::now() + kNcclPoll) : deadline;
    work.signal->changed.wait_until(lock, until);
  }
  const bool aborted = work.signal->aborted;
  lock.unlock();
  if (aborted) {
    throw Failure(G2RL_ABORTED, "the process group was aborted");
  }
  // Ended: this throws the operation's error if there is one, and orders CUDA streams.
  work.work->wait();
  if (work.unscaled.defined()) {
    at::NoGradGuard no_grad;
    work.unscaled.div_(work.divisor);
    work.unscaled.reset();
  }
}

static milliseconds timeout_or(int64_t timeout_ms, milliseconds fallback) {
  return timeout_ms < 0 ? fallback : milliseconds(timeout_ms);
}

extern "C" G2rlStatus g2rl_work_wait(G2rlWork* work, int64_t timeout_ms) {
  return guarded([&] { wait_for(*work, timeout_or(timeout_ms, work->timeout)); });
}

extern "C" G2rlStatus g2rl_work_is_completed(G2rlWork* work, bool* completed) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(work->signal->mutex);
    *completed = work->signal->aborted || has_ended(*work);
  });
}

extern "C" void g2rl_work_free(G2rlWork* work) {
  (void)guarded([&] { delete work; });
}

static void check_layout(const at::Tensor& tensor) {
  if (!tensor.is_contiguous()) {
    g2rl::invalid("the tensor must be contiguous");
  }
}

// Number of ReduceOp::Average in src/process_group.rs.
constexpr int32_t kAverage = 1;

// Mirrors ReduceOp in src/process_group.rs.
static c10d::ReduceOp reduction(int32_t op, bool nccl) {
  switch (op) {
    case 0: return c10d::ReduceOp::SUM;
    case kAverage: return nccl ? c10d::ReduceOp::AVG : c10d::ReduceOp::SUM;
    case 2: return c10d::ReduceOp::MAX;
    default: g2rl::invalid("unknown reduction");
  }
}

static void average_later(G2rlWork& work, const G2rlGroup& group, int32_t op, const at::Tensor& result) {
  if (op == kAverage && !group.nccl) {
    work.unscaled = result;
    work.divisor = group.world_size;
  }
}

extern "C" G2rlStatus g2rl_group_all_reduce(G2rlGroup* group, at::Tensor* tensor, int32_t op, G2rlWork** out) {
  return guarded([&] {
    check_layout(*tensor);
    c10d::AllreduceOptions options;
    options.reduceOp = reduction(op, group->nccl);
    options.timeout = group->timeout;
    std::vector<at::Tensor> tensors{tensor->detach()};
    auto work = start(*group, [&](c10d::Backend& backend) { return backend.allreduce(tensors, options); });
    average_later(*work, *group, op, tensors[0]);
    *out = work.release();
  });
}

extern "C" G2rlStatus g2rl_group_broadcast(G2rlGroup* group, at::Tensor* tensor, int64_t root, G2rlWork** out) {
  return guarded([&] {
    check_layout(*tensor);
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = group->timeout;
    std::vector<at::Tensor> tensors{tensor->detach()};
    *out = start(*group, [&](c10d::Backend& backend) { return backend.broadcast(tensors, options); }).release();
  });
}

// Sums to one rank; the others' tensors are then worth nothing.
extern "C" G2rlStatus g2rl_group_reduce(G2rlGroup* group, at::Tensor* tensor, int64_t root, G2rlWork** out) {
  return guarded([&] {
    check_layout(*tensor);
    c10d::ReduceOptions options;
    options.reduceOp = c10d::ReduceOp::SUM;
    options.rootRank = root;
    options.timeout = group->timeout;
    std::vector<at::Tensor> tensors{tensor->detach()};
    *out = start(*group, [&](c10d::Backend& backend) { return backend.reduce(tensors, options); }).release();
  });
}

// `parts` has room for one tensor of each rank.
extern "C" G2rlStatus g2rl_group_all_gather(G2rlGroup* group, at::Tensor* tensor, at::Tensor** parts) {
  return guarded([&] {
    check_layout(*tensor);
    c10d::AllgatherOptions options;
    options.timeout = group->timeout;
    std::vector<at::Tensor> inputs{tensor->detach()};
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int64_t rank = 0; rank < group->world_size; ++rank) {
      outputs[0].push_back(at::empty_like(inputs[0]));
    }
    auto work = start(*group, [&](c10d::Backend& backend) { return backend.allgather(outputs, inputs, options); });
    wait_for(*work, work->timeout);
    for (int64_t rank = 0; rank < group->world_size; ++rank) {
      parts[rank] = new at::Tensor(std::move(outputs[0][rank]));
    }
  });
}

extern "C" G2rlStatus g2rl_group_reduce_scatter(G2rlGroup* group, at::Tensor* tensor, int32_t op, at::Tensor** out) {
  return guarded([&] {
    check_layout(*tensor);
    if (tensor->dim() == 0 || tensor->size(0) % group->world_size != 0) {
      g2rl::invalid("the first dimension must be a multiple of the number of ranks");
    }
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduction(op, group->nccl);
    options.timeout = group->timeout;
    at::NoGradGuard no_grad;
    at::Tensor input = tensor->detach();
    auto sizes = input.sizes().vec();
    sizes[0] /= group->world_size;
    at::Tensor output = at::empty(sizes, input.options());
    std::unique_ptr<G2rlWork> work;
    if (group->nccl) {
      work = start(
          *group, [&](c10d::Backend& backend) { return backend._reduce_scatter_base(output, input, options); });
    } else {
      // Gloo itself has none: c10d reduces everything everywhere and copies, without a future.
      c10d::AllreduceOptions all;
      all.reduceOp = options.reduceOp;
      all.timeout = group->timeout;
      std::vector<at::Tensor> tensors{input};
      work = start(*group, [&](c10d::Backend& backend) { return backend.allreduce(tensors, all); });
    }
    wait_for(*work, work->timeout);
    if (!group->nccl) {
      output.copy_(input.narrow(0, group->backend->getRank() * sizes[0], sizes[0]));
      if (op == kAverage) {
        output.div_(group->world_size);
      }
    }
    *out = new at::Tensor(std::move(output));
  });
}

extern "C" G2rlStatus g2rl_group_barrier(G2rlGroup* group, int64_t timeout_ms) {
  return guarded([&] {
    const auto timeout = timeout_or(timeout_ms, group->timeout);
    c10d::BarrierOptions options;
    options.timeout = timeout;
#ifdef G2RL_CUDA
    if (group->nccl) {
      options.device_ids = {c10::cuda::current_device()};
    }
#endif
    auto work = start(*group, [&](c10d::Backend& backend) { return backend.barrier(options); });
    wait_for(*work, timeout);
  });
}
