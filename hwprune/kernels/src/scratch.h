// Working memory of a run. Every thread keeps its buffers and hands the same ones to every layer, so that
// they stay in the nearest cache; a run inside a run on one thread gets a buffer of its own.
#pragma once

#include <cstddef>

namespace hwprune {

class Scratch {
 public:
  explicit Scratch(size_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }  // aligned to a cache line, not cleared

 private:
  float* data_;
  size_t capacity_;
};

}  // namespace hwprune
