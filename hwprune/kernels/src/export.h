// What the library shows: the functions that ONNX Runtime and the Python side call.
#pragma once

#define HWPRUNE_EXPORT extern "C" __attribute__((visibility("default")))
