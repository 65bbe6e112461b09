// The CUDA runtime functions that libtorch's headers call inline, forwarded to the runtime that
// libtorch_cuda has loaded.
//
// Naming libcudart among the needed libraries would tie a binary to the folder it was built with:
// torch finds its own copy by its own path, which is not searched for us. The definitions are hidden,
// so that libtorch itself goes on calling the real ones.
#ifdef G2RL_CUDA

#include <dlfcn.h>

#include <cstddef>

namespace {

// cudaErrorSharedObjectSymbolNotFound
constexpr int kSymbolNotFound = 302;

template <typename... Args>
int forward(const char* name, Args... args) {
  using Function = int (*)(Args...);
  auto function = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
  return function ? function(args...) : kSymbolNotFound;
}

} // namespace

#pragma GCC visibility push(hidden)
extern "C" {

int cudaDeviceSynchronize() {
  return forward("cudaDeviceSynchronize");
}
int cudaEventCreateWithFlags(void** event, unsigned int flags) {
  return forward("cudaEventCreateWithFlags", event, flags);
}
int cudaEventDestroy(void* event) {
  return forward("cudaEventDestroy", event);
}
int cudaEventElapsedTime(float* ms, void* start, void* end) {
  return forward("cudaEventElapsedTime", ms, start, end);
}
int cudaEventQuery(void* event) {
  return forward("cudaEventQuery", event);
}
int cudaEventRecord(void* event, void* stream) {
  return forward("cudaEventRecord", event, stream);
}
int cudaEventRecordWithFlags(void* event, void* stream, unsigned int flags) {
  return forward("cudaEventRecordWithFlags", event, stream, flags);
}
int cudaEventSynchronize(void* event) {
  return forward("cudaEventSynchronize", event);
}
int cudaGetLastError() {
  return forward("cudaGetLastError");
}
int cudaMemGetInfo(size_t* free, size_t* total) {
  return forward("cudaMemGetInfo", free, total);
}
int cudaStreamIsCapturing(void* stream, int* status) {
  return forward("cudaStreamIsCapturing", stream, status);
}
int cudaStreamWaitEvent(void* stream, void* event, unsigned int flags) {
  return forward("cudaStreamWaitEvent", stream, event, flags);
}
const char* cudaGetErrorString(int error) {
  using Function = const char* (*)(int);
  auto function = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "cudaGetErrorString"));
  return function ? function(error) : "the CUDA runtime is not loaded";
}

} // extern "C"
#pragma GCC visibility pop

#endif
