#include "scratch.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace hwprune {
namespace {

constexpr size_t kCacheLine = 64;

struct Buffer {
  float* data;
  size_t capacity;
};

// What this thread's scopes have given back, the last one first.
struct FreeList {
  std::vector<Buffer> buffers;
  ~FreeList() {
    for (const Buffer& buffer : buffers) std::free(buffer.data);
  }
};

thread_local FreeList free_list;

float* allocate(size_t floats) {
  const size_t bytes = (floats * sizeof(float) + kCacheLine - 1) / kCacheLine * kCacheLine;
  void* const data = std::aligned_alloc(kCacheLine, bytes);
  if (data == nullptr) throw std::bad_alloc();
  // The lanes beyond a tile's last position compute with what lies there: cleared once, it is never a
  // number that slows the arithmetic down (a denormal) in fresh memory.
  std::memset(data, 0, bytes);
  return static_cast<float*>(data);
}

}  // namespace

Scratch::Scratch(size_t floats) : data_(nullptr), capacity_(0) {
  std::vector<Buffer>& buffers = free_list.buffers;
  if (!buffers.empty()) {
    data_ = buffers.back().data;
    capacity_ = buffers.back().capacity;
    buffers.pop_back();
  }
  if (capacity_ < floats) {
    std::free(data_);
    data_ = nullptr;
    const size_t wish = floats + floats / 4;  // layers differ a little: do not allocate for each of them
    data_ = allocate(wish);
    capacity_ = wish;
  }
}

Scratch::~Scratch() {
  try {
    free_list.buffers.push_back({data_, capacity_});
  } catch (...) {
    std::free(data_);
  }
}

}  // namespace hwprune
