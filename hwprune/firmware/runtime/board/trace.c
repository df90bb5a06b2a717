/* What hwp_run calls around each step when it is built with HWP_TRACE. */
#include "trace.h"

uint32_t trace_sums[TRACE_TENSORS];

/* The last steps of MurmurHash3 (public domain): every bit of a word changes half of the others. */
static uint32_t mixed(uint32_t word) {
  word ^= word >> 16;
  word *= 0x85ebca6bu;
  word ^= word >> 13;
  word *= 0xc2b2ae35u;
  return word ^ word >> 16;
}

/* A plugin of an emulator counts instructions between the two. */
__attribute__((noinline)) void trace_mark_begin(unsigned layer) { __asm__ volatile("" ::"r"(layer) : "memory"); }
__attribute__((noinline)) void trace_mark_end(unsigned layer) { __asm__ volatile("" ::"r"(layer) : "memory"); }

void hwp_trace_begin(unsigned layer) { trace_mark_begin(layer); }

void hwp_trace_end(const hwp_network *network, unsigned layer, unsigned first, unsigned end) {
  trace_mark_end(layer);
  const unsigned index = network->layers[layer].output;
  const hwp_tensor *tensor = network->tensors + index;
  const unsigned height = network->layers[layer].height;
  if (height != tensor->height) { /* a sum over rows, there with the last of them */
    if (end != height) return;
    first = 0, end = tensor->height;
  }
  for (unsigned row = first; row < end; row++) {
    const hwp_value *from =
        network->arena + tensor->offset + (row - network->first[tensor->window]) * (uint32_t)tensor->channels * tensor->pitch;
    for (unsigned channel = 0; channel < tensor->channels; channel++, from += tensor->pitch)
      for (unsigned x = 0; x < tensor->width; x++) {
        const uint32_t place = (channel * tensor->height + row) * tensor->width + x;
#if HWP_FLOAT
        const union { float value; uint32_t bits; } held = {from[x]};
        trace_sums[index] += mixed(mixed(place) + held.bits);
#else
        trace_sums[index] += mixed(place << 8 | (uint8_t)(from[x] - HWP_OFFSET));
#endif
      }
  }
}
