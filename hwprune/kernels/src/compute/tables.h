// The functions of one instruction set, gathered by table.cpp.
#pragma once

#include "../compute_api.h"

namespace hwprune {
namespace HWPRUNE_ISA {

void run_tile(int width, int rows, int vectors, const TileJob& job);
void run_dot(const TileJob& job);
void depthwise(const DepthwiseJob& job);
void pack(const PackJob& job);
void pack_lanes(const LanePackJob& job);
void unpack_lanes(const LaneUnpackJob& job);
void curve(Curve kind, float alpha, float* data, size_t count);

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
