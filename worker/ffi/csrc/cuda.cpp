// Allocator statistics, streams, events and graphs. Without CUDA every call says so.
#include "status.h"

#include <cstdint>

using g2rl::Failure;
using g2rl::guarded;

extern "C" struct G2rlMemoryStats {
  uint64_t allocated;
  uint64_t peak_allocated;
  uint64_t reserved;
};

#ifdef G2RL_CUDA

// Only what libtorch and libc10_cuda export: inline functions that call the CUDA runtime would make
// it a library of the binary's own, which is not found by libtorch's RPATH.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

struct G2rlStream {
  c10::cuda::CUDAStream stream;
};
struct G2rlEvent {
  c10::Event event{c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT};
};
struct G2rlGraph {
  at::cuda::CUDAGraph graph;
};

static c10::DeviceIndex device_index(int32_t device) {
  if (device < 0 || device >= c10::cuda::device_count()) {
    throw Failure(G2RL_NO_CUDA, "there is no GPU " + std::to_string(device));
  }
  return static_cast<c10::DeviceIndex>(device);
}

// The allocator knows a device once it was used; statistics before that are an internal error.
static c10::DeviceIndex ready_device(int32_t device) {
  const auto index = device_index(device);
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  return index;
}

// By its base class: the CUDA allocator's own header would inline calls of the CUDA runtime.
static c10::DeviceAllocator& allocator() {
  return *c10::getDeviceAllocator(c10::DeviceType::CUDA);
}

extern "C" int32_t g2rl_cuda_device_count() {
  return c10::cuda::device_count();
}

extern "C" G2rlStatus g2rl_cuda_memory_stats(int32_t device, G2rlMemoryStats* out) {
  return guarded([&] {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(ready_device(device));
    const auto total = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    out->allocated = static_cast<uint64_t>(stats.allocated_bytes[total].current);
    out->peak_allocated = static_cast<uint64_t>(stats.allocated_bytes[total].peak);
    out->reserved = static_cast<uint64_t>(stats.reserved_bytes[total].current);
  });
}

extern "C" G2rlStatus g2rl_cuda_reset_peak(int32_t device) {
  return guarded([&] { c10::cuda::CUDACachingAllocator::resetPeakStats(ready_device(device)); });
}

extern "C" G2rlStatus g2rl_cuda_empty_cache() {
  return guarded([&] {
    ready_device(0);
    c10::cuda::CUDACachingAllocator::emptyCache();
  });
}

extern "C" G2rlStatus g2rl_cuda_mem_get_info(int32_t device, uint64_t* free_bytes, uint64_t* total_bytes) {
  return guarded([&] {
    const auto [free, total] = allocator().getMemoryInfo(ready_device(device));
    *free_bytes = free;
    *total_bytes = total;
  });
}

extern "C" G2rlStatus g2rl_cuda_synchronize(int32_t device) {
  return guarded([&] {
    c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, ready_device(device)));
    c10::cuda::device_synchronize();
  });
}

// kind: 0 new from the pool, 1 new with high priority, 2 the calling thread's current one
extern "C" G2rlStatus g2rl_stream_get(int32_t device, int32_t kind, G2rlStream** out) {
  return guarded([&] {
    const auto index = ready_device(device);
    auto stream = kind == 2 ? c10::cuda::getCurrentCUDAStream(index)
                            : c10::cuda::getStreamFromPool(/*isHighPriority=*/kind == 1, index);
    *out = new G2rlStream{stream};
  });
}

// The device too: a capture takes the current stream of the thread's current device.
extern "C" G2rlStatus g2rl_stream_make_current(G2rlStream* stream) {
  return guarded([&] {
    c10::cuda::set_device(stream->stream.device_index());
    c10::cuda::setCurrentCUDAStream(stream->stream);
  });
}

extern "C" G2rlStatus g2rl_stream_synchronize(G2rlStream* stream) {
  return guarded([&] { stream->stream.synchronize(); });
}

extern "C" void g2rl_stream_free(G2rlStream* stream) {
  (void)guarded([&] { delete stream; });
}

extern "C" G2rlStatus g2rl_event_new(G2rlEvent** out) {
  return guarded([&] {
    ready_device(0);
    *out = new G2rlEvent();
  });
}

extern "C" G2rlStatus g2rl_event_record(G2rlEvent* event, G2rlStream* stream) {
  return guarded([&] { event->event.record(stream->stream.unwrap()); });
}

extern "C" G2rlStatus g2rl_event_block(G2rlEvent* event, G2rlStream* stream) {
  return guarded([&] { event->event.block(stream->stream.unwrap()); });
}

extern "C" G2rlStatus g2rl_event_query(G2rlEvent* event, bool* reached) {
  return guarded([&] { *reached = event->event.query(); });
}

extern "C" G2rlStatus g2rl_event_synchronize(G2rlEvent* event) {
  return guarded([&] { event->event.synchronize(); });
}

extern "C" G2rlStatus g2rl_event_elapsed_ms(G2rlEvent* from, G2rlEvent* to, double* out) {
  return guarded([&] { *out = from->event.elapsedTime(to->event); });
}

extern "C" void g2rl_event_free(G2rlEvent* event) {
  (void)guarded([&] { delete event; });
}

extern "C" G2rlStatus g2rl_graph_new(G2rlGraph** out) {
  return guarded([&] {
    ready_device(0);
    *out = new G2rlGraph();
  });
}

// Shares the memory of `pool` if that is not null. Only this thread's calls are restricted while
// it captures, so that other threads may go on using the GPU.
extern "C" G2rlStatus g2rl_graph_capture_begin(G2rlGraph* graph, G2rlGraph* pool) {
  return guarded([&] {
    at::cuda::MempoolId_t id{0, 0};
    if (pool != nullptr) {
      id = pool->graph.pool();
    }
    graph->graph.capture_begin(id, cudaStreamCaptureModeThreadLocal);
  });
}

extern "C" G2rlStatus g2rl_graph_capture_end(G2rlGraph* graph) {
  return guarded([&] { graph->graph.capture_end(); });
}

extern "C" G2rlStatus g2rl_graph_replay(G2rlGraph* graph) {
  return guarded([&] { graph->graph.replay(); });
}

extern "C" void g2rl_graph_free(G2rlGraph* graph) {
  (void)guarded([&] { delete graph; });
}

#else

struct G2rlStream {};
struct G2rlEvent {};
struct G2rlGraph {};

static G2rlStatus no_cuda() {
  return guarded([] { throw Failure(G2RL_NO_CUDA, "built without CUDA"); });
}

extern "C" {
int32_t g2rl_cuda_device_count() { return 0; }
G2rlStatus g2rl_cuda_memory_stats(int32_t, G2rlMemoryStats*) { return no_cuda(); }
G2rlStatus g2rl_cuda_reset_peak(int32_t) { return no_cuda(); }
G2rlStatus g2rl_cuda_empty_cache() { return no_cuda(); }
G2rlStatus g2rl_cuda_mem_get_info(int32_t, uint64_t*, uint64_t*) { return no_cuda(); }
G2rlStatus g2rl_cuda_synchronize(int32_t) { return no_cuda(); }
G2rlStatus g2rl_stream_get(int32_t, int32_t, G2rlStream**) { return no_cuda(); }
G2rlStatus g2rl_stream_make_current(G2rlStream*) { return no_cuda(); }
G2rlStatus g2rl_stream_synchronize(G2rlStream*) { return no_cuda(); }
void g2rl_stream_free(G2rlStream*) {}
G2rlStatus g2rl_event_new(G2rlEvent**) { return no_cuda(); }
G2rlStatus g2rl_event_record(G2rlEvent*, G2rlStream*) { return no_cuda(); }
G2rlStatus g2rl_event_block(G2rlEvent*, G2rlStream*) { return no_cuda(); }
G2rlStatus g2rl_event_query(G2rlEvent*, bool*) { return no_cuda(); }
G2rlStatus g2rl_event_synchronize(G2rlEvent*) { return no_cuda(); }
G2rlStatus g2rl_event_elapsed_ms(G2rlEvent*, G2rlEvent*, double*) { return no_cuda(); }
void g2rl_event_free(G2rlEvent*) {}
G2rlStatus g2rl_graph_new(G2rlGraph**) { return no_cuda(); }
G2rlStatus g2rl_graph_capture_begin(G2rlGraph*, G2rlGraph*) { return no_cuda(); }
G2rlStatus g2rl_graph_capture_end(G2rlGraph*) { return no_cuda(); }
G2rlStatus g2rl_graph_replay(G2rlGraph*) { return no_cuda(); }
void g2rl_graph_free(G2rlGraph*) {}
}

#endif
