// Edge weights of the 4-connected grid.
#pragma once

#include <cstdint>
#include <string>

#include "metric.h"

namespace grootv {

Metric parse_metric(const char* function, const std::string& name);

// features: (height * width, channels) row-major. weight: (edges), vertical edges first.
void grid_edge_weight_cpu(const float* features, int32_t height, int32_t width, int64_t channels, Metric metric,
                          float* weight);

}  // namespace grootv
