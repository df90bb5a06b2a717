/* Sums over every tensor, whatever the order of its rows: what a run is compared by. */
#ifndef TRACE_H
#define TRACE_H
#include "hwp.h"

/* One sum for each tensor; whoever runs the network sets them to 0 before. */
#ifndef TRACE_TENSORS
#define TRACE_TENSORS 255
#endif
extern uint32_t trace_sums[TRACE_TENSORS];

#endif
