#include "simd.h"
#include "tables.h"

#define HWPRUNE_TEXT_(name) #name
#define HWPRUNE_TEXT(name) HWPRUNE_TEXT_(name)

namespace hwprune {
namespace HWPRUNE_ISA {

extern const Compute kCompute;
const Compute kCompute = {HWPRUNE_TEXT(HWPRUNE_ISA), kLanes, kMaxVectors, run_tile, run_dot, depthwise, pack, pack_lanes, unpack_lanes, curve};

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
